"""Lone values far beyond all others: a linear axis ends before them, and says so.

One such value, as of a first evaluation before batch statistics are known, would press all curves into one line.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from propkit.figures.curves import drawable
from propkit.figures.style import ink

Floats = npt.NDArray[np.float64]

SHARE = 0.05
"""Share of all values that may be beyond an axis; or one value per curve, which is more for short ones."""
APART = 3.0
"""How many times as far from the lowest value the lowest value beyond must be, as the highest one within."""
SQUASHED = 0.125
"""Share of a whole axis below which the values within can no longer be read."""


def reach(values: Iterable[npt.ArrayLike]) -> float | None:
    """The highest value that a linear axis is to hold; None: it can hold all.

    >>> reach([[2.3, 1.7, 0.9, 0.4], [640.0, 3.1, 1.2, 0.8]])
    3.1
    >>> reach([[2.3, 1.7, 0.9, 0.4]]) is None
    True

    Args:
        values: Those of each curve, of any shape; what is not finite is left out.
    """
    curves = [drawn[np.isfinite(drawn)] for drawn in map(drawable, values)]
    curves = [curve for curve in curves if curve.size]
    if not curves:
        return None
    ordered = np.sort(np.concatenate(curves))
    heights = ordered[::-1] - ordered[0]
    most = min(max(len(curves), int(SHARE * ordered.size)), ordered.size - 1)
    above, within = heights[:most], heights[1 : most + 1]
    candidates = np.flatnonzero((above >= APART * within) & (within > 0))
    if not candidates.size or within[candidates[-1]] >= SQUASHED * heights[0]:
        return None
    return float(ordered[::-1][candidates[-1] + 1])


def limit(
    ax: Axes, curves: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]], colors: Sequence[Any]
) -> None:
    """End a linear y axis before lone values far beyond all others, and mark these at its top.

    Triangles stand at the top where the values are, crosses of curves that end beyond are moved there, and a line above
    the axes says how far they reach.

    Args:
        ax: Whose y axis, with the curves drawn.
        curves: Positions and values of each, of shape (n,).
        colors: Of each.
    """
    top = reach(y for _, y in curves)
    if top is None:
        return
    shown = np.concatenate([drawable(y) for _, y in curves])
    bottom = float(np.nanmin(shown))
    room = 0.06 * (top - bottom)
    ax.set_ylim(bottom - room, top + room)
    at_top: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "clip_on": False, "zorder": 5}
    for (x, y), color in zip(curves, colors, strict=True):
        beyond = drawable(y) > top
        where = np.asarray(x, dtype=np.float64)[beyond]
        look = {"linestyle": "none", "marker": "^", "markersize": 5, "color": color}
        ax.plot(where, np.ones(len(where)), **look, **at_top, gid="beyond")
    for line in ax.lines:
        if line.get_gid() == "end" and np.max(line.get_ydata()) > top:
            line.set(ydata=[1.0], **at_top)
    ax.annotate(
        f"beyond the axis: up to {np.nanmax(shown):.3g}",
        xy=(1.0, 1.0),
        xytext=(0, 5),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize="small",
        color=ink("text"),
        gid="beyond",
    )
