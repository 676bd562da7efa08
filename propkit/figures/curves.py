"""Lines as the figures draw them: thinned to what pixels can show, broken where not finite."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.mathtext import MathTextParser
from matplotlib.text import Text
from matplotlib.ticker import (
    FixedLocator,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    StrMethodFormatter,
)

from propkit.figures.style import ink

Floats = npt.NDArray[np.float64]

DENSE = 200
"""A curve of more points is drawn as a pale trace of them and a line through their medians."""

TRACE_BUCKETS = 600
MEDIAN_BUCKETS = 80
SPARSE = 60
"""Up to this many points, each has a marker."""

MANY = 5
"""A legend of more entries stands beside the axes."""

_DECADES = 300.0
_FEW = 1.6
"""Decades below which a log axis is labelled 1, 2, 5."""
_LARGEST = 1e300
"""Beyond it matplotlib's margins overflow."""


def drawable(y: npt.ArrayLike, log: bool = False) -> Floats:
    """Values as float64, NaN where the axis cannot show them: not finite, or log and not > 0.

    A linear axis cannot show values beyond 1e300 either.
    """
    y = np.asarray(y, dtype=np.float64)
    shown = y > 0 if log else np.abs(y) < _LARGEST
    return np.where(np.isfinite(y) & shown, y, np.nan)


def thin(x: Floats, y: Floats, buckets: int = TRACE_BUCKETS) -> tuple[Floats, Floats]:
    """At most four points per bucket of the x range: first, lowest, highest and last.

    The line through them covers the same pixels as the line through all points where a bucket is no
    wider than a pixel, so peaks stay. Gaps (NaN in `y`) stay gaps.

    Args:
        x: Positions, ascending, shape (n,).
        y: Values, shape (n,).
        buckets: Number of buckets of equal width.

    Returns:
        The points kept, in order; between two points that had a gap between them there is one NaN.
    """
    if len(x) <= 4 * buckets:
        return x, y
    finite = np.isfinite(y)
    segment = np.cumsum(np.diff(finite, prepend=finite[:1]))
    bucket = np.minimum((x - x[0]) / (x[-1] - x[0]) * buckets, buckets - 1).astype(np.int64)
    # Both are ascending, so points of one group are neighbours.
    new = (np.diff(segment, prepend=-1) != 0) | (np.diff(bucket, prepend=-1) != 0)
    group = np.cumsum(new) - 1
    starts = np.flatnonzero(new)
    ends = np.append(starts[1:], len(x)) - 1
    order = np.lexsort((y, group))
    kept = np.unique(np.concatenate([starts, ends, order[starts], order[ends]]))
    # One NaN is enough for a gap.
    gap = ~np.isfinite(y[kept])
    kept = kept[~(gap & np.concatenate([[False], gap[:-1]]))]
    return x[kept], y[kept]


def medians(x: Floats, y: Floats, buckets: int = MEDIAN_BUCKETS) -> tuple[Floats, Floats]:
    """Median x and y of the finite points in each bucket of the x range; NaN if there are none."""
    edges = np.searchsorted(x, np.linspace(x[0], x[-1], buckets + 1)[1:-1])
    points = [
        (np.median(xs[np.isfinite(ys)]), np.median(ys[np.isfinite(ys)]))
        if np.isfinite(ys).any()
        else (np.nan, np.nan)
        for xs, ys in zip(np.split(x, edges), np.split(y, edges), strict=True)
        if len(xs)
    ]
    mx, my = np.array(points).T
    return mx, my


def curve(
    ax: Axes,
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    look: dict[str, Any],
    label: str,
    log: bool = False,
    noisy: bool = True,
) -> Line2D:
    """Draw one line and return it, the one that belongs into a legend.

    Points without a neighbour are marked, and so are all points of a sparse line that has a marker. A cross stands at
    the last point of a line that ends before its steps do.

    Args:
        ax: Where.
        x: Positions, ascending, shape (n,).
        y: Values, shape (n,).
        look: ``color``, ``linestyle`` and ``marker``, see `propkit.figures.style.line_look`; where that is empty,
            ``lone`` is the marker of points without a neighbour.
        label: Label of the line.
        log: The y axis is logarithmic, so values must be positive.
        noisy: Of a dense curve, show the medians strongly and the values palely.
    """
    x, y = np.asarray(x, dtype=np.float64), drawable(y, log)
    seen = np.flatnonzero(np.isfinite(y))
    plain = {"color": look["color"], "linestyle": "solid", "marker": ""}
    if len(seen) and seen[-1] < len(y) - 1:
        ax.plot(
            x[seen[-1]], y[seen[-1]], **{**plain, "marker": "x"}, ms=8, mew=2, gid="end", zorder=4
        )
    if noisy and len(x) > DENSE:
        ax.plot(*thin(x, y), **plain, linewidth=0.6, alpha=0.4, gid="trace", zorder=2)
        x, y = medians(x, y)
    else:
        x, y = thin(x, y)
    marked = np.isfinite(y) if len(y) <= SPARSE and look["marker"] else _alone(y)
    look = dict(look)
    lone = look.pop("lone", "o")
    marker = (look["marker"] or lone) if marked.any() else ""
    (line,) = ax.plot(x, y, **{**look, "marker": marker}, markersize=4, label=label, gid="curve")
    line.set_markevery(np.flatnonzero(marked).tolist())
    line.set_zorder(3)
    if not len(seen):
        line.set_label(f"{label} (no finite value)")
    return line


def _alone(y: Floats) -> npt.NDArray[np.bool_]:
    """Which finite points have no finite neighbour, so that no line shows them."""
    finite = np.pad(np.isfinite(y), 1)
    alone: npt.NDArray[np.bool_] = finite[1:-1] & ~finite[:-2] & ~finite[2:]
    return alone


