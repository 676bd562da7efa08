"""Learning curves of the schemes compared: training and test error (arXiv:1703.01827, Fig. 5).

How to read this: each colour is one run, and so is each marker; its dashed line is the error on the
training images, as the network was while it learned from them, its solid line the error on the test
images, both in per cent and on one axis. Steps downwards are divisions of the learning rate. Where
a solid line is above its dashed one, the distance is what does not generalise; where both stay
high, the scheme does not train the network at all. Each point of a training curve is a mean since
the point before. A cross marks where values that are not finite begin for good.

The paper's text gives no numbers of this figure; axes and lines are those of He et al.
(arXiv:1512.03385, Fig. 6), whose protocol it follows. learning_curves shows losses and all else.

Needs: log with accuracy and test_accuracy, which is not a probe: recorder.log(accuracy=a,
test_accuracy=b) in the training loop records them, and so do the recipes of table2.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.lines import Line2D

from propkit.figures.curves import curve, drawable, legend, note, whole_axis
from propkit.figures.errors import error_curves
from propkit.figures.line_kinds import HANDLES, kind_handle, kind_look
from propkit.figures.runs import AnyRun, RunLike, gather
from propkit.figures.style import Canvas, Figure, canvas, line_look, styled


def prepare(run: RunLike) -> xr.Dataset:
    """The numbers of one run.

    Args:
        run: The run.

    Returns:
        See `propkit.figures.errors.error_curves`: ``train`` (step,), ``test`` (evaluation,).

    Raises:
        FigureError: The run has no ``log`` or no row of it, or neither accuracies nor errors in it.
    """
    return error_curves(run, "fig5")


def draw(
    datasets: Mapping[str, xr.Dataset],
    *,
    size: tuple[float, float] = (6.4, 4.4),
    dpi: float | None = None,
    into: Canvas | None = None,
) -> Figure:
    """The ink: a dashed and a solid line per dataset.

    Args:
        datasets: Label -> what `prepare` returned.
        size: Width and height in inches.
        dpi: Pixels per inch on screen.
        into: Part of a figure to draw on, in place of a new one.
    """
    with styled():
        figure = canvas(size, dpi, into)
        ax = figure.subplots()
        lines, trained, tested = [], [], []
        for i, (label, d) in enumerate(datasets.items()):
            look = line_look(i) | {"linestyle": "solid"}
            thin = look | {"marker": "", "lone": look["marker"]} | kind_look(1)
            train = curve(ax, d["step"], d["train"], thin, label, noisy=False)
            train.set(linewidth=1.0, gid="train")
            test = curve(ax, d["evaluation"], d["test"], look, label, noisy=False)
            test.set(gid="test")
            lines.append(Line2D([], [], **look, markersize=4, label=test.get_label()))
            trained.append(train)
            tested.append(test)
        shown = [drawable(d[name]) for d in datasets.values() for name in ("train", "test")]
        if not any(np.isfinite(values).any() for values in shown):
            note(ax, "no finite value")
        whole_axis(ax, (d[x] for d in datasets.values() for x in ("step", "evaluation")))
        lines.append(kind_handle("training", trained, 1, linewidth=1.0))
        lines.append(kind_handle("test", tested, 0))
        ax.set_xlabel("iteration")
        ax.set_ylabel("error (%)")
        legend(ax, lines, **HANDLES)
    return figure


def fig5(
    run: AnyRun | Sequence[AnyRun],
    *more: AnyRun,
    labels: Sequence[str] | str | None = None,
    size: tuple[float, float] = (6.4, 4.4),
    dpi: float | None = None,
) -> Figure:
    """Training and test error against iteration, dashed and solid (arXiv:1703.01827, Fig. 5).

    Args:
        run: A run, its path, or several of them.
        more: More runs to compare.
        labels: One label per run; else the runs' own.
        size: Width and height in inches.
        dpi: Pixels per inch on screen.

    Raises:
        FigureError: A run has no ``log`` or no row of it, or neither accuracies nor errors in it.
    """
    runs = gather((run, *more), labels)
    return draw({k: prepare(r) for k, r in runs.items()}, size=size, dpi=dpi)
