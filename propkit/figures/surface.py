"""Second-order moments of the errors of all layers over the whole training, as a surface seen from above.

How to read this: each panel is one run, each column of it one recorded iteration, each row one
layer, with the input at the bottom and the loss at the top. Colour is the mean square q of the
back-propagated error at the layer's output, on a log scale that all panels share: light is large. A
network that carries errors unchanged has one colour from top to bottom; one in which they vanish
darkens downwards, one in which they explode brightens downwards. A vertical edge is a moment when
something changed in all layers, such as the learning rate. White (black on a dark ground) is a
value that is zero or not finite. relative=True (--set relative=True in a shell) shows q^l/qᴸ, the
ratio to the highest layer, which does not change with the size of the loss.

Options: layers (--layers), a regular expression for the names of the layers to take; relative.

Needs: error_moment.
"""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import matplotlib.cm
import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LogNorm

from propkit import derived
from propkit.figures.curves import drawable, literal, note
from propkit.figures.runs import AnyRun, RunLike, gather, need
from propkit.figures.snapshots import at_layers, with_depth
from propkit.figures.style import Canvas, Figure, canvas, ink, styled

_PANELS_PER_ROW = 3
_COLUMNS = 1000
"""More iterations than these are drawn as medians of neighbours: there are no more pixels."""


_DECADES = 150.0
"""Where the scale of colours ends on both sides of 1."""


def prepare(run: RunLike, *, layers: str | None = None, relative: bool = False) -> xr.Dataset:
    """The numbers of one run.

    Args:
        run: The run.
        layers: Regular expression for the whole names of the layers to take; None: the convolutions, or all layers
            where there are not two of them.
        relative: Divide by the moment at the highest layer.

    Returns:
        ``moment`` (step, site) with coordinate ``depth``; attribute ``label``, what it is.

    Raises:
        FigureError: The run has no ``error_moment``, or no row of it; `layers` selects nothing.
        ValueError: `relative`, and fewer than two layers were observed.
    """
    dataset = at_layers(need(run, "error_moment", "surface"), layers, "surface")
    if relative:
        moment, label = derived.error_ratio(dataset), "$q^l / q^L$"
    else:
        shown = np.arange(dataset.sizes["site"]) if layers else derived.layers(dataset)
        moment, label = dataset["output"].isel(site=shown), "$q^l$, mean square of the error"
    return xr.Dataset({"moment": with_depth(moment)}, attrs={"label": label}).compute()


def draw(
    datasets: Mapping[str, xr.Dataset],
    *,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
    into: Canvas | None = None,
) -> Figure:
    """The ink: one panel per dataset, one colour bar.

    Args:
        datasets: Label -> what `prepare` returned.
        size: Width and height in inches; None: as many panels need.
        dpi: Pixels per inch on screen.
        into: Part of a figure to draw on, in place of a new one.
    """
    columns = min(len(datasets), _PANELS_PER_ROW)
    rows = -(-len(datasets) // columns)
    with styled():
        figure = canvas(size or (2.0 + 4.2 * columns, 0.6 + 3.6 * rows), dpi, into)
        axes = figure.subplots(rows, columns, squeeze=False)
        for empty in axes.flat[len(datasets) :]:
            empty.remove()
        colors = mpl.colormaps["cividis"].with_extremes(bad=ink("ground"))
        norm = _scale(datasets)
        scale = mpl.cm.ScalarMappable(norm, colors)
        for ax, (label, dataset) in zip(axes.flat, datasets.items(), strict=False):
            _panel(ax, dataset, norm, colors)
            literal(ax.set_title(label))
        for row in axes:
            row[0].set_ylabel("layer index")
        for ax in figure.axes[-columns:]:
            ax.set_xlabel("iteration")
        text = next(iter(datasets.values())).attrs["label"]
        figure.colorbar(scale, ax=figure.axes, label=text, pad=0.02)
    return figure


def _scale(datasets: Mapping[str, xr.Dataset]) -> LogNorm:
    """From the smallest to the largest value of all; matplotlib's ticks stand 300 decades."""
    shown = np.concatenate([drawable(d["moment"], log=True).ravel() for d in datasets.values()])
    shown = shown[np.isfinite(shown)]
    ends = np.log10([shown.min(), shown.max()]) if shown.size else np.zeros(2)
    low, high = np.clip(ends, -_DECADES, _DECADES)
    # A decade at least, so that no noise looks like a range.
    room = max(0.0, 0.5 - (high - low) / 2)
    return LogNorm(10.0 ** (low - room), 10.0 ** (high + room), clip=True)


def _panel(ax: Axes, dataset: xr.Dataset, norm: LogNorm, colors: Colormap) -> None:
    values = drawable(dataset["moment"], log=True)
    steps = dataset["step"].values.astype(float)
    if not np.isfinite(values).any():
        note(ax, "no value on a log scale")
    if len(steps) > _COLUMNS:
        steps, values = _fewer(steps, values)
    depth = dataset["depth"].values.astype(float)
    if (np.diff(depth) <= 0).any():  # parallel layers, or a part that runs several times
        depth = np.arange(1.0, len(depth) + 1)
    ax.pcolormesh(
        _edges(steps),
        _edges(depth),
        np.ma.masked_invalid(values.T),
        cmap=colors,
        norm=norm,
        rasterized=True,
        gid="surface",
    )
    ax.grid(visible=False)
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(6, integer=True, min_n_ticks=1))
    ax.xaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:,.0f}"))
    ax.yaxis.set_major_locator(mpl.ticker.MaxNLocator(7, integer=True, min_n_ticks=1))


def _edges(centres: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Where a cell ends and the next one begins: half way."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    first, last = centres[0] - (middle[0] - centres[0]), centres[-1] + (centres[-1] - middle[-1])
    return np.concatenate([[first], middle, [last]])


def _fewer(
    steps: npt.NDArray[np.float64], values: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Medians over groups of neighbouring iterations; NaN where half of a group or more is."""
    groups = np.array_split(np.arange(len(steps)), _COLUMNS)
    filled = np.where(np.isfinite(values), values, np.inf)
    medians = np.stack([np.sort(filled[g], axis=0)[len(g) // 2] for g in groups])
    return np.array([steps[g].mean() for g in groups]), np.where(
        np.isfinite(medians), medians, np.nan
    )


def surface(
    run: AnyRun | Sequence[AnyRun],
    *more: AnyRun,
    labels: Sequence[str] | str | None = None,
    layers: str | None = None,
    relative: bool = False,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> Figure:
    """Error moments of all layers at all recorded iterations, as colours.

    Args:
        run: A run, its path, or several of them.
        more: More runs to compare.
        labels: One label per run; else the runs' own.
        layers: Regular expression for the whole names of the layers to take.
        relative: Show the ratio to the moment at the highest layer.
        size: Width and height in inches; None: as many panels need.
        dpi: Pixels per inch on screen.

    Raises:
        FigureError: A run has no ``error_moment``, or no row of it; `layers` selects nothing.
        ValueError: `relative`, and fewer than two layers were observed.
    """
    runs = gather((run, *more), labels)
    datasets = {k: prepare(r, layers=layers, relative=relative) for k, r in runs.items()}
    return draw(datasets, size=size, dpi=dpi)
