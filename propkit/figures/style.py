"""How figures look: palette, line styles, and a Figure that keeps its look on its own."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import matplotlib.figure

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
def styled() -> Iterator[None]:
    """Matplotlib's own defaults with propkit's look on top, within a ``with`` block only."""
    look: dict[Any, Any] = {
        k: v
        for k, v in mpl.rcParamsDefault.items()
        if k.split(".")[0] in _SECTIONS and k not in _NOT_LOOK
    }
    with mpl.rc_context(look | _LOOK):
        yield


class Figure(matplotlib.figure.Figure):
    """A figure that looks the same whatever the settings when it is drawn, and that notebooks show.

    It is not made by pyplot, so no backend is chosen and nothing has to be closed. Matplotlib reads
    some settings only when it draws; the figure is therefore drawn and saved in propkit's style.
    """

    def draw(self, renderer: Any) -> None:
        """Draw all artists, see `matplotlib.figure.Figure.draw`."""
        with styled():
            super().draw(renderer)

    def savefig(self, fname: Any, **kwargs: Any) -> None:
        """Write the figure to a file, see `matplotlib.figure.Figure.savefig`."""
        with styled():
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


def line_look(index: int) -> dict[str, Any]:
    """Colour, line style and marker of the line of that index."""
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": LINES[index % len(LINES)],
        "marker": MARKERS[index % len(MARKERS)],
    }
