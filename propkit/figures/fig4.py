"""Error of every layer relative to the last, at a few iterations (arXiv:1703.01827, Fig. 4).

How to read this: each line is one moment of training, each panel one run. Going from right to left
follows the error on its way from the loss to the input: q^l/qᴸ is the mean square of the error at
the output of layer l over that at the last (highest) convolution, on a log axis. Every line ends at
1 on the right. A level line carries the error unchanged through the network; one that falls towards
the left vanishes, one that rises explodes, and its slope is the factor per layer. The leftmost
point is the R of fig3. Steps of the line are where the width of the network changes. A gap is a
value that is zero or not finite.

Iterations are those recorded nearest to 200, 2000, 20000 and 30000, as in the paper; where the run
is shorter, four of its own, log-spaced; or those named by steps (--steps in a shell).

Needs: error_moment.
"""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from propkit import derived
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
from propkit.figures.runs import AnyRun, FigureError, RunLike, gather, need
from propkit.figures.style import Figure, line_look, new_figure, styled

PAPER_STEPS = (200, 2000, 20000, 30000)
"""The iterations of the paper's figure."""

_PANELS_PER_ROW = 3


def snapshot_steps(
    recorded: npt.NDArray[np.int64], steps: Sequence[int] | None = None
) -> npt.NDArray[np.int64]:
    """The recorded steps to show: those nearest to the ones wanted, ascending, each once.

    Args:
        recorded: All recorded steps, ascending, at least one.
        steps: The steps wanted. None: the paper's, or four log-spaced ones if the run ends before
            the last of them.

    >>> snapshot_steps(np.arange(0, 64001, 50))
    array([  200,  2000, 20000, 30000])
    >>> snapshot_steps(np.arange(0, 801, 10))
    array([ 10,  40, 190, 800])
    >>> snapshot_steps(np.arange(0, 801, 10), [0, 204, 206])
    array([  0, 200, 210])
    """
    if steps is None:
        last = int(recorded[-1])
        started = recorded[recorded > 0]
        if last >= PAPER_STEPS[-1] or not started.size:
            steps = PAPER_STEPS
        else:  # as many decades as in the paper
            first = max(int(started[0]), last * PAPER_STEPS[0] / PAPER_STEPS[-1])
            steps = np.geomspace(first, last, len(PAPER_STEPS)).tolist()
    nearest = [int(np.abs(recorded - step).argmin()) for step in steps]
    shown: npt.NDArray[np.int64] = recorded[np.unique(nearest)]
    return shown


def prepare(run: RunLike, *, steps: Sequence[int] | None = None) -> xr.Dataset:
    """The numbers of one run.

    Args:
        run: The run.
        steps: Iterations to show, see `snapshot_steps`.

    Returns:
        ``ratio`` (step, site) with coordinate ``depth``, see `propkit.derived.error_ratio`.

    Raises:
        FigureError: The run has no ``error_moment``, or no row of it; `steps` is empty.
        ValueError: Fewer than two layers were observed.
    """
    if steps is not None and not len(steps):
        raise FigureError("fig4: steps is empty; name at least one iteration, or leave it out")
    dataset = need(run, "error_moment", "fig4")
    shown = snapshot_steps(dataset["step"].values, steps)
    ratio = derived.error_ratio(dataset.sel(step=shown))
    if "depth" not in ratio.coords:
        ratio = ratio.assign_coords(depth=("site", np.arange(1, ratio.sizes["site"] + 1)))
    return xr.Dataset({"ratio": ratio}).compute()


def draw(
    datasets: Mapping[str, xr.Dataset],
    *,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> Figure:
    """The ink: one panel per dataset with shared axes, one line per step.

    Args:
        datasets: Label -> what `prepare` returned.
        size: Width and height in inches; None: as many panels need.
        dpi: Pixels per inch on screen.
    """
    columns = min(len(datasets), _PANELS_PER_ROW)
    rows = -(-len(datasets) // columns)
    same = len({tuple(d["step"].values) for d in datasets.values()}) == 1
    ratios = [d["ratio"] for d in datasets.values()]
    with styled():
        figure = new_figure(size or (2.4 + 4.0 * columns, 0.6 + 3.4 * rows), dpi)
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
        figure.supylabel("$q^l / q^L$  (current to highest layer)", fontsize="medium")
    return figure


def _panel(ax: Axes, dataset: xr.Dataset) -> list[Line2D]:
    steps = dataset["step"].values
    # Later iterations are lighter; the scale's yellow end is too faint on white.
    colors = mpl.colormaps["viridis"](np.linspace(0.0, 0.82, len(steps)))
    return [
        curve(
            ax,
            dataset["depth"],
            dataset["ratio"].isel(step=i),
            line_look(i) | {"color": colors[i]},
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
        size: Width and height in inches; None: as many panels need.
        dpi: Pixels per inch on screen.

    Raises:
        FigureError: A run has no ``error_moment``, or no row of it; `steps` is empty.
        ValueError: Fewer than two layers were observed.
    """
    runs = gather((run, *more), labels)
    return draw({k: prepare(r, steps=steps) for k, r in runs.items()}, size=size, dpi=dpi)
