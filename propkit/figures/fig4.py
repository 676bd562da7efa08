"""Error of every layer relative to the last, at a few iterations (arXiv:1703.01827, Fig. 4).

How to read this: each line is one moment of training, each panel one run. Going from right to left
follows the error on its way from the loss to the input: q^l/qᴸ is the mean square of the error at
the output of layer l over that at the last (highest) convolution, on a log axis. Every line ends at
1 on the right. A level line carries the error unchanged through the network; one that falls towards
the left vanishes, one that rises explodes, and its slope is the factor per layer. The leftmost
point is the R of fig3. Steps of the line are where the width of the network changes. A gap is a
value that is zero or not finite.

Iterations are those recorded nearest to 200, 2000, 20000 and 30000, as in the paper; where the run
is shorter, four of its own, log-spaced; or those named by steps (--steps in a shell). Layers are the
convolutions, or those that layers (--layers) names. relative_depth=True (--set relative_depth=True
in a shell) draws the last iteration of each run in one panel, from its first layer at 0 to its last
one at 1, so that networks of different depths can be compared.

Needs: error_moment.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from propkit import derived
from propkit.figures.by_depth import Panel, draw_by_depth
from propkit.figures.curves import (
    MANY,
    curve,
    drawable,
    legend,
    literal,
    log_axis_around_one,
    note,
    whole_axis,
)
from propkit.figures.runs import AnyRun, RunLike, gather, need
from propkit.figures.snapshots import at_layers, at_steps, with_depth
from propkit.figures.style import Canvas, Figure, canvas, step_looks, styled

_PANELS_PER_ROW = 3


def prepare(
    run: RunLike, *, steps: Sequence[int] | None = None, layers: str | None = None
) -> xr.Dataset:
    """The numbers of one run.

    Args:
        run: The run.
        steps: Iterations to show, see `propkit.figures.snapshots.snapshot_steps`.
        layers: Regular expression for the whole names of the layers to take; None: all.

    Returns:
        ``ratio`` (step, site) with coordinate ``depth``, see `propkit.derived.error_ratio`.

    Raises:
        FigureError: The run has no ``error_moment``, or no row of it; `steps` is empty.
        ValueError: Fewer than two layers were observed.
    """
    dataset = at_layers(need(run, "error_moment", "fig4"), layers, "fig4")
    ratio = with_depth(derived.error_ratio(at_steps(dataset, steps, "fig4")))
    return xr.Dataset({"ratio": ratio}).compute()


_LABEL = "$q^l / q^L$  (current to highest layer)"


def draw(
    datasets: Mapping[str, xr.Dataset],
    *,
    relative_depth: bool = False,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
    into: Canvas | None = None,
) -> Figure:
    """The ink: one panel per dataset with shared axes, one line per step.

    Args:
        datasets: Label -> what `prepare` returned.
        relative_depth: See `propkit.figures.by_depth.draw_by_depth`.
        size: Width and height in inches; None: as many panels need.
        dpi: Pixels per inch on screen.
        into: Part of a figure to draw on, in place of a new one.
    """
    if relative_depth:
        panels = (Panel("ratio", _LABEL, log=True, one=True),)
        keywords: dict[str, Any] = {"relative_depth": True, "size": size, "dpi": dpi, "into": into}
        return draw_by_depth(datasets, panels, x_label="layer index", **keywords)
    columns = min(len(datasets), _PANELS_PER_ROW)
    rows = -(-len(datasets) // columns)
    same = len({tuple(d["step"].values) for d in datasets.values()}) == 1
    ratios = [d["ratio"] for d in datasets.values()]
    with styled():
        figure = canvas(size or (2.4 + 4.0 * columns, 0.6 + 3.4 * rows), dpi, into)
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for empty in axes.flat[len(datasets) :]:
            empty.remove()
        for ax, (label, d) in zip(axes.flat, datasets.items(), strict=False):
            log_axis_around_one(ax, ratios)
            lines = _panel(ax, d)
            # Panels with the same iterations share one legend; a long one stands on the right.
            if not same or ax is (axes[0, -1] if len(lines) > MANY else axes[0, 0]):
                legend(ax, lines)
            literal(ax.set_title(label))
            ax.tick_params(labelbottom=True)  # also where no panel is below
            whole_axis(ax, (d["depth"] for d in datasets.values()))
            if not np.isfinite(drawable(d["ratio"], log=True)).any():
                note(ax, "no value on a log axis")
        figure.supxlabel("layer index", fontsize="medium")
        figure.supylabel(_LABEL, fontsize="medium")
    return figure


def _panel(ax: Axes, dataset: xr.Dataset) -> list[Line2D]:
    steps = dataset["step"].values
    looks = step_looks(len(steps))
    return [
        curve(
            ax,
            dataset["depth"],
            dataset["ratio"].isel(step=i),
            looks[i],
            f"iteration {step:,}",
            log=True,
            noisy=False,
        )
        for i, step in enumerate(steps)
    ]


def fig4(
    run: AnyRun | Sequence[AnyRun],
    *more: AnyRun,
    labels: Sequence[str] | str | None = None,
    steps: Sequence[int] | None = None,
    layers: str | None = None,
    relative_depth: bool = False,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> Figure:
    """q^l/qᴸ against layer index at a few iterations, one panel per run (arXiv:1703.01827, Fig. 4).

    Args:
        run: A run, its path, or several of them.
        more: More runs to compare.
        labels: One label per run; else the runs' own.
        steps: Iterations to show; the recorded ones nearest to them are taken. None: the paper's
            200, 2000, 20000, 30000, or four of its own where the run is shorter.
        layers: Regular expression for the whole names of the layers to take; None: all.
        relative_depth: Draw the last iteration of each run in one panel, over depths from 0 to 1.
        size: Width and height in inches; None: as many panels need.
        dpi: Pixels per inch on screen.

    Raises:
        FigureError: A run has no ``error_moment``, or no row of it; `steps` is empty.
        ValueError: Fewer than two layers were observed.
    """
    runs = gather((run, *more), labels)
    datasets = {k: prepare(r, steps=steps, layers=layers) for k, r in runs.items()}
    return draw(datasets, relative_depth=relative_depth, size=size, dpi=dpi)
