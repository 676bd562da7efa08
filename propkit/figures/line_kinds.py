"""Training and test in one colour: grey lines in a legend that say which line is which, as they are drawn."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from propkit.figures.style import LINES, ink

HANDLES: dict[str, Any] = {"handlelength": 3.2}
"""For a legend with such lines: in matplotlib's length a marker hides the only gap between two dashes."""


def kind_look(number: int) -> dict[str, Any]:
    """Line style and marker of a kind of lines: the first is solid, others are dashed and their markers hollow."""
    hollow = {"markerfacecolor": ink("ground")} if number else {}
    return {"linestyle": LINES[number % len(LINES)], **hollow}


def kind_handle(label: str, lines: Sequence[Line2D], number: int, **look: Any) -> Line2D:
    """What stands for a kind of lines in a legend.

    Args:
        label: What they are.
        lines: All of them, as `propkit.figures.curves.curve` drew them: where these are lone points, so is the handle.
        number: Of the kind, as for `kind_look`.
        look: Changes of its look, such as ``linewidth``.
    """
    joined = any(_joined(line) for line in lines)
    marked = any(line.get_marker() not in ("", "None", None) for line in lines)
    shown = kind_look(number) | {"marker": "o" if marked else "", "markersize": 4}
    if marked and not joined:
        shown["linestyle"] = "none"
    return Line2D([], [], color=ink("text"), label=label, **shown | look)


def _joined(line: Line2D) -> bool:
    """Whether two neighbouring points of a line are there, so that there is a stroke between them."""
    finite = np.isfinite(np.asarray(line.get_ydata(), dtype=np.float64))
    return bool((finite[1:] & finite[:-1]).any())
