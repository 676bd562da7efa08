"""How near to singular the representations are, by depth (Oyedotun, Shabayek, Aouada & Ottersten, ICPR 2020).

How to read this: each line is one moment of training, each column one run, and where every run
shows one iteration only (--steps N in a shell) each line is one run. The four panels look at the
matrix that has the layer's output for one sample in each row. In a deep network without
normalisation all samples come to look the same, which makes it singular: the condition number
(largest over smallest singular value, log axis) diverges, the effective rank falls to 1, the share
of the largest singular value in the sum of squares and the mean cosine of two samples rise to 1. A
triangle at the top is a condition number that is infinite: the rank is not full. A gap is a value
that is not known, as of a layer that returns zeros only.

The layers are the nonlinearities, or all layers where there is no nonlinearity of torch.nn. The
smaller of batch size and width is the largest effective rank possible.

Options: steps (--steps), the iterations; layers (--layers), a regular expression for the names of
the layers to take; relative_depth=True (--set relative_depth=True), to compare networks of
different depths on one axis from 0 to 1, each at its last iteration.

Needs: representation.
"""

from collections.abc import Sequence
from functools import partial

import xarray as xr

from propkit.figures.by_depth import Panel, compare, draw_by_depth
from propkit.figures.runs import AnyRun, RunLike, need
from propkit.figures.snapshots import at_layers, at_steps, nonlinear, with_depth
from propkit.figures.style import Figure

_PANELS = (
    Panel("condition_number", "condition number", log=True),
    Panel("effective_rank", "effective rank"),
    Panel("top_share", "share of the top\nsingular value", limits=(-0.04, 1.08)),
    Panel("mean_cosine", "mean cosine\nof samples"),
)


def prepare(
    run: RunLike, *, steps: Sequence[int] | None = None, layers: str | None = None
) -> xr.Dataset:
    """The numbers of one run.

    Args:
        run: The run.
        steps: Iterations to show, see `propkit.figures.snapshots.snapshot_steps`.
        layers: Regular expression for the whole names of the layers to take.

    Returns:
        ``condition_number``, ``effective_rank``, ``top_share`` and ``mean_cosine`` (step, site), with coordinate
        ``depth``.

    Raises:
        FigureError: The run has no ``representation``, or no row of it; `steps` or `layers` select nothing.
    """
    dataset = at_steps(need(run, "representation", "conditioning"), steps, "conditioning")
    dataset = at_layers(dataset, layers, "conditioning") if layers else nonlinear(dataset)
    return xr.Dataset({p.name: with_depth(dataset[p.name]) for p in _PANELS}).compute()


draw = partial(draw_by_depth, panels=_PANELS, x_label="layer index")
"""The ink, see `propkit.figures.by_depth.draw_by_depth`."""


def conditioning(
    run: AnyRun | Sequence[AnyRun],
    *more: AnyRun,
    labels: Sequence[str] | str | None = None,
    steps: Sequence[int] | None = None,
    layers: str | None = None,
    relative_depth: bool = False,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> Figure:
    """Condition number, effective rank, top share and mean cosine by depth (Oyedotun et al., ICPR 2020).

    Arguments and errors are those of `propkit.figures.by_depth.compare`.
    """
    return compare(
        prepare,
        draw,
        (run, *more),
        labels=labels,
        steps=steps,
        layers=layers,
        relative_depth=relative_depth,
        size=size,
        dpi=dpi,
    )
