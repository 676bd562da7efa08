"""What a quantity does where something is done to the training: before and after, by iteration and by depth.

How to read this: the upper panel shows the chosen quantity over the whole training, each colour one
run: the line is the median over the layers, the pale band holds the middle eighty per cent of them.
Dotted vertical lines mark where something changed: modulation ended, the learning rate was divided,
a projection began. The panels below have one mark each, and show the quantity layer by layer, as a
mean over some iterations before the mark (dashed, open symbols) and over as many after it (solid,
filled). Where the two lie on each other the intervention did nothing; a shift of all layers is a
change of scale, a change of slope one of propagation. With a second run that was left alone, what
happened in it too is not the intervention's doing. Where nothing is marked, the first and the last
iterations are compared.

Marks are those that the configurations of the runs tell of (the end of modulation or of a warm-up,
milestones of the learning rate), up to three, or those named by steps (--steps in a shell), such as
the iteration at which a projection or max-norm was put in.

Options: of (--set of=weight.norm), the quantity, a group and a variable of it, error_moment.output
by default; steps (--steps), the iterations that are marked; layers (--layers), a regular expression
for the names of the layers to take; window=N (--set window=N), the recorded iterations on either
side that means run over, 10 by default. Means are geometric where all values are positive.

Needs: the group that is chosen, error_moment by default.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from propkit.figures.curves import curve, drawable, legend, literal, log_axis, note, whole_axis
from propkit.figures.runs import AnyRun, FigureError, RunLike, configured, gather, need
from propkit.figures.snapshots import at_layers, with_depth
from propkit.figures.style import LINES, Canvas, Figure, canvas, ink, line_look, styled

_MOST_MARKS = 3
_BAND = (0.1, 0.5, 0.9)


def prepare(
    run: RunLike,
    *,
    of: str = "error_moment.output",
    steps: Sequence[int] | None = None,
    layers: str | None = None,
    window: int = 10,
) -> xr.Dataset:
    """The numbers of one run.

    Args:
        run: The run.
        of: Group and variable, with a dot between them.
        steps: Iterations that are marked, the first of what comes after; None: `marks_of` the run.
        layers: Regular expression for the whole names of the layers to take; None: all.
        window: Recorded iterations that means run over.

    Returns:
        ``low``, ``median`` and ``high`` (step,): the values of the layers below which 10, 50 and 90
        per cent of the finite ones are, the nearest being taken; ``before`` and ``after`` (mark,
        site), with coordinates ``depth`` and ``mark``, NaN where nothing is finite. Without marks,
        of the first and last rows, ``mark`` being -1. Attributes ``label``, what it is, and
        ``positive``, whether all finite values are.

    Raises:
        FigureError: The run has no such group, no row of it or no such variable; `steps` or `layers`
            select nothing; `window` is not positive.
    """
    if not isinstance(window, int) or window < 1:
        raise FigureError(f"intervention: window={window!r}: expected a number of iterations >= 1")
    if steps is not None and not len(steps):
        raise FigureError("intervention: steps is empty; name an iteration, or leave it out")
    group, _, name = of.partition(".")
    dataset = need(run, group, "intervention")
    usable = [str(v) for v in dataset.data_vars if set(dataset[v].dims) <= {"step", "site"}]
    if name not in usable:
        raise FigureError(
            f"intervention: of={of!r}: expected GROUP.VARIABLE; {group!r} has {', '.join(usable)}"
        )
    if "site" in dataset.dims:
        array = with_depth(at_layers(dataset, layers, "intervention")[name])
    else:
        array = dataset[name].expand_dims(site=[group]).assign_coords(depth=("site", [1]))
    values = array.transpose("step", "site").values.astype(np.float64)
    positive = bool((values[np.isfinite(values)] > 0).all())
    recorded, known = array["step"].values, marks_of(run)
    marks = list(known) if steps is None else sorted(set(steps))
    halves = []
    for mark in marks:
        end = int(np.searchsorted(recorded, mark))
        begin = max(end - window, 0) if mark <= recorded[-1] else end  # it ended before that
        halves.append((values[begin:end], values[end : end + window]))
    if not marks:
        some = min(window, max(len(recorded) // 2, 1))
        halves = [(values[:some], values[-some:])]
    found = [[_mean(half, positive) for half in pair] for pair in halves]
    low, median, high = _quantiles(values)
    return xr.Dataset(
        {
            "low": ("step", low),
            "median": ("step", median),
            "high": ("step", high),
            "before": (("mark", "site"), np.stack([before for before, _ in found])),
            "after": (("mark", "site"), np.stack([after for _, after in found])),
        },
        {"step": recorded, "mark": marks or [-1], "depth": ("site", array["depth"].values)},
        {
            "label": f"{group}, {name}".replace("_", " "),
            "positive": positive,
            "marks": [known.get(mark, "") for mark in marks],
        },
    )


def marks_of(run: RunLike) -> dict[int, str]:
    """Iterations at which a run's configuration says that something changes -> what does.

    Each is the first of the new. Those of a recipe are known: ``modulation_steps`` where there is
    ``modulation``, ``warm_up`` and ``milestones``. Up to three, of those before the training ends.
    """
    found = [(step, "learning rate") for step in configured(run, "recipe.milestones") or ()]
    found.append((configured(run, "recipe.warm_up"), "warm-up ends"))
    if configured(run, "recipe.modulation") not in (None, "never"):
        found.append((configured(run, "recipe.modulation_steps"), "modulation ends"))
    end = configured(run, "recipe.steps")
    last = end if isinstance(end, int) else np.inf
    known = {int(m): what for m, what in found if isinstance(m, int) and 0 < m < last}
    return dict(sorted(known.items())[:_MOST_MARKS])


def _mean(rows: npt.NDArray[np.float64], positive: bool) -> npt.NDArray[np.float64]:
    """Mean over rows of what is finite, geometric of positive values; NaN where nothing is."""
    known = np.isfinite(rows)
    count = known.sum(0)
    filled = np.where(known, rows, 1.0)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        total = np.where(known, np.log(filled) if positive else filled, 0.0).sum(0)
        mean = total / np.maximum(count, 1)
        return np.where(count > 0, np.exp(mean) if positive else mean, np.nan)


def _quantiles(values: npt.NDArray[np.float64]) -> list[npt.NDArray[np.float64]]:
    """Of each row, of what is finite; the nearest values are taken."""
    known = np.isfinite(values)
    ordered = np.sort(np.where(known, values, np.inf), axis=1)
    count = known.sum(1)
    rows = np.arange(len(values))
    found = []
    for share in _BAND:
        place = np.round(share * np.maximum(count - 1, 0)).astype(int)
        found.append(np.where(count > 0, ordered[rows, place], np.nan))
    return found


def draw(
    datasets: Mapping[str, xr.Dataset],
    *,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
    into: Canvas | None = None,
) -> Figure:
    """The ink: all iterations above, a panel for each mark below.

    Args:
        datasets: Label -> what `prepare` returned, with the same marks.
        size: Width and height in inches; None: as many panels need.
        dpi: Pixels per inch on screen.
        into: Part of a figure to draw on, in place of a new one.
    """
    first = next(iter(datasets.values()))
    marks = first["mark"].values.tolist()
    with styled():
        figure = canvas(size or (max(6.8, 1.4 + 3.2 * len(marks)), 6.4), dpi, into)
        grid = figure.add_gridspec(2, len(marks))
        top = figure.add_subplot(grid[0, :])
        below = [figure.add_subplot(grid[1, i]) for i in range(len(marks))]
        log = all(d.attrs["positive"] for d in datasets.values())
        _axis(top, [d[n].values for d in datasets.values() for n in ("low", "high")], log)
        lines = []
        for i, (label, dataset) in enumerate(datasets.items()):
            x, look = dataset["step"].values.astype(float), line_look(i)
            ends = drawable(dataset["low"], log), drawable(dataset["high"], log)
            top.fill_between(x, *ends, color=look["color"], alpha=0.18, linewidth=0, gid="band")
            lines.append(curve(top, x, dataset["median"], look, label, log=log))
        for mark in marks:
            if mark >= 0:
                top.axvline(mark, color=ink("axis"), ls=":", lw=1.2, zorder=1.5, gid="mark")
        whole_axis(top, [*(d["step"] for d in datasets.values()), [m for m in marks if m >= 0]])
        top.set_xlabel("iteration")
        literal(top.set_ylabel(first.attrs["label"]))
        legend(top, lines)
        shown = [d[n].values for d in datasets.values() for n in ("before", "after")]
        for i, (ax, mark) in enumerate(zip(below, marks, strict=True)):
            _axis(ax, shown, log)
            _panel(ax, datasets, i, log)
            what = next((w for d in datasets.values() if (w := (d.attrs["marks"] or [""])[i])), "")
            title = f"iteration {mark:,}{f': {what}' if what else ''}"
            ax.set_title(title if mark >= 0 else "first and last iterations")
            ax.set_xlabel("layer index")
            ax.tick_params(labelleft=i == 0)
        literal(below[0].set_ylabel(first.attrs["label"]))
    return figure


def _axis(ax: Axes, values: Sequence[npt.NDArray[np.float64]], log: bool) -> None:
    shown = [drawable(v, log) for v in values]
    if log:
        log_axis(ax, shown)
    elif (known := np.concatenate([v[np.isfinite(v)] for v in shown])).size:
        low, high = float(known.min()), float(known.max())
        room = 0.08 * (high - low) or 0.1 * abs(high) or 0.5
        ax.set_ylim(low - room, high + room)
    if not any(np.isfinite(v).any() for v in shown):
        note(ax, "no finite value")


def _panel(ax: Axes, datasets: Mapping[str, xr.Dataset], mark: int, log: bool) -> None:
    """The values of the layers before and after one mark."""
    for i, dataset in enumerate(datasets.values()):
        look = line_look(i) | {"linestyle": "solid"}
        x = dataset["depth"].values
        for name, dashes in (("before", LINES[1]), ("after", LINES[0])):
            values = dataset[name].values[mark]
            line = curve(ax, x, values, look | {"linestyle": dashes}, name, log=log, noisy=False)
            line.set_gid(name)
            if name == "before":
                line.set(linewidth=1.2, markerfacecolor=ink("ground"))
    whole_axis(ax, (d["depth"] for d in datasets.values()))
    for name in ("before", "after"):
        every = [drawable(d[name].values[mark], log) for d in datasets.values()]
        if not any(np.isfinite(v).any() for v in every):
            note(ax, f"nothing {name} it")
    if mark == 0:
        shared: dict[str, Any] = {"color": ink("text"), "marker": "o", "markersize": 4}
        dashed: dict[str, Any] = {"linestyle": LINES[1], "lw": 1.2, "mfc": ink("ground")}
        before = Line2D([], [], label="before", **shared, **dashed)
        legend(ax, [before, Line2D([], [], label="after", **shared)])


def intervention(
    run: AnyRun | Sequence[AnyRun],
    *more: AnyRun,
    labels: Sequence[str] | str | None = None,
    of: str = "error_moment.output",
    steps: Sequence[int] | None = None,
    layers: str | None = None,
    window: int = 10,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> Figure:
    """A quantity before and after marked iterations, of one run or of several.

    Args:
        run: A run, its path, or several of them.
        more: More runs to compare, such as one that was left alone.
        labels: One label per run; else the runs' own.
        of: Group and variable, with a dot between them.
        steps: Iterations that are marked; None: those that the runs' configurations tell of, up to three.
        layers: Regular expression for the whole names of the layers to take.
        window: Recorded iterations on either side that means run over.
        size: Width and height in inches; None: as many panels need.
        dpi: Pixels per inch on screen.

    Raises:
        FigureError: See `prepare`.
    """
    runs = gather((run, *more), labels)
    if steps is None:  # a run that was left alone is looked at where the others were not
        known = sorted({mark for r in runs.values() for mark in marks_of(r)})
        steps = known[:_MOST_MARKS] or None
    options: dict[str, Any] = {"of": of, "steps": steps, "layers": layers, "window": window}
    return draw({k: prepare(r, **options) for k, r in runs.items()}, size=size, dpi=dpi)
