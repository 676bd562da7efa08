"""Quantities by depth at a few iterations: a column of panels per run, a row per quantity."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from propkit.figures.curves import (
    columns_below,
    curve,
    drawable,
    legend,
    legend_below,
    literal,
    log_axis,
    log_axis_around_one,
    note,
    whole_axis,
)
from propkit.figures.runs import AnyRun, gather
from propkit.figures.style import Canvas, Figure, canvas, ink, line_look, step_looks, styled

_MOST_COLUMNS = 4


@dataclass(frozen=True)
class Panel:
    """One quantity.

    Attributes:
        name: Variable (step, site) of the datasets, which have a coordinate ``depth``.
        label: Label of the y axis.
        log: Whether the y axis is logarithmic; values of inf are then marked at its top.
        one: With a line at 1, on a log axis.
        limits: Ends of a linear axis; None: those of the values.
        low: Variable that is the lower end of a band around the line; empty: none.
        high: Its upper end.
    """

    name: str
    label: str
    log: bool = False
    one: bool = False
    limits: tuple[float, float] | None = None
    low: str = ""
    high: str = ""

    @property
    def names(self) -> list[str]:
        """All variables that it shows."""
        return [name for name in (self.name, self.low, self.high) if name]


@dataclass(frozen=True)
class _Line:
    dataset: xr.Dataset  # of one step
    look: dict[str, Any]
    label: str


def compare(
    prepare: Callable[..., xr.Dataset],
    draw: Callable[..., Figure],
    runs: Iterable[AnyRun | Sequence[AnyRun]],
    *,
    labels: Sequence[str] | str | None,
    relative_depth: bool,
    size: tuple[float, float] | None,
    dpi: float | None,
    **options: Any,
) -> Figure:
    """What each figure by depth does with its arguments.

    Args:
        prepare: The figure's; called with a run and `options`.
        draw: The figure's.
        runs: Runs, their paths, patterns, folders of runs or studies.
        labels: One label per run; else the runs' own.
        relative_depth: See `draw_by_depth`.
        size: Width and height in inches; None: as many panels need.
        dpi: Pixels per inch on screen.
        options: ``steps``, the iterations to show, None being up to four of those recorded;
            ``layers``, a regular expression for the whole names of the layers (or blocks) to take;
            and what else `prepare` knows.

    Raises:
        FigureError: A run has no row of what is needed; ``steps`` or ``layers`` select nothing.
    """
    datasets = {k: prepare(run, **options) for k, run in gather(runs, labels).items()}
    return draw(datasets, relative_depth=relative_depth, size=size, dpi=dpi)


def draw_by_depth(
    datasets: Mapping[str, xr.Dataset],
    panels: Sequence[Panel],
    *,
    x_label: str,
    relative_depth: bool = False,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
    into: Canvas | None = None,
) -> Figure:
    """A line per iteration, a column of panels per run; of runs that show one iteration each, a line per run.

    Args:
        datasets: Label -> variables (step, site) with the coordinate ``depth``; the last sites, as many as the
            attribute ``apart`` says, count for no depth.
        panels: The quantities, from top to bottom; two to a row where there is one column.
        x_label: Label of the x axis.
        relative_depth: Have the first layer of each run at 0 and its last one at 1, and the last iteration of each
            run on the same panels, so that networks of different depths can be compared.
        size: Width and height in inches; None: as many panels need.
        dpi: Pixels per inch on screen.
        into: Part of a figure to draw on, in place of a new one.
    """
    if relative_depth:
        datasets = {k: d.assign_coords(depth=("site", relative(d))) for k, d in datasets.items()}
        x_label = "relative depth"
    columns = _columns(datasets, overlaid=relative_depth and len(datasets) > 1)
    square = len(columns) == 1 and len(panels) > 2
    rows, across = (-(-len(panels) // 2), 2) if square else (len(panels), len(columns))
    with styled():
        # Columns of the same iterations share a legend, which stands where it hides nothing.
        entries = [[line.label for line in lines] for lines in columns.values()]
        same = all(labels == entries[0] for labels in entries)
        width = 1.4 + (3.9 if across > 1 else 5.0) * across
        more = -(-len(entries[0]) // columns_below(entries[0], width)) - 1 if same else 0
        inches = size or (width, 0.6 + 2.7 * rows + 0.2 * more)
        figure = canvas(inches, dpi, into)
        axes = figure.subplots(rows, across, sharex=True, squeeze=False)
        for empty in axes.flat[len(panels) * len(columns) :]:
            empty.remove()
        handles: list[Line2D] = []
        for i, panel in enumerate(panels):
            row = axes.flat[i : i + 1] if square else axes[i]
            _share(row, panel, datasets.values())
            for ax, (title, lines) in zip(row, columns.items(), strict=True):
                handles = [_line(ax, panel, line) for line in lines]
                _marks(ax, panel, lines)
                whole_axis(ax, (d["depth"] for d in datasets.values()))
                if relative_depth:
                    ax.xaxis.set_major_locator(MaxNLocator(5))
                    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
                ax.tick_params(labelleft=True)
                if ax is row[0]:
                    ax.set_ylabel(panel.label)
                if i == 0 and title:
                    literal(ax.set_title(title))
                if i == 0 and not same:
                    legend(ax, handles)
        for ax in figure.axes[-across:]:
            ax.set_xlabel(x_label)
            ax.tick_params(labelbottom=True)  # also where the panel below is missing
        if same:
            legend_below(figure, handles)
        figure.align_ylabels()
    return figure


def relative(dataset: xr.Dataset) -> npt.NDArray[np.float64]:
    """Depths from 0 for the first site to 1 for the last one that counts; 0 where they are all the same.

    >>> relative(xr.Dataset(coords={"depth": ("site", [2, 4, 10])}))
    array([0.  , 0.25, 1.  ])
    >>> relative(xr.Dataset(coords={"depth": ("site", [1, 2, 3, 4])}, attrs={"apart": 2}))
    array([0., 1., 2., 3.])
    """
    depth = dataset["depth"].values.astype(np.float64)
    counted = depth[: len(depth) - dataset.attrs.get("apart", 0)]
    span = counted.max() - counted.min() if counted.size else 0.0
    return (depth - depth.min()) / span if span else np.zeros(len(depth))


def _columns(datasets: Mapping[str, xr.Dataset], overlaid: bool) -> dict[str, list[_Line]]:
    """Title -> lines of a column."""
    steps = {label: d["step"].values for label, d in datasets.items()}
    each_one = len(datasets) > 1 and all(len(s) == 1 for s in steps.values())
    if overlaid or each_one or len(datasets) > _MOST_COLUMNS:
        # The last iteration of each, also where there are too many runs for a column each.
        last = {int(s[-1]) for s in steps.values()}
        title = f"iteration {last.pop():,}" if len(last) == 1 else ""
        return {
            title: [
                _Line(
                    d.isel(step=-1),
                    line_look(i),
                    label if title else f"{label}, iteration {int(steps[label][-1]):,}",
                )
                for i, (label, d) in enumerate(datasets.items())
            ]
        }
    return {
        label: [
            _Line(d.isel(step=i), look, f"iteration {int(d['step'].values[i]):,}")
            for i, look in enumerate(step_looks(d.sizes["step"]))
        ]
        for label, d in datasets.items()
    }


def _share(row: npt.NDArray[Any], panel: Panel, datasets: Iterable[xr.Dataset]) -> None:
    """The same y axis in all panels of a quantity."""
    values = [d[name].values for d in datasets for name in panel.names if name in d]
    for ax in row:
        if panel.one:
            log_axis_around_one(ax, values)
        elif panel.log:
            log_axis(ax, values)
        elif panel.limits:
            ax.set_ylim(*panel.limits)
        elif (shown := _finite(values)).size:
            low, high = float(shown.min()), float(shown.max())
            room = 0.08 * (high - low) or 0.1 * abs(high) or 0.5
            ax.set_ylim(low - room, high + room)


def _finite(values: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    shown: npt.NDArray[np.float64] = np.concatenate([drawable(v).ravel() for v in values])
    return np.asarray(shown[np.isfinite(shown)])


def _line(ax: Axes, panel: Panel, line: _Line) -> Line2D:
    x, data = line.dataset["depth"], line.dataset
    if panel.high:
        high = drawable(data[panel.high], panel.log)
        low = drawable(data[panel.low] if panel.low in data else data[panel.name], panel.log)
        low = np.where(np.isfinite(low), low, drawable(data[panel.name], panel.log))
        color = line.look["color"]
        ax.fill_between(x, low, high, color=color, alpha=0.22, linewidth=0, gid="band")
    handle = curve(ax, x, data[panel.name], line.look, line.label, log=panel.log, noisy=False)
    handle.set_label(line.label)  # a line without a value has one in another panel
    return handle


def _marks(ax: Axes, panel: Panel, lines: list[_Line]) -> None:
    """What the curves cannot show: infinite values, at the top, and that there is no value at all."""
    values = [line.dataset[panel.name].values.astype(float) for line in lines]
    infinite = [np.isposinf(of) for of in values]
    if panel.log and any(where.any() for where in infinite):
        for i, (line, where) in enumerate(zip(lines, infinite, strict=True)):
            x = line.dataset["depth"].values[where]
            ax.plot(
                x,
                np.full(len(x), 0.98 - 0.015 * (i % 6)),
                marker="^",
                markersize=4,
                linestyle="none",
                color=line.look["color"],
                transform=ax.get_xaxis_transform(),
                gid="infinite",
            )
        text: dict[str, Any] = {
            "ha": "right",
            "va": "top",
            "fontsize": "small",
            "color": ink("text"),
        }
        if not any(np.isfinite(drawable(of, log=True)).any() for of in values):
            note(ax, "infinite")
        ax.annotate(r"$\infty$", (1, 0.98), (12, 4), "axes fraction", "offset points", **text)
    elif not any(np.isfinite(drawable(of, panel.log)).any() for of in values):
        note(ax, "no value on a log axis" if panel.log else "no finite value")
