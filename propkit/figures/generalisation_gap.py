"""Training and test error and the gap between them, by depth (arXiv:1805.07477, Sec. 4.2 and Table I).

How to read this: each column is one depth, each colour one kind of network. The upper panel shows
the error on the training images (dashed) and on the test images (solid), in per cent; the lower one
the gap, test minus training error. A network that generalises has a gap near 0; one that learns its
training images by heart has a gap that grows while the dashed line falls. The numbers in the lower
legend are the mean and the largest gap over all evaluations, as in the paper's Table I. Where there
are several runs (seeds) of a kind and depth, lines are their means and bands (not of training errors) reach from
the smallest to the largest. The training error is the mean since the evaluation before, with the weights of the
moment, so that it lags behind while errors fall quickly: gaps are a little too small there, and may
be negative.

Depths that differ by a sixth or less, or by 2, as those of plain20 and procresnet22, share a column.

Runs are of one kind where they have one model and differ in nothing but seed and depth; of those that
differ in more, as in their regulariser, none are averaged. Kinds of one run each bear the labels of the
runs. by (--set by=recipe.model) takes runs for one kind where that setting says the same of them,
whatever else differs.

Needs: log with accuracy and test_accuracy, which is not a probe: recorder.log(accuracy=a,
test_accuracy=b) in the training loop records them, and so does the sweep generalisation-gap.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from propkit.figures.curves import curve, drawable, legend, legend_below, note, whole_axis
from propkit.figures.errors import depth_groups, error_curves
from propkit.figures.kinds import kinds_of
from propkit.figures.line_kinds import HANDLES, kind_handle, kind_look
from propkit.figures.runs import AnyRun, RunLike, configured, gather
from propkit.figures.style import Canvas, Figure, canvas, ink, line_look, styled


def prepare(run: RunLike, *, kind: str = "") -> xr.Dataset:
    """The numbers of one run.

    Args:
        run: The run.
        kind: What it is compared as.

    Returns:
        ``test``, ``train_then`` and ``gap`` (evaluation,), see `propkit.figures.errors.error_curves`;
        attributes ``series`` and ``depth``, which is None where the configuration has no number
        ``depth``.

    Raises:
        FigureError: The run has no ``log`` or no row of it, or neither accuracies nor errors in it.
    """
    curves = error_curves(run, "generalisation_gap")[["test", "train_then", "gap"]]
    depth = configured(run, "depth")
    depth = int(depth) if isinstance(depth, int | float) else None
    return curves.assign_attrs(series=kind, depth=depth)


def pooled(datasets: Sequence[xr.Dataset], name: str) -> xr.Dataset:
    """Mean, smallest and largest value over runs, at each evaluation that one of them has.

    Args:
        datasets: What `prepare` returned for each.
        name: A variable.

    Returns:
        ``mean``, ``low`` and ``high`` (evaluation,), of what is finite; NaN where nothing is.
    """
    steps = np.unique(np.concatenate([d["evaluation"].values for d in datasets]))
    values = np.stack([d[name].reindex(evaluation=steps).values for d in datasets])
    known = np.isfinite(drawable(values))
    count = known.sum(0)
    total = np.where(known, values, 0.0).sum(0)
    low = np.where(known, values, np.inf).min(0)
    high = np.where(known, values, -np.inf).max(0)
    found = {"mean": total / np.maximum(count, 1), "low": low, "high": high}
    return xr.Dataset(
        {k: ("evaluation", np.where(count > 0, v, np.nan)) for k, v in found.items()},
        {"evaluation": steps},
    )


def draw(
    datasets: Mapping[str, xr.Dataset],
    *,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
    into: Canvas | None = None,
) -> Figure:
    """The ink: errors above, gaps below, a column per depth.

    Args:
        datasets: Label -> what `prepare` returned.
        size: Width and height in inches; None: as many panels need.
        dpi: Pixels per inch on screen.
        into: Part of a figure to draw on, in place of a new one.
    """
    columns = depth_groups({k: d.attrs["depth"] for k, d in datasets.items()})
    names = list(dict.fromkeys(d.attrs["series"] for d in datasets.values()))
    with styled():
        figure = canvas(size or (1.6 + 3.6 * max(len(columns), 1.3), 5.8), dpi, into)
        axes = figure.subplots(2, len(columns), sharey="row", squeeze=False)
        trained: list[Line2D] = []
        tested: list[Line2D] = []
        for (top, bottom), (title, labels) in zip(axes.T, columns.items(), strict=True):
            chosen = [datasets[label] for label in labels]
            series = {n: [d for d in chosen if d.attrs["series"] == n] for n in names}
            series = {n: found for n, found in series.items() if found}
            bottom.axhline(0.0, color=ink("axis"), linewidth=0.9, zorder=1.5, gid="zero")
            gaps = []
            for name, found in series.items():
                look = line_look(names.index(name)) | {"linestyle": "solid"}
                dashed = look | {"marker": "", "lone": look["marker"]} | kind_look(1)
                trained.append(_line(top, pooled(found, "train_then"), dashed, name, "train"))
                tested.append(_line(top, pooled(found, "test"), look, name, "test"))
                gap = pooled(found, "gap")
                gaps.append(_line(bottom, gap, look, _summary(name, gap), "gap"))
            legend(bottom, gaps)
            if summary := bottom.get_legend():
                summary.set_loc("lower left")
                summary.set_title("mean / largest gap", {"size": "small"})
                for text in summary.get_texts():
                    text.set_fontsize("small")
            top.set_title(title)
            bottom.set_xlabel("iteration")
            for ax in (top, bottom):
                whole_axis(ax, (d["evaluation"] for d in chosen))
        low, high = axes[1, 0].get_ylim()
        taken = min(0.1 * (len(names) + 1) + 0.06, 0.7)  # by the summaries, of the panel's height
        axes[1, 0].set_ylim(low - taken / (1 - taken) * (high - low), high)
        axes[0, 0].set_ylabel("error (%)")
        axes[1, 0].set_ylabel("gap, test − training\n(percentage points)")
        handles = []
        for i, name in enumerate(names):
            look = line_look(i) | {"linestyle": "solid", "markersize": 4, "label": name}
            handles.append(Line2D([], [], **look))
        handles += [kind_handle("training", trained, 1), kind_handle("test", tested, 0)]
        legend_below(figure, handles, **HANDLES)
        figure.align_ylabels()
    return figure


def _line(ax: Axes, values: xr.Dataset, look: dict[str, Any], label: str, gid: str) -> Line2D:
    x, mean = values["evaluation"], values["mean"]
    if gid != "train" and (values["high"] > values["low"]).any():
        low, high = drawable(values["low"]), drawable(values["high"])
        ax.fill_between(x, low, high, color=look["color"], alpha=0.18, linewidth=0, gid="band")
    line = curve(ax, x, mean, look, label, noisy=False)
    line.set_gid(gid)
    if not np.isfinite(drawable(mean)).any() and gid != "train" and len(ax.lines) <= 2:
        note(ax, "no finite value")
    return line


def _summary(name: str, gap: xr.Dataset) -> str:
    known = drawable(gap["mean"])
    known = known[np.isfinite(known)]
    return f"{name}: {known.mean():.1f} / {known.max():.1f}" if known.size else name


def generalisation_gap(
    run: AnyRun | Sequence[AnyRun],
    *more: AnyRun,
    labels: Sequence[str] | str | None = None,
    by: str | None = None,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> Figure:
    """Errors and the generalisation gap against iteration, a column per depth (arXiv:1805.07477, Table I).

    Args:
        run: A run, its path, a folder or pattern of runs, a study, or several of these.
        more: More runs to compare.
        labels: One label per run; else the runs' own.
        by: Setting that says which runs are of one kind and share a colour, whatever else differs; None: those of
            one model that differ in nothing but seed and depth, see `propkit.figures.kinds.kinds_of`.
        size: Width and height in inches; None: as many panels need.
        dpi: Pixels per inch on screen.

    Raises:
        FigureError: A run has no ``log`` or no row of it, or neither accuracies nor errors in it.
    """
    runs = gather((run, *more), labels)
    kinds = kinds_of(runs, by)
    return draw({k: prepare(r, kind=kinds[k]) for k, r in runs.items()}, size=size, dpi=dpi)
