"""Ratio of gradient norms at the two ends of each block (arXiv:1805.07477, Fig. 3).

How to read this: each line is one moment of training, each column one run, and where every run
shows one iteration only (--steps N in a shell) each line is one run. It shows, for each block, the
norm of the gradient at the block's output over that at its input, on a log axis. At 1 the block
preserves the norm. The direction is that of the paper and opposite to that of figs. 3 and 4 of
arXiv:1703.01827: above 1 the gradient vanishes on its way to the input, below 1 it grows. Dotted
vertical lines mark the transition blocks, those that change the shape of their input: there the
norm is preserved least, and it is what the paper's projection acts on. A gap is a value that is
zero or not finite, and that of a first block whose input needs no gradient.

Options: steps (--steps), the iterations; layers (--layers), a regular expression for the names of
the blocks to take; relative_depth=True (--set relative_depth=True), to compare networks of
different depths on one axis from 0 to 1, each at its last iteration; window=N (--set window=N)
draws the geometric mean over the N recorded iterations that end at each one shown, such as those of
an epoch, as the paper does.

Needs: gradient_norm.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from propkit import derived
from propkit.figures.by_depth import Panel, compare, draw_by_depth, relative
from propkit.figures.curves import beside_one
from propkit.figures.runs import AnyRun, FigureError, RunLike, need
from propkit.figures.snapshots import at_layers, snapshot_steps
from propkit.figures.style import Figure, ink

_LABEL = (
    r"$\|\partial E/\partial x_{l+1}\| \,/\, \|\partial E/\partial x_l\|$"
    + "\nratio of output to input"
)
_PANELS = (Panel("ratio", _LABEL, log=True, one=True),)


def prepare(
    run: RunLike,
    *,
    steps: Sequence[int] | None = None,
    layers: str | None = None,
    window: int = 1,
) -> xr.Dataset:
    """The numbers of one run.

    Args:
        run: The run.
        steps: Iterations to show, see `propkit.figures.snapshots.snapshot_steps`.
        layers: Regular expression for the whole names of the blocks to take.
        window: Recorded iterations that the geometric mean runs over.

    Returns:
        ``ratio`` (step, site), see `propkit.derived.gradient_norm_ratio`; ``transition`` (site,), whether the block
        changes the shape; coordinate ``depth``, the block's number among all that were observed.

    Raises:
        FigureError: The run has no ``gradient_norm``, or no row of it; `steps` or `layers` select nothing, or `window`
            is not positive.
    """
    dataset = need(run, "gradient_norm", "norm_ratios")
    if not isinstance(window, int) or window < 1:
        raise FigureError(f"norm_ratios: window={window!r}: expected a number of iterations >= 1")
    if steps is not None and not len(steps):
        raise FigureError("norm_ratios: steps is empty; name at least one iteration")
    dataset = dataset.assign_coords(depth=("site", np.arange(1, dataset.sizes["site"] + 1)))
    dataset = at_layers(dataset, layers, "norm_ratios")
    ratio = derived.gradient_norm_ratio(dataset, direction="upper").compute()
    recorded = dataset["step"].values
    shown = snapshot_steps(recorded, steps)
    if window > 1:
        logs = np.log(ratio.where(np.isfinite(ratio) & (ratio > 0)).values)
        ends = np.searchsorted(recorded, shown) + 1
        means = [np.exp(_mean(logs[max(end - window, 0) : end])) for end in ends]
        ratio = ratio.sel(step=shown).copy(data=np.stack(means))
    else:
        ratio = ratio.sel(step=shown)
    return xr.Dataset({"ratio": ratio, "transition": ("site", _transitions(dataset))})


def _mean(logs: np.ndarray) -> np.ndarray:
    """Mean over rows of what is known; NaN where nothing is."""
    known = np.isfinite(logs)
    total = np.where(known, logs, 0.0).sum(0)
    return np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)


def _transitions(dataset: xr.Dataset) -> np.ndarray:
    if not {"input_shape", "output_shape"} <= set(dataset.coords):
        return np.zeros(dataset.sizes["site"], dtype=bool)
    received, returned = dataset["input_shape"].values, dataset["output_shape"].values
    return np.asarray((received != returned) & (received != "") & (returned != ""))


def draw(datasets: Mapping[str, xr.Dataset], **options: Any) -> Figure:
    """The ink: one panel per run, or one for all, transition blocks marked where all lines share them.

    Args:
        datasets: Label -> what `prepare` returned.
        options: See `propkit.figures.by_depth.draw_by_depth`.
    """
    figure = draw_by_depth(datasets, _PANELS, x_label="block", **options)
    marks = [_marks(d, options.get("relative_depth", False)) for d in datasets.values()]
    if len(figure.axes) < len(marks):
        marks = marks[:1] if len(set(marks)) == 1 else []
    for ax, blocks in zip(figure.axes, marks, strict=False):
        for block in blocks:
            ax.axvline(block, color=ink("axis"), ls=":", lw=0.9, zorder=1, gid="transition")
    beside_one(figure.axes[-1], "vanishing", "exploding")
    return figure


def _marks(dataset: xr.Dataset, relative_depth: bool) -> tuple[float, ...]:
    """Where the transition blocks are on the x axis."""
    depth = relative(dataset) if relative_depth else dataset["depth"].values
    return tuple(depth[dataset["transition"].values].tolist())


def norm_ratios(
    run: AnyRun | Sequence[AnyRun],
    *more: AnyRun,
    labels: Sequence[str] | str | None = None,
    steps: Sequence[int] | None = None,
    layers: str | None = None,
    relative_depth: bool = False,
    window: int = 1,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> Figure:
    """Gradient norm at the output over that at the input of each block (arXiv:1805.07477, Fig. 3).

    `window` is of `prepare`, the other arguments are those of `propkit.figures.by_depth.compare`.
    """
    return compare(
        prepare,
        draw,
        (run, *more),
        labels=labels,
        steps=steps,
        layers=layers,
        window=window,
        relative_depth=relative_depth,
        size=size,
        dpi=dpi,
    )
