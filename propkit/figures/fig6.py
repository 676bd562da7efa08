"""Filters of the first convolution, as images (arXiv:1703.01827, Fig. 6).

How to read this: each panel is one run at one iteration, by default the last that was recorded, each
small square one filter of the first convolution, in colours if the images have three channels.
Middle grey is a weight of 0; each filter is scaled by itself, so that its largest weight, whatever
its sign, is black or white (a full colour). So the squares show what a filter looks for, not how
strongly. Filters that learned are smooth, with edges, bars and colour contrasts that differ from
filter to filter; those that did not look like noise, and a regulariser that lets filters grow
alike shows as squares that repeat. scale='layer' (--set scale=layer in a shell) scales all filters
of a layer by its one largest weight: filters that died are grey then. A square of the ground's
colour is a filter with weights that are not finite.

The paper compares weight decay with orthonormality: its text says nothing of how filters are
scaled. A layer with neither 1 nor 3 input channels has a row of grey squares for each filter, one
for each channel.

Options: steps (--steps), the iterations, one below the other; layers (--layers), a regular
expression for the name of the layer to take, the first by default; scale.

Needs: filters, which is recorded when named: probes=[..., "filters"].
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from propkit.figures.curves import literal, note
from propkit.figures.pictures import Floats, bare, folded, tiled
from propkit.figures.runs import AnyRun, FigureError, RunLike, gather, need
from propkit.figures.snapshots import at_steps, matching
from propkit.figures.style import Canvas, Figure, canvas, ink, styled

_MOST = 256
"""Filters (or filters and channels) that are shown of a layer."""
_PIXELS = 24
"""Of a square; filters are smaller."""
SCALES = ("filter", "layer")
"""What the largest weight is taken of."""


def prepare(
    run: RunLike,
    *,
    steps: Sequence[int] | None = None,
    layers: str | None = None,
    scale: str = "filter",
) -> xr.Dataset:
    """The numbers of one run.

    Args:
        run: The run.
        steps: Iterations to show, the nearest recorded ones being taken; None: the last.
        layers: Regular expression for the whole name of the layer to take; None: the first.
        scale: What is divided by the largest absolute weight of: each ``"filter"``, or the ``"layer"``.

    Returns:
        (step, filter, row, column, channel): ``weight``, and ``picture``, from 0 to 1 with 0.5 for a
        weight of 0, NaN for a filter (or layer) that is not finite; attributes ``layer`` and
        ``filters``, the number of all of them.

    Raises:
        FigureError: The run has no ``filters``, or no row of it; `steps` or `layers` select nothing;
            another `scale`.
    """
    if scale not in SCALES:
        raise FigureError(f"fig6: scale={scale!r}: expected one of {', '.join(SCALES)}")
    dataset = need(run, "filters", "fig6")
    site = 0 if layers is None else matching(dataset, layers, "fig6")[0]
    steps = [int(dataset["step"].values[-1])] if steps is None else steps
    dataset = at_steps(dataset, steps, "fig6")
    weight = folded(dataset, site, ("channels", "height", "width"), "fig6")
    weight = np.moveaxis(weight, 2, -1)
    count = weight.shape[1]
    weight = weight[:, :_MOST]
    axes = (2, 3, 4) if scale == "filter" else (1, 2, 3, 4)
    largest = np.abs(weight).max(axis=axes, keepdims=True)
    with np.errstate(invalid="ignore"):
        share = weight / np.where(largest > 0, largest, 1.0)
        picture = np.where(np.isfinite(largest), 0.5 + share / 2, np.nan)
    dims = ("step", "filter", "row", "column", "channel")
    return xr.Dataset(
        {"weight": (dims, weight), "picture": (dims, picture)},
        {"step": dataset["step"].values},
        {"layer": str(dataset["site"].values[site]), "filters": count},
    )


def draw(
    datasets: Mapping[str, xr.Dataset],
    *,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
    into: Canvas | None = None,
) -> Figure:
    """The ink: a column of panels per dataset, one for each iteration.

    Args:
        datasets: Label -> what `prepare` returned.
        size: Width and height in inches; None: as many panels need.
        dpi: Pixels per inch on screen.
        into: Part of a figure to draw on, in place of a new one.
    """
    rows = max(d.sizes["step"] for d in datasets.values())
    across = min(len(datasets), 4) if rows == 1 else len(datasets)
    down = -(-len(datasets) // across) if rows == 1 else rows
    with styled():
        figure = canvas(size or (0.4 + 3.2 * across, 0.3 + 3.5 * down), dpi, into)
        axes = figure.subplots(down, across, squeeze=False)
        panels = axes.ravel()[:, None] if rows == 1 else axes.T
        for ax in axes.flat:
            bare(ax)
        for column, (label, dataset) in zip(panels, datasets.items(), strict=False):
            for i, ax in enumerate(column[: dataset.sizes["step"]]):
                _panel(ax, dataset.isel(step=i))
                title = f"{label}, iteration {int(dataset['step'].values[i]):,}"
                literal(ax.set_title(title, fontsize="small"))
    return figure


def _panel(ax: Axes, dataset: xr.Dataset) -> None:
    pictures, channels = dataset["picture"].values, dataset.sizes["channel"]
    shown, total = len(pictures), int(dataset.attrs["filters"])
    if channels in (1, 3):
        tiles, columns = pictures, math.ceil(math.sqrt(shown))
    else:  # a row of grey squares for each filter
        shown = max(1, _MOST // channels)
        tiles = np.moveaxis(pictures[:shown], -1, 1).reshape(-1, *pictures.shape[1:3], 1)
        columns = channels
    whole = np.nan_to_num(tiled(_framed(tiles), columns, gap=3))
    ax.imshow(whole, interpolation="nearest", gid="filters")
    text = f"{dataset.attrs['layer']}: {total} filters"
    if shown < total:
        text += f", the first {shown} shown"
    literal(ax.set_xlabel(text, fontsize="small"))
    if not np.isfinite(pictures).any():
        note(ax, "no finite value")


def _framed(tiles: Floats) -> Floats:
    """Red, green, blue and opacity of larger squares with an edge, so that white ones end somewhere."""
    for axis in (1, 2):
        tiles = np.repeat(tiles, -(-_PIXELS // tiles.shape[axis]), axis)
    known = np.isfinite(tiles).all(-1, keepdims=True)
    colours = np.broadcast_to(np.where(known, tiles, 0.0), (*tiles.shape[:3], 3))
    framed = np.pad(np.concatenate([colours, known], -1), ((0, 0), (1, 1), (1, 1), (0, 0)))
    framed[:, [0, -1]] = framed[:, :, [0, -1]] = [*to_rgb(ink("axis")), 1.0]
    return framed


def fig6(
    run: AnyRun | Sequence[AnyRun],
    *more: AnyRun,
    labels: Sequence[str] | str | None = None,
    steps: Sequence[int] | None = None,
    layers: str | None = None,
    scale: str = "filter",
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> Figure:
    """Filters of the first convolution as images, a panel per run (arXiv:1703.01827, Fig. 6).

    Args:
        run: A run, its path, or several of them.
        more: More runs to compare.
        labels: One label per run; else the runs' own.
        steps: Iterations to show; None: the last.
        layers: Regular expression for the whole name of the layer to take; None: the first.
        scale: Whether each ``"filter"`` is scaled by itself, or the ``"layer"`` as a whole.
        size: Width and height in inches; None: as many panels need.
        dpi: Pixels per inch on screen.

    Raises:
        FigureError: A run has no ``filters``, or no row of it; `steps` or `layers` select nothing;
            another `scale`.
    """
    runs = gather((run, *more), labels)
    datasets = {k: prepare(r, steps=steps, layers=layers, scale=scale) for k, r in runs.items()}
    return draw(datasets, size=size, dpi=dpi)
