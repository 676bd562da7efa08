"""Density of the singular values of layers as operators on their maps, during training.

How to read this: each panel is one layer of one run, each line one moment of training: the share of
the layer's singular values per unit of sigma, so that the area under each line is 1. The dotted
line stands at 1: a layer whose whole spectrum lies there is an isometry, as after orthonormal
initialisation. Weight stands for a spectrum that spreads: values near 0 are directions that the
layer loses, a tail on the right ones that it amplifies, and the largest is its spectral norm. Small
ticks at the bottom mark the largest value of each line. With log=True (--set log=True in a shell)
the densities are on a log axis, which shows the tails.

Where the probe singular_values was not recorded, singular_value_quantiles serves; between two
quantiles the density is taken as constant.

Options: steps (--steps), the iterations; layers (--layers), a regular expression for the names of
the layers to take; by default up to six of them, from the first to the last.

Needs: singular_values or singular_value_quantiles.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from propkit.figures.curves import legend, legend_below, literal, log_axis, note
from propkit.figures.runs import AnyRun, FigureError, RunLike, gather, need
from propkit.figures.snapshots import at_steps, matching
from propkit.figures.style import Canvas, Figure, canvas, ink, step_looks, styled

Floats = npt.NDArray[np.float64]

_BINS = 40
"""Bins of the widest spectra; fewer values have fewer bins, by Rice's rule."""
_QUANTILE_BINS = 20
_MOST = 6
_ALL = 24


def prepare(
    run: RunLike, *, steps: Sequence[int] | None = None, layers: str | None = None
) -> xr.Dataset:
    """The numbers of one run.

    Args:
        run: The run.
        steps: Iterations to show, see `propkit.figures.snapshots.snapshot_steps`.
        layers: Regular expression for the whole names of the layers to take; None: six of all.

    Returns:
        ``density`` (step, site, bin), per unit of sigma, NaN where a spectrum is not finite; ``edge`` (site, end) of
        the bins, from 0 to the layer's largest value, NaN beyond its last bin; ``largest`` (step, site).

    Raises:
        FigureError: The run has neither group, or no row of it; `steps` or `layers` select nothing, or `layers` more
            than 24 layers.
    """
    whole = "singular_values" in run or "singular_value_quantiles" not in run
    group = "singular_values" if whole else "singular_value_quantiles"
    dataset = need(run, group, "spectra")
    chosen = _chosen(dataset, layers)
    dataset = at_steps(dataset, steps, "spectra")
    if whole:
        ends = np.cumsum(dataset["row_size"].values)
        starts = ends - dataset["row_size"].values
        values = dataset["value"]
        spectra = [values.isel(singular_value=slice(starts[i], ends[i])).values for i in chosen]
    else:
        spectra = [dataset["quantiles"].isel(site=i).values for i in chosen]
    shares = None if whole else dataset["quantile"].values
    found = [_densities(np.asarray(s, dtype=np.float64), shares) for s in spectra]
    names = dataset["site"].values[chosen]
    return xr.Dataset(
        {
            "density": (("step", "site", "bin"), np.stack([d for d, _, _ in found], axis=1)),
            "edge": (("site", "end"), np.stack([edges for _, edges, _ in found])),
            "largest": (("step", "site"), np.stack([top for _, _, top in found], axis=1)),
        },
        {"step": dataset["step"].values, "site": names},
    )


def _chosen(dataset: xr.Dataset, layers: str | None) -> list[int]:
    if layers is None:
        count = dataset.sizes["site"]
        spread = np.linspace(0, count - 1, min(count, _MOST)).round()
        return [int(i) for i in np.unique(spread)]
    found = matching(dataset, layers, "spectra")
    if len(found) > _ALL:
        raise FigureError(
            f"spectra: layers={layers!r} matches {len(found)} layers, and a page holds {_ALL}; "
            "narrow it down"
        )
    return found


def _densities(values: Floats, shares: Floats | None) -> tuple[Floats, Floats, Floats]:
    """Of one layer, (step, values): densities (step, bin), edges (bin + 1,), largest values (step,)."""
    known = np.isfinite(values).all(1) if values.shape[1] else np.zeros(len(values), dtype=bool)
    top = np.full(len(values), np.nan)
    top[known] = values[known].max(1)
    end = float(top[known].max()) if known.any() else 0.0
    rice = math.ceil(2 * values.shape[1] ** (1 / 3))
    bins = min(max(rice, 3), _BINS) if shares is None else _QUANTILE_BINS
    edges = np.linspace(0.0, 1.001 * end if end > 0 else 1.0, bins + 1)
    density = np.full((len(values), _BINS), np.nan)
    for row in np.flatnonzero(known):
        if shares is None:
            counts = np.histogram(values[row], edges)[0] / values.shape[1]
        else:
            counts = np.diff(_shares_below(edges, values[row], shares))
        density[row, :bins] = counts / np.diff(edges)
    return density, np.pad(edges, (0, _BINS - bins), constant_values=np.nan), top


