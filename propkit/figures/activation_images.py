"""Activations at two depths, as images (Oyedotun, Shabayek, Aouada & Ottersten, ICPR 2020).

How to read this: each row of panels is one run at one iteration, by default the last that was
recorded, each panel one layer: one in the middle of the network and its last nonlinearity, as the
authors' layers 50 and 99 of 100. Of a fully connected layer the picture has a row for each sample
and a column for each unit: where all rows look the same, as vertical stripes do, the layer tells
samples apart no longer, and the matrix is nearly singular; conditioning has the numbers. Of a
convolution it shows the maps of its first channels for one sample, side by side. Light is large;
colours are scaled for each panel, and the numbers beside its bar say how large. A pixel of the
ground's colour is a value that is not finite.

Options: steps (--steps), the iterations; layers (--layers), a regular expression for the names of
the layers to take, up to 6 of which are shown.

Needs: activation_maps, which is recorded when named: probes=[..., "activation_maps"].
"""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from propkit.figures.curves import drawable, literal, note
from propkit.figures.pictures import bare, folded, tiled
from propkit.figures.runs import AnyRun, FigureError, RunLike, gather, need
from propkit.figures.snapshots import at_steps, matching, nonlinear
from propkit.figures.style import Canvas, Figure, canvas, ink, styled

_MOST = 6
_ACROSS = 4
"""Maps side by side."""


def prepare(
    run: RunLike, *, steps: Sequence[int] | None = None, layers: str | None = None
) -> dict[str, xr.DataArray]:
    """The numbers of one run.

    Args:
        run: The run.
        steps: Iterations to show, the nearest recorded ones being taken; None: the last.
        layers: Regular expression for the whole names of the layers to take; None: the one in the
            middle of the nonlinearities, and the last of them.

    Returns:
        Layer -> (step, map, row, column): of a layer without maps one, with a row for each sample.

    Raises:
        FigureError: The run has no ``activation_maps``, or no row of it; `steps` or `layers` select
            nothing, or `layers` more than 6 layers.
    """
    dataset = need(run, "activation_maps", "activation_images")
    names = dataset["site"].values
    if layers is None:
        found = nonlinear(dataset[["maps"]])["site"].values
        wanted = list(dict.fromkeys([found[(len(found) - 1) // 2], found[-1]]))
        chosen = [int(np.flatnonzero(names == name)[0]) for name in wanted]
    else:
        chosen = matching(dataset, layers, "activation_images")
    if len(chosen) > _MOST:
        raise FigureError(
            f"activation_images: layers={layers!r} matches {len(chosen)} layers, and a page holds "
            f"{_MOST}; narrow it down"
        )
    steps = [int(dataset["step"].values[-1])] if steps is None else steps
    dataset = at_steps(dataset, steps, "activation_images")
    sizes = ("maps", "height", "width")
    return {
        str(names[site]): xr.DataArray(
            folded(dataset, site, sizes, "activation_images")[:, 0],
            {"step": dataset["step"].values},
            ("step", "map", "row", "column"),
        )
        for site in chosen
    }


def draw(
    datasets: Mapping[str, Mapping[str, xr.DataArray]],
    *,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
    into: Canvas | None = None,
) -> Figure:
    """The ink: a row of panels per run and iteration, a column per layer.

    Args:
        datasets: Label -> what `prepare` returned.
        size: Width and height in inches; None: as many panels need.
        dpi: Pixels per inch on screen.
        into: Part of a figure to draw on, in place of a new one.
    """
    lines = [
        (label, i, pictures)
        for label, pictures in datasets.items()
        for i in range(next(iter(pictures.values())).sizes["step"])
    ]
    columns = max(len(pictures) for pictures in datasets.values())
    with styled():
        inches = size or (1.0 + 3.6 * max(columns, 1.4), 0.4 + 2.5 * len(lines))
        figure = canvas(inches, dpi, into)
        axes = figure.subplots(len(lines), columns, squeeze=False)
        for row, (label, i, pictures) in zip(axes, lines, strict=True):
            for empty in row[len(pictures) :]:
                empty.remove()
            for ax, (name, array) in zip(row, pictures.items(), strict=False):
                step = int(array["step"].values[i])
                _panel(figure, ax, array.isel(step=i).values)
                text = f"{label}, iteration {step:,}\n{name}" if ax is row[0] else f"\n{name}"
                literal(ax.set_title(text, fontsize="small"))
    return figure


def _panel(figure: Figure, ax: Axes, maps: np.ndarray) -> None:
    matrix = len(maps) == 1
    values = drawable(maps[0] if matrix else tiled(maps, _ACROSS))
    colors = mpl.colormaps["cividis"].with_extremes(bad=ink("ground"))
    bare(ax)
    drawn = ax.imshow(
        np.ma.masked_invalid(values),
        cmap=colors,
        aspect="auto" if matrix else "equal",
        interpolation="nearest",
        gid="activations",
    )
    if matrix:
        ax.set_xlabel("unit", fontsize="small")
        ax.set_ylabel("sample", fontsize="small")
    else:
        ax.set_xlabel(f"{len(maps)} channels, one sample", fontsize="small")
    if np.isfinite(values).any():
        bar = figure.colorbar(drawn, ax=ax, pad=0.02, shrink=0.9)
        ends = sorted({float(np.nanmin(values)) + 0.0, float(np.nanmax(values)) + 0.0})
        bar.set_ticks(ends, labels=[f"{end:.3g}" for end in ends])
        bar.ax.tick_params(labelsize="small")
    else:
        note(ax, "no finite value")


def activation_images(
    run: AnyRun | Sequence[AnyRun],
    *more: AnyRun,
    labels: Sequence[str] | str | None = None,
    steps: Sequence[int] | None = None,
    layers: str | None = None,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> Figure:
    """Activations of a middle and of the last layer as images (Oyedotun et al., ICPR 2020).

    Args:
        run: A run, its path, or several of them.
        more: More runs to compare.
        labels: One label per run; else the runs' own.
        steps: Iterations to show; None: the last.
        layers: Regular expression for the whole names of the layers to take, up to 6.
        size: Width and height in inches; None: as many panels need.
        dpi: Pixels per inch on screen.

    Raises:
        FigureError: A run has no ``activation_maps``, or no row of it; `steps` or `layers` select
            nothing, or `layers` too many.
    """
    runs = gather((run, *more), labels)
    datasets = {k: prepare(r, steps=steps, layers=layers) for k, r in runs.items()}
    return draw(datasets, size=size, dpi=dpi)
