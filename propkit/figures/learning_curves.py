"""Training curves that the training loop logged: loss, accuracy, ... (as in arXiv:1703.01827, Fig. 5).

How to read this: one panel per quantity, one colour per run. Quantities that differ by a prefix
only (loss and test_loss) share a panel: the one without prefix, or of training, is solid, the
others have line styles of their own. Long curves are drawn as a pale trace of all values and a line
through their medians. A gap is a value that is not finite, and a cross marks where such values
begin for good: there the training diverged. A triangle at the top is a lone value far beyond all
others, which would press the curves into one line; how far these reach is written above the panel.

Options: names (--set 'names=["loss"]'), the quantities to show; log=True (--set log=True) for
logarithmic y axes, which hold all values.

Needs: log, which is not a probe: recorder.log(loss=loss, accuracy=accuracy) in the training loop
records it, and so do the recipes.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from propkit.figures.beyond import limit
from propkit.figures.curves import curve, drawable, legend, log_axis, note, whole_axis
from propkit.figures.runs import AnyRun, FigureError, RunLike, gather, need
from propkit.figures.style import LINES, Canvas, Figure, canvas, line_look, styled

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
) -> Figure:
    """The ink: one panel per quantity.

    Args:
        datasets: Label -> what `prepare` returned.
        log: Whether the y axes are logarithmic.
        size: Width and height in inches; None: as many panels need.
        dpi: Pixels per inch on screen.
        into: Part of a figure to draw on, in place of a new one.
    """
    quantities: dict[str, list[str]] = {}
    for dataset in datasets.values():
        for name in map(str, dataset.data_vars):
            prefixes = quantities.setdefault(split(name)[1], [])
            if split(name)[0] not in prefixes:
                prefixes.append(split(name)[0])
    shown = list(quantities)[:_MOST]
    columns = 1 if len(shown) == 1 else 2 if len(shown) < 5 else 3
    rows = -(-len(shown) // columns)
    with styled():
        figure = canvas(size or (1.4 + 4.4 * columns, 0.6 + 3.2 * rows), dpi, into)
        axes = figure.subplots(rows, columns, squeeze=False)
        for empty in axes.flat[len(shown) :]:
            empty.remove()
        explained: list[str] = []
        for ax, quantity in zip(axes.flat, shown, strict=False):
            lines = _panel(
                ax,
                datasets,
                quantity,
                sorted(quantities[quantity], key=_training, reverse=True),
                log,
            )
            ax.set_xlabel("iteration")
            ax.set_ylabel(quantity.replace("_", " "))
            labels = [str(line.get_label()) for line in lines]
            if labels != explained:  # the panels before have another legend
                legend(ax, lines)
            explained = labels
    return figure


def _training(prefix: str) -> bool:
    return prefix in ("", "train")


def _panel(
    ax: Axes, datasets: Mapping[str, xr.Dataset], quantity: str, prefixes: list[str], log: bool
) -> list[Line2D]:
    lines, curves = [], []
    for i, (label, dataset) in enumerate(datasets.items()):
        for name in map(str, dataset.data_vars):
            prefix = split(name)[0]
            if split(name)[1] != quantity:
                continue
            look = line_look(i)
            if len(prefixes) > 1:
                # Runs are told apart by colour then, and here also by their markers.
                look |= {"linestyle": LINES[prefixes.index(prefix) % len(LINES)]}
            known = dataset.isel(step=np.flatnonzero(_recorded(dataset[name])))
            text = f"{label}, {prefix or 'train'}" if len(prefixes) > 1 else label
            lines.append(curve(ax, known["step"], known[name], look, text, log=log))
            curves.append((known["step"].values, known[name].values))
    values = [y for _, y in curves]
    if log:
        log_axis(ax, values)
    else:
        limit(ax, curves, [line.get_color() for line in lines])
    if not any(np.isfinite(drawable(v, log)).any() for v in values):
        note(ax, "no value on a log axis" if log else "no finite value")
    whole_axis(ax, (d["step"] for d in datasets.values()))
    return lines


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