def _shares_below(edges: Floats, quantiles: Floats, shares: Floats) -> Floats:
    """Cumulated shares; quantiles that coincide are a jump, at which all of it lies below."""
    distinct, first = np.unique(quantiles[::-1], return_index=True)
    below = np.interp(edges, distinct, shares[::-1][first], left=0.0, right=1.0)
    below[edges < quantiles[0]] = 0.0
    below[0] = 0.0  # what is 0 counts into the first bin
    return np.asarray(below)


def draw(
    datasets: Mapping[str, xr.Dataset],
    *,
    log: bool = False,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
    into: Canvas | None = None,
) -> Figure:
    """The ink: a panel per layer; of several runs a row of panels each.

    Args:
        datasets: Label -> what `prepare` returned.
        log: Whether densities are on a log axis.
        size: Width and height in inches; None: as many panels need.
        dpi: Pixels per inch on screen.
        into: Part of a figure to draw on, in place of a new one.
    """
    most = max(d.sizes["site"] for d in datasets.values())
    columns = most if len(datasets) > 1 and most <= _MOST else min(most, 3)
    rows = [-(-d.sizes["site"] // columns) for d in datasets.values()]
    same = len({tuple(d["step"].values) for d in datasets.values()}) == 1
    with styled():
        inches = size or (0.8 + 2.7 * max(columns, 1.6), 0.8 + 2.2 * sum(rows))
        figure = canvas(inches, dpi, into)
        axes = figure.subplots(sum(rows), columns, squeeze=False)
        row = 0
        for (label, dataset), height in zip(datasets.items(), rows, strict=True):
            own = axes[row : row + height].ravel()
            for empty in own[dataset.sizes["site"] :]:
                empty.remove()
            for i, ax in enumerate(own[: dataset.sizes["site"]]):
                lines = _panel(ax, dataset.isel(site=i), log)
                name = str(dataset["site"].values[i])
                literal(
                    ax.set_title(
                        f"{label}: {name}" if len(datasets) > 1 else name, fontsize="small"
                    )
                )
                if not same and i == 0:
                    legend(ax, lines)
            row += height
        for ax in figure.axes[-columns:]:
            ax.set_xlabel(r"singular value $\sigma$")
        figure.supylabel("density", fontsize="medium")
        if same:
            legend_below(figure, lines)
    return figure


def _panel(ax: Axes, dataset: xr.Dataset, log: bool) -> list[Line2D]:
    edges, tops = dataset["edge"].values, dataset["largest"].values
    edges = edges[np.isfinite(edges)]
    lines = []
    for i, look in enumerate(step_looks(dataset.sizes["step"])):
        style = {"color": look["color"], "linestyle": look["linestyle"]}
        label = f"iteration {int(dataset['step'].values[i]):,}"
        heights = dataset["density"].values[i, : len(edges) - 1]
        y = np.where(heights > 0, heights, np.nan) if log else heights
        ends = np.stack([edges[:-1], edges[1:]]).ravel("F")
        (line,) = ax.plot(ends, np.repeat(y, 2), **style, linewidth=1.3, label=label, gid="density")
        lines.append(line)
        mark: dict[str, Any] = {
            "marker": "|",
            "markersize": 8,
            "transform": ax.get_xaxis_transform(),
        }
        ax.plot(tops[i], 0.02, color=look["color"], **mark, gid="largest")
    if log:
        log_axis(ax, [dataset["density"].values])
    else:
        ax.set_ylim(bottom=0)
    if not np.isfinite(dataset["density"].values).any():
        note(ax, "no finite value")
    if edges[-1] > 0.5:
        ax.axvline(1.0, color=ink("axis"), linestyle=":", linewidth=0.9, zorder=1.5, gid="one")
    return lines


def spectra(
    run: AnyRun | Sequence[AnyRun],
    *more: AnyRun,
    labels: Sequence[str] | str | None = None,
    steps: Sequence[int] | None = None,
    layers: str | None = None,
    log: bool = False,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> Figure:
    """Densities of layers' singular values at a few iterations (operators as in arXiv:1805.10408).

    Args:
        run: A run, its path, or several of them.
        more: More runs to compare.
        labels: One label per run; else the runs' own.
        steps: Iterations to show; None: up to four of those recorded.
        layers: Regular expression for the whole names of the layers to take; None: up to six of all.
        log: Whether densities are on a log axis.
        size: Width and height in inches; None: as many panels need.
        dpi: Pixels per inch on screen.

    Raises:
        FigureError: A run has neither ``singular_values`` nor ``singular_value_quantiles``, or no row of it; `steps` or
            `layers` select nothing, or `layers` too many.
    """
    runs = gather((run, *more), labels)
    datasets = {k: prepare(r, steps=steps, layers=layers) for k, r in runs.items()}
    return draw(datasets, log=log, size=size, dpi=dpi)
