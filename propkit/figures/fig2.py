"""Average cosine filter correlation during training (arXiv:1703.01827, Fig. 2).

How to read this: each line is one run. It shows how alike the filters of the network's
convolutional layers are: the cosine of the angle between two filters of one layer, averaged with
its sign over all pairs i < j of all layers (Eq. 8). At 0 filters are orthogonal on average, at 1
they are all the same. Orthonormally initialised filters start at 0; training draws filters
together, and the paper finds about 0.006 with orthonormality regularisation and some 2.5 times as
much with weight decay. The average may be slightly negative, and the regularised run may be the
higher one in the very first iterations. Long runs are drawn as a pale trace of all values and a
line through their medians. A gap is a value that is not finite, and a cross marks where such values
begin for good.

Needs: filter_correlation. Options: layers (--layers), a regular expression for the names of
the layers to take; include_linear=True (--set include_linear=True in a shell) pools linear layers
too.
"""

from collections.abc import Mapping, Sequence

import xarray as xr

from propkit import derived
from propkit.figures.curves import curve, legend, note, whole_axis
from propkit.figures.runs import AnyRun, RunLike, gather, need
from propkit.figures.snapshots import at_layers
from propkit.figures.style import Canvas, Figure, canvas, ink, line_look, styled


def prepare(run: RunLike, *, layers: str | None = None, include_linear: bool = False) -> xr.Dataset:
    """The numbers of one run.

    Args:
        run: The run.
        layers: Regular expression for the whole names of the layers to take, linear ones too; None: all.
        include_linear: Pool linear layers too. A network without convolutions is always pooled so.

    Returns:
        ``correlation`` (step,), see `propkit.derived.pooled_correlation`.

    Raises:
        FigureError: The run has no ``filter_correlation``, or no row of it; `layers` selects nothing.
    """
    dataset = at_layers(need(run, "filter_correlation", "fig2"), layers, "fig2")
    pooled = derived.pooled_correlation(dataset, include_linear or layers is not None)
    return xr.Dataset({"correlation": pooled}).compute()


def draw(
    datasets: Mapping[str, xr.Dataset],
    *,
    size: tuple[float, float] = (6.4, 4.0),
    dpi: float | None = None,
    into: Canvas | None = None,
) -> Figure:
    """The ink: one line per dataset.

    Args:
        datasets: Label -> what `prepare` returned.
        size: Width and height in inches.
        dpi: Pixels per inch on screen.
        into: Part of a figure to draw on, in place of a new one.
    """
    with styled():
        figure = canvas(size, dpi, into)
        ax = figure.subplots()
        ax.axhline(0.0, color=ink("axis"), linewidth=0.9, zorder=1.5, gid="zero")
        lines = [
            curve(ax, d["step"], d["correlation"], line_look(i), label)
            for i, (label, d) in enumerate(datasets.items())
        ]
        if not any(d["correlation"].notnull().any() for d in datasets.values()):
            note(ax, "no finite value")
        whole_axis(ax, (d["step"] for d in datasets.values()))
        ax.set_xlabel("iteration")
        ax.set_ylabel("average cosine correlation")
        ax.set_title("Filter correlation")
        legend(ax, lines)
    return figure


def fig2(
    run: AnyRun | Sequence[AnyRun],
    *more: AnyRun,
    labels: Sequence[str] | str | None = None,
    layers: str | None = None,
    include_linear: bool = False,
    size: tuple[float, float] = (6.4, 4.0),
    dpi: float | None = None,
) -> Figure:
    """Average cosine filter correlation against iteration (arXiv:1703.01827, Fig. 2).

    Args:
        run: A run, its path, or several of them.
        more: More runs to compare.
        labels: One label per run; else the runs' own.
        layers: Regular expression for the whole names of the layers to take; None: all.
        include_linear: Count filters of linear layers too; the paper's value counts convolutions.
        size: Width and height in inches.
        dpi: Pixels per inch on screen.

    Raises:
        FigureError: A run has no ``filter_correlation``, or no row of it; `layers` selects nothing.
    """
    runs = gather((run, *more), labels)
    datasets = {
        k: prepare(r, layers=layers, include_linear=include_linear) for k, r in runs.items()
    }
    return draw(datasets, size=size, dpi=dpi)
