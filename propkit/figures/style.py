"""How figures look: palette, line styles, and a Figure that keeps its look on its own."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import matplotlib as mpl
import matplotlib.figure
import numpy as np

# Okabe and Ito's palette (seaborn's "colorblind" is a variant of it), without its yellow. Blue and
# green come first, as in the paper. Importing seaborn for it would import pyplot.
COLORS = ("#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#E69F00", "#333333")
"""Line colours, told apart by colour-blind readers."""

LINES: tuple[Any, ...] = (
    "solid",
    (0, (5, 1.5)),
    (0, (1.2, 1.2)),
    (0, (6, 1.5, 1.2, 1.5)),
    (0, (9, 2)),
)
"""Line styles, which tell lines apart in greyscale; coprime in number to the colours."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Markers of sparse lines, one per colour."""

# The same on black: the light ones of the palette, its yellow too.
_COLORS_ON_BLACK = ("#56B4E9", "#E69F00", "#2BB98F", "#E39BC4", "#F0E442", "#E87A3E", "#DDDDDD")

_LOOK: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "font.size": 10.0,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.8,
    "lines.linewidth": 1.7,
    "pdf.fonttype": 42,  # text stays text when the figure is edited
    "svg.hashsalt": "propkit",  # the same figure is the same file
}
_INK = {"axis": "#444444", "text": "#666666", "ground": "white"}
_BRIGHT = {"axis": "#BBBBBB", "text": "#AAAAAA", "ground": "#111111"}
_LOOKS: dict[str, dict[str, Any]] = {
    "screen": {},
    # For a column of print: small type and thin lines, to be given with a size in inches.
    "paper": {
        "axes.linewidth": 0.6,
        "font.size": 8.0,
        "grid.linewidth": 0.4,
        "legend.fontsize": "small",
        "lines.linewidth": 1.2,
        "lines.markersize": 4.0,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
    },
    "dark": {
        "axes.edgecolor": _BRIGHT["axis"],
        "axes.facecolor": _BRIGHT["ground"],
        "axes.labelcolor": "#EEEEEE",
        "figure.facecolor": _BRIGHT["ground"],
        "grid.color": "#333333",
        "legend.facecolor": _BRIGHT["ground"],
        "savefig.facecolor": _BRIGHT["ground"],
        "text.color": "#EEEEEE",
        "xtick.color": _BRIGHT["axis"],
        "ytick.color": _BRIGHT["axis"],
    },
}
STYLES = tuple(_LOOKS)
"""Names of the styles."""

_style: ContextVar[str] = ContextVar("style", default="screen")
_SECTIONS = (
    *("axes", "figure", "font", "grid", "hatch", "image", "legend", "lines", "markers", "mathtext"),
    *("patch", "path", "pdf", "savefig", "svg", "text", "xaxis", "xtick", "yaxis", "ytick"),
)
_NOT_LOOK = {
    "figure.hooks",
    "figure.max_open_warning",
    "figure.raise_window",
    "savefig.directory",
}


@contextmanager
def use_style(name: str) -> Iterator[None]:
    """Figures that are made within the ``with`` block have this style, whenever they are drawn.

    Args:
        name: ``screen``, the default; ``paper``, small type and thin lines; ``dark``, on black.

    Raises:
        ValueError: There is no such style.
    """
    if name not in STYLES:
        raise ValueError(f"style={name!r}: expected one of {', '.join(STYLES)}")
    token = _style.set(name)
    try:
        yield
    finally:
        _style.reset(token)


@contextmanager
def styled(name: str | None = None) -> Iterator[None]:
    """Matplotlib's own defaults with propkit's look on top, within a ``with`` block only.

    Args:
        name: Style; None: the one of the `use_style` block around, else ``screen``.
    """
    look: dict[Any, Any] = {
        k: v
        for k, v in mpl.rcParamsDefault.items()
        if k.split(".")[0] in _SECTIONS and k not in _NOT_LOOK
    }
    with mpl.rc_context(look | _LOOK | _LOOKS[name or _style.get()]):
        yield


class Figure(matplotlib.figure.Figure):
    """A figure that looks the same whatever the settings when it is drawn, and that notebooks show.

    It is not made by pyplot, so no backend is chosen and nothing has to be closed. Matplotlib reads
    some settings only when it draws; the figure is therefore drawn and saved in propkit's style.
    """

    def __init__(self, **kwargs: Any) -> None:
        self._style = _style.get()
        super().__init__(**kwargs)

    def draw(self, renderer: Any) -> None:
        """Draw all artists, see `matplotlib.figure.Figure.draw`."""
        with styled(self._style):
            super().draw(renderer)

    def savefig(self, fname: Any, **kwargs: Any) -> None:
        """Write the figure to a file, see `matplotlib.figure.Figure.savefig`."""
        with styled(self._style):
            super().savefig(fname, **kwargs)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        # Twice the pixels for sharp screens, shown at the figure's size.
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=2 * self.dpi)
        width, height = self.get_size_inches() * self.dpi
        return buffer.getvalue(), {"width": int(width), "height": int(height)}


def new_figure(size: tuple[float, float], dpi: float | None = None) -> Figure:
    """An empty figure.

    Args:
        size: Width and height in inches.
        dpi: Pixels per inch, 100 unless given.
    """
    return Figure(figsize=size, dpi=dpi or 100)


Canvas = matplotlib.figure.SubFigure
"""A part of a figure, on which another figure is drawn."""


def canvas(size: tuple[float, float], dpi: float | None, into: Canvas | None) -> Figure:
    """What a figure is drawn on: an empty one of that size, or the part of another one if given."""
    # Drawing on a part of a figure is drawing on a figure: both have the methods that are used.
    return new_figure(size, dpi) if into is None else cast(Figure, into)


def line_look(index: int) -> dict[str, Any]:
    """Colour, line style and marker of the line of that index."""
    colors = _COLORS_ON_BLACK if _style.get() == "dark" else COLORS
    return {
        "color": colors[index % len(colors)],
        "linestyle": LINES[index % len(LINES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def ink(what: str) -> str:
    """Colour of what is no data: ``axis``, ``text`` or ``ground``."""
    return (_BRIGHT if _style.get() == "dark" else _INK)[what]


def step_looks(count: int) -> list[dict[str, Any]]:
    """Looks of lines that follow each other in time: later ones are lighter, also in greyscale."""
    # The scale's yellow end is too faint on white, its violet one on black.
    ends = (0.3, 1.0) if _style.get() == "dark" else (0.0, 0.82)
    colors = mpl.colormaps["viridis"](np.linspace(*ends, count))
    return [line_look(i) | {"color": tuple(color)} for i, color in enumerate(colors)]


def statistical() -> Any:
    """Seaborn, imported by the figures that draw with it: it takes a second and imports pyplot.

    The warnings filters that its imports add are taken out again.
    """
    with warnings.catch_warnings():
        import seaborn

    return seaborn
