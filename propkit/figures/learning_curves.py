"""Training curves that the training loop logged: loss, accuracy, ... (as in arXiv:1703.01827, Fig. 5).

How to read this: one panel per quantity, one colour per run. Quantities that differ by a prefix
only (loss and test_loss) share a panel: the one without prefix, or of training, is solid with
filled markers, the others are dashed or dotted with hollow ones. Long curves are drawn as a
pale trace of all values and a line through their medians. A gap is a value that is not finite,
and a cross marks where such values begin for good: there the training diverged. A triangle at
the top is a lone value far beyond all others, which would press the curves into one line; how
far these reach is written above the panel.

Options: names (--set 'names=["loss"]'), the quantities to show; log=True (--set log=True) for
logarithmic y axes, which hold all values.

Needs: log, which is not a probe: recorder.log(loss=loss, accuracy=accuracy) in the training loop
records it, and so do the recipes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from propkit.figures.beyond import limit
from propkit.figures.curves import (
    columns_below,
    curve,
    drawable,
    legend_below,
    literal,
    log_axis,
    note,
    whole_axis,
)
from propkit.figures.line_kinds import HANDLES, kind_handle, kind_look
from propkit.figures.runs import AnyRun, FigureError, RunLike, gather, need
from propkit.figures.style import Canvas, Figure, canvas, ink, line_look, styled

_PREFIXES = ("train", "test", "val", "valid", "validation", "eval", "dev")
_MOST = 6


def prepare(run: RunLike, *, names: Sequence[str] | str | None = None) -> xr.Dataset:
    """The numbers of one run.

    Args:
        run: The run.
        names: Quantities to show; None: all that were logged, up to six panels of them.

    Returns:
        The variables of the group ``log`` (step,).

    Raises:
        FigureError: The run has no ``log``, no row of it, or no quantity of these names.
    """
    dataset = need(run, "log", "learning_curves")
    there = [str(name) for name in dataset.data_vars]
    wanted = [names] if isinstance(names, str) else there if names is None else list(names)
    missing = [name for name in wanted if name not in there]
    if missing or not wanted:
        raise FigureError(
            f"learning_curves: {missing[0] if missing else 'nothing'!r} was not logged; there are: "
            f"{', '.join(there) or 'none'}. recorder.log(NAME=value) logs more"
        )
    return dataset[wanted].compute()


def split(name: str) -> tuple[str, str]:
    """Prefix and quantity of a logged name.

    >>> split("test_loss"), split("loss"), split("learning_rate"), split("val/accuracy")
    (('test', 'loss'), ('', 'loss'), ('', 'learning_rate'), ('val', 'accuracy'))
    """
    for separator in "_/":
        prefix, found, quantity = name.partition(separator)
        if found and quantity and prefix in _PREFIXES:
            return prefix, quantity
    return "", name


def draw(
    datasets: Mapping[str, xr.Dataset],
    *,
    log: bool = False,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
    into: Canvas | None = None,
    named: bool = True,
) -> Figure:
    """The ink: one panel per quantity.

    Args:
        datasets: Label -> what `prepare` returned.
        log: Whether the y axes are logarithmic.
        size: Width and height in inches; None: as many panels need.
        dpi: Pixels per inch on screen.
        into: Part of a figure to draw on, in place of a new one.
        named: Whether the legend names the runs, not only what is training and what test.
    """
    quantities: dict[str, list[str]] = {}
    for name in (str(name) for dataset in datasets.values() for name in dataset.data_vars):
        prefix, quantity = split(name)
        quantities[quantity] = list(dict.fromkeys([*quantities.get(quantity, []), prefix]))
    shown = list(quantities)[:_MOST]
    kinds = _kinds([quantities[quantity] for quantity in shown])
    columns = 1 if len(shown) == 1 else 2 if len(shown) < 5 else 3
    rows = -(-len(shown) // columns)
    width = size[0] if size else 1.4 + 4.4 * columns
    names = [*(datasets if named else ()), *kinds.values()]
    below = 0.2 * -(-len(names) // columns_below(names, width))
    with styled():
        figure = canvas(size or (width, 0.6 + 3.2 * rows + below), dpi, into)
        axes = figure.subplots(rows, columns, squeeze=False)
        for empty in axes.flat[len(shown) :]:
            empty.remove()
        lines: dict[str, list[Line2D]] = {kind: [] for kind in kinds.values()}
        for ax, quantity in zip(axes.flat, shown, strict=False):
            _panel(ax, datasets, quantity, kinds, log, lines)
            ax.set_xlabel("iteration")
            ax.set_ylabel(quantity.replace("_", " "))
        handles = []
        for i, label in enumerate(datasets if named else ()):
            handles.append(Line2D([], [], **_look(i, 0, len(lines)), markersize=4, label=label))
        if len(lines) > 1:
            handles += [kind_handle(kind, lines[kind], i) for i, kind in enumerate(lines)]
        if handles:  # below the panels, where it hides nothing
            legend_below(figure, handles, **HANDLES).set_gid("runs" if named else "kinds")
    return figure


def _kinds(prefixes: Sequence[Sequence[str]]) -> dict[str, str]:
    """Prefix -> what it stands for, training first, of those of each quantity."""
    every = dict.fromkeys(prefix for several in prefixes for prefix in several)
    both = any({"", "train"} <= set(several) for several in prefixes)
    training = {"": "no prefix" if both else "training", "train": "train" if both else "training"}
    ordered = sorted(every, key=lambda prefix: prefix not in training)
    return {prefix: training.get(prefix, prefix) for prefix in ordered}


def _look(run: int, kind: int, kinds: int) -> dict[str, Any]:
    """Colour and marker of a run, and the line style of a kind; of the run too if there is one kind only."""
    return line_look(run) | (kind_look(kind) if kinds > 1 else {})


def _panel(
    ax: Axes,
    datasets: Mapping[str, xr.Dataset],
    quantity: str,
    kinds: Mapping[str, str],
    log: bool,
    lines: Mapping[str, list[Line2D]],
) -> None:
    """Draw a quantity; its lines are added to those of their kind."""
    colors, curves, lost = [], [], []
    for i, (label, dataset) in enumerate(datasets.items()):
        for name in map(str, dataset.data_vars):
            prefix, what = split(name)
            if what != quantity:
                continue
            kind = kinds[prefix]
            look = _look(i, list(lines).index(kind), len(lines))
            known = dataset.isel(step=np.flatnonzero(_recorded(dataset[name])))
            text = f"{label}, {kind}" if len(lines) > 1 else label
            line = curve(ax, known["step"], known[name], look, text, log=log)
            if kind != next(iter(lines)):  # the few points of a test, over the many of trainings
                line.set_zorder(3.5)
            lines[kind].append(line)
            colors.append(look["color"])
            curves.append((known["step"].values, known[name].values))
            if not np.isfinite(drawable(known[name], log)).any():
                lost.append(text)
    if log:
        log_axis(ax, [y for _, y in curves])
    else:
        limit(ax, curves, colors)
    what = "no value on a log axis" if log else "no finite value"
    if len(lost) == len(curves):
        note(ax, what)
    elif lost:
        them = ", ".join(lost) if len(lost) < 3 else f"{len(lost)} curves"
        literal(ax.set_title(f"{what}: {them}", fontsize="small", color=ink("text")))
    whole_axis(ax, (d["step"] for d in datasets.values()))


def _recorded(values: xr.DataArray) -> np.ndarray:
    """Which rows of a quantity were logged; rows of NaN between numbers belong to rarer quantities.

    NaN after the last number stays, for that is how a training that diverges ends, unless the
    quantity is a rare one.
    """
    finite = ~np.isnan(values.values)
    if not finite.any():
        return np.ones(len(finite), dtype=bool)
    last = int(np.flatnonzero(finite)[-1])
    rare = finite[: last + 1].mean() <= 0.5
    return finite if rare else np.ones(len(finite), dtype=bool)


def learning_curves(
    run: AnyRun | Sequence[AnyRun],
    *more: AnyRun,
    labels: Sequence[str] | str | None = None,
    names: Sequence[str] | str | None = None,
    log: bool = False,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> Figure:
    """Logged quantities against iteration, a panel each (arXiv:1703.01827, Fig. 5).

    Args:
        run: A run, its path, or several of them.
        more: More runs to compare.
        labels: One label per run; else the runs' own.
        names: Quantities to show; None: all that were logged, up to six panels of them.
        log: Whether the y axes are logarithmic.
        size: Width and height in inches; None: as many panels need.
        dpi: Pixels per inch on screen.

    Raises:
        FigureError: A run has no ``log``, no row of it, or no quantity of these names.
    """
    runs = gather((run, *more), labels)
    return draw({k: prepare(r, names=names) for k, r in runs.items()}, log=log, size=size, dpi=dpi)