def whole_axis(ax: Axes, positions: Iterable[npt.ArrayLike]) -> None:
    """An x axis of whole numbers that holds all positions, those of gaps too.

    Args:
        ax: Whose x axis.
        positions: Those of each line, each of shape (n,); n may be 0.
    """
    every = np.concatenate([np.asarray(p, dtype=np.float64) for p in positions])
    low, high = (float(every.min()), float(every.max())) if every.size else (0.0, 1.0)
    margin = 0.03 * (high - low) or 0.5
    ax.set_xlim(low - margin, high + margin)
    ax.xaxis.set_major_locator(
        MaxNLocator(nbins=7, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    )
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def log_axis_around_one(ax: Axes, values: Iterable[npt.ArrayLike]) -> bool:
    """A log y axis that holds all values and 1, a line at 1, and room on both sides of it.

    Args:
        ax: Whose y axis.
        values: Arrays of any shape; what a log axis cannot show is left out.

    Returns:
        Whether there is any value to show.
    """
    ax.axhline(1.0, color=ink("axis"), linewidth=0.9, zorder=1.5, gid="one")
    return log_axis(ax, values, holds=[1.0])


def log_axis(
    ax: Axes, values: Iterable[npt.ArrayLike], holds: Iterable[float] = (), which: str = "y"
) -> bool:
    """A log axis that holds all values, with room around them; also those near the ends of float64.

    Args:
        ax: Whose axis.
        values: Arrays of any shape; what a log axis cannot show is left out.
        holds: What it holds besides.
        which: ``y`` or ``x``.

    Returns:
        Whether there is any value to show.
    """
    shown = np.concatenate([drawable(v, log=True).ravel() for v in values])
    shown = np.log10(shown[np.isfinite(shown)])
    ends = np.concatenate([shown, np.log10(list(holds))])
    bottom, top = (float(ends.min()), float(ends.max())) if shown.size else (-1.0, 1.0)
    room = 0.12 * max(top - bottom, 1.0)
    bottom, top = max(bottom - room, -_DECADES), min(top + room, _DECADES)
    ax.set(**{f"{which}scale": "log", f"{which}lim": (10.0**bottom, 10.0**top)})
    axis = ax.yaxis if which == "y" else ax.xaxis
    if top - bottom < _FEW:  # powers of ten would leave it with one label or two
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    if top - bottom > _DECADES / 2:  # matplotlib's ticks beyond the ends would overflow
        decades = np.asarray(MaxNLocator(5, integer=True).tick_values(bottom, top))
        decades = decades[(decades >= bottom) & (decades <= top)]
        axis.set_major_locator(FixedLocator((10.0**decades).tolist()))
        axis.set_minor_locator(NullLocator())
    return bool(shown.size)


def note(ax: Axes, text: str) -> None:
    """Say in the middle of empty axes why they are empty."""
    patch = {"facecolor": ink("ground"), "edgecolor": "none"}
    middle: dict[str, Any] = {"ha": "center", "va": "center", "transform": ax.transAxes}
    ax.text(0.5, 0.5, text, color=ink("text"), bbox=patch, **middle)


def beside_one(ax: Axes, above: str, below: str) -> None:
    """Name the two sides of the line at 1, right of the axes, where no curve runs."""
    for text, offset, va in ((above, 3, "bottom"), (below, -3, "top")):
        ax.annotate(
            text,
            xy=(1.0, 1.0),
            xycoords=("axes fraction", "data"),
            xytext=(3, offset),
            textcoords="offset points",
            ha="left",
            va=va,
            color=ink("text"),
            fontsize="small",
            fontstyle="italic",
            annotation_clip=False,
        )


def legend(ax: Axes, handles: list[Line2D], **place: Any) -> None:
    """A legend in the axes, or beside them if it is long; ``$`` starts a formula if that parses."""
    if len(handles) > MANY:
        columns = -(-len(handles) // 16)
        place |= {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "ncols": columns}
        place |= {"fontsize": "small", "borderaxespad": 0.0}
    labels = [str(h.get_label()) for h in handles]
    _texts(ax.legend(handles, ["label"] * len(handles), **place), labels)


def legend_below(figure: Figure, handles: list[Line2D], **place: Any) -> Legend:
    """A legend below all axes of a figure, in rows; texts as in `legend`."""
    labels = [str(h.get_label()) for h in handles]
    columns = columns_below(labels, figure.bbox.width / figure.dpi)
    place |= {"loc": "outside lower center", "ncols": columns, "fontsize": "small"}
    drawn = figure.legend(handles, ["label"] * len(handles), **place)
    _texts(drawn, labels)
    return drawn


def columns_below(labels: Sequence[str], width: float) -> int:
    """Columns of such a legend, for a figure of that width in inches."""
    # Letters are some half of the font's size wide; a handle and the gaps take five more.
    size = FontProperties(size="small").get_size_in_points() / 72
    room = width / (size * (0.6 * max(map(len, labels)) + 5.0))
    return min(max(int(room), 1), len(labels), 6)


def _texts(drawn: Legend, labels: list[str]) -> None:
    # Set afterwards, because matplotlib before 3.10 leaves out labels that begin with "_".
    for text, label in zip(drawn.get_texts(), labels, strict=True):
        text.set_text(label)
        literal(text)


def literal(text: Text) -> None:
    """Show a user's text as it is, unless it is a formula that matplotlib can set."""
    if "$" not in text.get_text():
        return
    try:
        MathTextParser("path").parse(text.get_text())
    except ValueError:
        text.set_parse_math(False)
