"""Error of the first layer relative to the last during training (arXiv:1703.01827, Fig. 3).

How to read this: each line is one run. It shows R = q¹/qᴸ, the mean square of the back-propagated
error at the output of the first convolution over that at the last one, on a log axis. At 1 the
error arrives at the first layer as strong as it left the last. Below 1 it vanishes on its way to
the input, above 1 it explodes: 1e-6 means that the first layer's errors are a thousand times
smaller in amplitude. The top panel shows all iterations, the bottom one leaves out the first 5,
when R jumps by orders of magnitude. Long runs are drawn as a pale trace of all values and a line
through their medians. A gap is a value that is zero or not finite, and a cross marks where such
values begin for good.

With batch normalisation after each convolution, R also contains the ratio of the norms of the two
layers' weights. corrected=True (--set corrected=True in a shell) multiplies it out, see
propkit.derived.corrected_end_to_end_ratio. first=N (--set first=N) has the lower panel begin at N.
layers (--layers), a regular expression for the names of the layers to take, chooses between which
two R is: the first and the last of them, or of the convolutions among them.

Needs: error_moment; weight too if corrected.
"""

from collections.abc import Mapping, Sequence

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from propkit import derived
from propkit.figures.curves import (
    beside_one,
    curve,
    legend,
    log_axis_around_one,
    note,
    whole_axis,
)
from propkit.figures.runs import AnyRun, RunLike, gather, need
from propkit.figures.snapshots import at_layers
from propkit.figures.style import Canvas, Figure, canvas, line_look, styled


def prepare(run: RunLike, *, corrected: bool = False, layers: str | None = None) -> xr.Dataset:
    """The numbers of one run.

    Args:
        run: The run.
        corrected: Take out the norms of the weights.
        layers: Regular expression for the whole names of the layers to take; None: all.

    Returns:
        ``ratio`` (step,), see `propkit.derived.end_to_end_ratio`; attribute ``symbol``, its
        formula.

    Raises:
        FigureError: The run lacks a group, or has no row of it; `layers` selects nothing.
        ValueError: Fewer than two layers were observed.
    """
    moments = at_layers(need(run, "error_moment", "fig3"), layers, "fig3")
    if corrected:
        symbol = r"$\tilde{R} = q^1 \|w_1\|^2 / q^L \|w_L\|^2$"
        ratio = derived.corrected_end_to_end_ratio(moments, need(run, "weight", "fig3 (corrected)"))
    else:
        symbol = "$R = q^1 / q^L$"
        ratio = derived.end_to_end_ratio(moments)
    return xr.Dataset({"ratio": ratio}, attrs={"symbol": symbol}).compute()


def draw(
    datasets: Mapping[str, xr.Dataset],
    *,
    first: int = 5,
    size: tuple[float, float] = (6.4, 5.6),
    dpi: float | None = None,
    into: Canvas | None = None,
) -> Figure:
    """The ink: two panels, one line per dataset in each.

    Args:
        datasets: Label -> what `prepare` returned.
        first: The iteration from which the lower panel shows the runs.
        size: Width and height in inches.
        dpi: Pixels per inch on screen.
        into: Part of a figure to draw on, in place of a new one.
    """
    with styled():
        figure = canvas(size, dpi, into)
        top, bottom = figure.subplots(2, 1)
        lines = _panel(top, datasets)
        _panel(bottom, {k: d.isel(step=d["step"].values >= first) for k, d in datasets.items()})
        bottom.set_xlabel("iteration")
        top.set_title("all iterations")
        bottom.set_title(f"from iteration {first} on")
        symbol = next(iter(datasets.values())).attrs["symbol"]
        figure.supylabel(f"{symbol}  (first to last layer)", fontsize="medium")
        legend(top, lines)
    return figure


def _panel(ax: Axes, datasets: Mapping[str, xr.Dataset]) -> list[Line2D]:
    drawable = log_axis_around_one(ax, (d["ratio"] for d in datasets.values()))
    lines = [
        curve(ax, d["step"], d["ratio"], line_look(i), label, log=True)
        for i, (label, d) in enumerate(datasets.items())
        if d.sizes["step"]
    ]
    if not drawable:
        note(ax, "no value on a log axis" if lines else "no iteration recorded here")
    beside_one(ax, "exploding", "vanishing")
    whole_axis(ax, (d["step"] for d in datasets.values()))
    return lines


def fig3(
    run: AnyRun | Sequence[AnyRun],
    *more: AnyRun,
    labels: Sequence[str] | str | None = None,
    corrected: bool = False,
    layers: str | None = None,
    first: int = 5,
    size: tuple[float, float] = (6.4, 5.6),
    dpi: float | None = None,
) -> Figure:
    """R = q¹/qᴸ against iteration, and below from iteration 5 on (arXiv:1703.01827, Fig. 3).

    Args:
        run: A run, its path, or several of them.
        more: More runs to compare.
        labels: One label per run; else the runs' own.
        corrected: Take out the norms of the first and the last layer's weights.
        layers: Regular expression for the whole names of the layers to take; None: all.
        first: The iteration from which the lower panel shows the runs.
        size: Width and height in inches.
        dpi: Pixels per inch on screen.

    Raises:
        FigureError: A run lacks ``error_moment`` (or ``weight``, if corrected), or has no row of
            it; `layers` selects nothing.
        ValueError: Fewer than two layers were observed.
    """
    runs = gather((run, *more), labels)
    datasets = {k: prepare(r, corrected=corrected, layers=layers) for k, r in runs.items()}
    return draw(datasets, first=first, size=size, dpi=dpi)
