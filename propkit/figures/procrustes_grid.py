"""How one layer preserves the norm of gradients, by its numbers of channels (arXiv:1805.07477, Fig. 2).

How to read this: each cell of a heat map is a layer with so many channels at its input (row) and so
many at its output (column), trained with or without the Procrustes projection. Its number is the
norm of the gradient at the layer's output over that at its input, averaged over the runs (seeds) in
log space. At 1, where the colours are palest, the layer preserves the norm; above 1 (red) the
gradient vanishes on its way to the input, below 1 (blue) it grows. Colours are logarithmic, and the
same on both maps. A cell with a cross has runs only whose ratio is zero or not finite, as of a
layer whose units all died; an empty one has no run. Below, each run is a small point, and the mean
of each cell a large one, with a bar over the standard deviation in log space. The paper finds the
projected layers near 1 but for very few channels, and the others away from it.

With global average pooling behind it, as in the recipe, exact projection gives some 1.0 to 1.2: the
gradient that arrives is constant over each image, and not isotropic.

Options: window=N (--set window=N), recorded iterations that the geometric mean runs over, the last
tenth by default, which is the last epoch of the paper's ten; steps (--steps N), the iteration at
which they end, the last by default; layers (--layers), a regular expression for the names of the
blocks to take, where a run has several: each is a point of its own.

Needs: gradient_norm of several runs (python -m propkit train procrustes-grid -o DIR, then DIR).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from propkit.figures.channel_grid import averaged, cells, channels
from propkit.figures.curves import drawable, log_axis_around_one, note
from propkit.figures.runs import AnyRun, FigureError, RunLike, configured, gather, need
from propkit.figures.snapshots import at_layers
from propkit.figures.style import COLORS, Canvas, Figure, canvas, ink, statistical, styled

_NAMES = ("without projection", "with projection")
_MOST_NUMBERS = 10
"""Rows or columns up to which the cells have numbers."""
_MOST_CELLS = 64
"""Cells up to which each has a place of its own in the lower panel."""


def prepare(
    runs: Mapping[str, RunLike],
    *,
    steps: Sequence[int] | None = None,
    layers: str | None = None,
    window: int | None = None,
) -> xr.Dataset:
    """The numbers of all runs.

    Args:
        runs: Label -> run. One is projected where its configuration has a ``projection`` (a recipe's
            is ``recipe.projection``) that is not empty.
        steps: The iteration where the mean ends, the nearest recorded one being taken; None: the last.
        layers: Regular expression for the whole names of the blocks to take; None: all.
        window: Recorded iterations that the geometric mean runs over; None: a tenth of all.

    Returns:
        Along ``sample``, one for each block of each run: ``ratio``, see
        `propkit.derived.gradient_norm_ratio`, NaN where it is never finite and positive; ``c_in``,
        ``c_out``, ``projected`` and ``run``. Along (grid, row, column), the distinct ones of
        these: see `propkit.figures.channel_grid.cells`.

    Raises:
        FigureError: A run has no ``gradient_norm``, no row of it, or no shapes of its blocks; `steps`,
            `layers` or `window` select nothing.
    """
    if window is not None and (not isinstance(window, int) or window < 1):
        raise FigureError(
            f"procrustes_grid: window={window!r}: expected a number of iterations >= 1"
        )
    if steps is not None and len(steps) != 1:
        raise FigureError(
            "procrustes_grid: steps is empty; name one iteration, or leave it out"
            if not len(steps)
            else f"procrustes_grid shows one iteration, found steps={list(steps)}"
        )
    samples: list[tuple[float, int, int, bool, str]] = []
    for label, run in runs.items():
        dataset = at_layers(
            need(run, "gradient_norm", "procrustes_grid"), layers, "procrustes_grid"
        )
        ratios = averaged(dataset, None if steps is None else steps[0], window)
        projected = bool(configured(run, "projection"))
        for ratio, ends in zip(ratios, channels(dataset, label), strict=True):
            samples.append((float(ratio), *ends, projected, label))
    found, c_in, c_out, which, names = map(np.array, zip(*samples, strict=True))
    flat = xr.Dataset(
        {"ratio": ("sample", found)},
        {
            "c_in": ("sample", c_in),
            "c_out": ("sample", c_out),
            "projected": ("sample", which),
            "run": ("sample", names),
        },
    )
    return flat.merge(cells(flat))


def draw(
    dataset: xr.Dataset,
    *,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
    into: Canvas | None = None,
) -> Figure:
    """The ink: a heat map without and one with projection, the runs and their spread below.

    Args:
        dataset: What `prepare` returned.
        size: Width and height in inches; None: as much as the grid needs.
        dpi: Pixels per inch on screen.
        into: Part of a figure to draw on, in place of a new one.
    """
    grids = dataset.sizes["grid"]
    with styled():
        figure = canvas(size or (max(4.2 * grids + 1.0, 6.4), 6.6), dpi, into)
        grid = figure.add_gridspec(2, grids, height_ratios=(3.2, 2))
        reach = _reach(dataset["mean"].values)
        maps = [figure.add_subplot(grid[0, i]) for i in range(grids)]
        for i, ax in enumerate(maps):
            _map(ax, dataset.isel(grid=i), reach, first=i == 0)
            ax.set_title(_NAMES[int(dataset["grid"].values[i])])
        bar = figure.colorbar(maps[0].collections[0], ax=maps, pad=0.02)
        bar.set_label("gradient norm,\nratio of output to input")
        ticks = _ticks(reach)
        bar.set_ticks(ticks.tolist(), labels=[f"{2.0**t:.3g}" for t in ticks])
        _spread(figure.add_subplot(grid[1, :]), dataset)
    return figure


def _reach(means: np.ndarray) -> float:
    """Where the colours end, above 1; below they end at its inverse."""
    shown = np.abs(np.log2(drawable(means, log=True)))
    shown = shown[np.isfinite(shown)]
    return float(2.0 ** np.clip(shown.max() if shown.size else 1.0, 0.5, 20.0))


def _ticks(reach: float) -> np.ndarray:
    """Powers of two, as exponents, between the ends of the colours; 1 is one of them."""
    end = float(np.log2(reach))
    apart = max(np.ceil(end / 3), 1.0) if end >= 1 else 0.5
    half = np.arange(0.0, end + 1e-9, apart)
    return np.unique(np.concatenate([-half, half]))


def _map(ax: Axes, cells: xr.Dataset, reach: float, first: bool) -> None:
    mean = drawable(cells["mean"], log=True)
    rows, columns = cells["row"].values, cells["column"].values
    numbers = max(mean.shape) <= _MOST_NUMBERS
    statistical().heatmap(
        np.log2(mean),
        vmin=-np.log2(reach),
        vmax=np.log2(reach),
        cmap="RdBu_r",
        annot=np.vectorize("{:.2g}".format)(mean) if numbers else None,
        fmt="",
        annot_kws={"fontsize": "small"},
        cbar=False,
        square=False,
        linewidths=0.8 if numbers else 0.0,
        linecolor=ink("ground"),
        xticklabels=columns if numbers else _some(columns),
        yticklabels=(rows if numbers else _some(rows)) if first else False,
        rasterized=not numbers,
        ax=ax,
    )
    ax.collections[0].set_gid("grid")
    ax.grid(visible=False)
    ax.tick_params(axis="y", labelrotation=0, length=0)
    ax.tick_params(axis="x", labelrotation=0, length=0)
    ax.set_xlabel(r"channels at the output, $c_{out}$")
    if first:
        ax.set_ylabel(r"channels at the input, $c_{in}$")
    dead = np.argwhere((cells["failed"].values > 0) & ~np.isfinite(mean))
    if len(dead):
        ax.plot(dead[:, 1] + 0.5, dead[:, 0] + 0.5, "x", color=ink("axis"), gid="failed")


def _some(channels: np.ndarray) -> list[str]:
    """Labels for some eight of many channels."""
    every = -(-len(channels) // 8)
    return [str(c) if i % every == 0 else "" for i, c in enumerate(channels)]


def _spread(ax: Axes, dataset: xr.Dataset) -> None:
    """Points of runs, and a mean with a bar, for each cell."""
    pairs = np.unique(np.stack([dataset["c_in"].values, dataset["c_out"].values], 1), axis=0)
    place = {tuple(pair): i for i, pair in enumerate(pairs.tolist())}
    ratio = drawable(dataset["ratio"], log=True)
    log_axis_around_one(ax, [ratio])
    variants = dataset["grid"].values
    for i, with_ in enumerate(map(bool, variants)):
        shift = (i - (len(variants) - 1) / 2) * 0.36
        mine = (dataset["projected"].values == with_) & np.isfinite(ratio)
        ends = zip(dataset["c_in"].values[mine], dataset["c_out"].values[mine], strict=True)
        x = np.array([place[int(a), int(b)] for a, b in ends], dtype=float) + shift
        look: dict[str, Any] = {"color": _color(with_)}
        statistical().scatterplot(
            x=x, y=ratio[mine], s=9, alpha=0.6, linewidth=0, legend=False, ax=ax, **look
        )
        cells = dataset.isel(grid=i).stack(cell=("row", "column"))
        cells = cells.isel(cell=cells["count"].values > 0)
        at = np.array([place[pair] for pair in cells["cell"].values.tolist()], dtype=float) + shift
        mean, factor = cells["mean"].values, np.exp(np.nan_to_num(cells["spread"].values))
        ax.errorbar(
            at,
            drawable(mean, log=True),
            [mean - mean / factor, mean * factor - mean],
            fmt="os"[with_],
            ms=4.5,
            elinewidth=1.1,
            capsize=2.0,
            label=_NAMES[with_],
            mfc=ink("ground") if not with_ else None,
            **look,
        )
    if len(pairs) <= _MOST_CELLS:
        labels = [f"{a}→{b}" for a, b in pairs.tolist()]
        ax.set_xticks(range(len(pairs)), labels, rotation=90 if len(pairs) > 12 else 0)
    if not np.isfinite(ratio).any():
        note(ax, "no value on a log axis")
    ax.set_xlim(-0.7, len(pairs) - 0.3)
    ax.set_xlabel(r"$c_{in}$→$c_{out}$" if len(pairs) <= _MOST_CELLS else "layers, by channels")
    ax.set_ylabel("ratio of output\nto input")
    ax.set_title(_counted(dataset), fontsize="small")
    handles, texts = ax.get_legend_handles_labels()
    if handles:
        ax.legend(handles, texts, fontsize="small")


def _color(projected: bool) -> str:
    return ink("axis") if not projected else COLORS[0] if ink("ground") == "white" else "#56B4E9"


def _counted(dataset: xr.Dataset) -> str:
    count = dataset["count"].values + dataset["failed"].values
    some = count[count > 0]
    low, high = int(some.min()), int(some.max())
    return f"{low if low == high else f'{low} to {high}'} run{'s' if high > 1 else ''} per cell"


def procrustes_grid(
    run: AnyRun | Sequence[AnyRun],
    *more: AnyRun,
    labels: Sequence[str] | str | None = None,
    steps: Sequence[int] | None = None,
    layers: str | None = None,
    window: int | None = None,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> Figure:
    """Ratio of gradient norms over a grid of channels, with and without projection (arXiv:1805.07477, Fig. 2).

    Args:
        run: A run, its path, a folder or pattern of runs, a study, or several of these.
        more: More runs.
        labels: One label per run; else the runs' own.
        steps: The iteration where the mean ends; None: the last.
        layers: Regular expression for the whole names of the blocks to take.
        window: Recorded iterations that the geometric mean runs over; None: a tenth of all.
        size: Width and height in inches; None: as much as the grid needs.
        dpi: Pixels per inch on screen.

    Raises:
        FigureError: See `prepare`.
    """
    runs = gather((run, *more), labels)
    return draw(prepare(runs, steps=steps, layers=layers, window=window), size=size, dpi=dpi)
