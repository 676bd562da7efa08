"""A figure for the page: drawn for light and dark screens, as SVG whose text stays text, else as PNG."""

import base64
import functools
import inspect
import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import matplotlib.figure

from propkit.figures import registry
from propkit.figures.overview import PARTS
from propkit.figures.runs import RunLike
from propkit.figures.style import Figure, styled, use_style
from propkit.report.numbers import in_numbers

MOST_BYTES = 1_000_000
"""A figure whose SVG is larger is put on the page as PNG."""

LEFT_OUT = {"overview": "its parts are the other figures of this page"}
"""Figures that are not drawn -> why."""


@dataclass(frozen=True)
class Drawing:
    """One figure of the page.

    Attributes:
        name: Its name in the registry.
        title: Its first line.
        guide: How to read it, in paragraphs.
        labels: The runs that it shows.
        light: Markup on white: an ``<svg>``, or the data URI of a PNG.
        dark: The same on black.
        size: Width and height in CSS pixels.
        numbers: What it shows in numbers, a sentence for each quantity of each run.
        left_out: Label -> why a run is not in it.
    """

    name: str
    title: str
    guide: tuple[str, ...]
    labels: tuple[str, ...]
    light: str
    dark: str
    size: tuple[int, int]
    numbers: tuple[str, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)


def figure_names() -> list[str]:
    """All figures of the registry, those of the overview first and in its order."""
    there = [n for n in registry.names() if n not in LEFT_OUT]
    return sorted(there, key=lambda n: PARTS.index(n) if n in PARTS else len(PARTS))


def draw(name: str, runs: Mapping[str, RunLike]) -> Drawing | str:
    """Draw the figure of that name from the runs that have what it takes.

    Whatever goes wrong in a figure, the page goes on without it.

    Args:
        name: Of the figure.
        runs: Label -> run.

    Returns:
        The drawing, or why there is none.
    """
    left_out: dict[str, str] = {}
    try:
        function = registry.find(name)
        try:
            figure = _call(function, runs)
        except Exception:
            if len(runs) == 1:
                raise
            left_out = _unfit(function, runs)
            runs = {label: run for label, run in runs.items() if label not in left_out}
            if not runs:
                return next(iter(left_out.values()))
            figure = _call(function, runs)
        light = _markup(figure, f"{name}-light")
        with use_style("dark"):
            dark = _markup(_call(function, runs), f"{name}-dark")
        inches = figure.get_size_inches()
        title, guide = reading_guide(name, function)
        size = (round(96 * float(inches[0])), round(96 * float(inches[1])))
        numbers = in_numbers(function, runs)
    except Exception as error:
        return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return Drawing(name, title, guide, tuple(runs), light, dark, size, numbers, left_out)


def reading_guide(name: str, function: Callable[..., Any]) -> tuple[str, tuple[str, ...]]:
    """First line and paragraphs of a figure's docstring: its module's, else the function's own."""
    module = inspect.getdoc(sys.modules.get(function.__module__)) or ""
    text = module if "How to read" in module else inspect.getdoc(function) or module
    paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", text) if p.strip()]
    if not paragraphs:
        return name, ()
    kept = (p for p in paragraphs[1:] if not p.startswith(("Args:", "Returns:", "Raises:", ">>>")))
    return paragraphs[0], tuple(kept)


def _call(function: Callable[..., Any], runs: Mapping[str, RunLike]) -> matplotlib.figure.Figure:
    figure = function(*runs.values(), labels=list(runs))
    if not isinstance(figure, matplotlib.figure.Figure):
        raise TypeError(f"expected a matplotlib figure, found {type(figure).__name__}")
    return figure


def _unfit(function: Callable[..., Any], runs: Mapping[str, RunLike]) -> dict[str, str]:
    """Label -> why, of the runs that the figure cannot show even alone."""
    found = {}
    for label, run in runs.items():
        try:
            _call(function, {label: run})
        except Exception as error:
            found[label] = str(error)
    return found


def _markup(figure: matplotlib.figure.Figure, prefix: str) -> str:
    svg = _svg(figure)
    if len(svg) <= MOST_BYTES:
        return _inline(svg, prefix)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _svg(figure: matplotlib.figure.Figure) -> str:
    """The figure as SVG whose text is text: it can be searched, selected and read aloud."""
    look = styled(figure._style) if isinstance(figure, Figure) else nullcontext()
    buffer = io.BytesIO()
    plain = matplotlib.figure.Figure
    # The figure's own draw() would set the look again, with text as outlines: on this instance it is another.
    figure.draw = functools.partial(plain.draw, figure)  # type: ignore[method-assign]  # until `del` below
    try:
        with look, mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "propkit"}):
            plain.savefig(figure, buffer, format="svg", metadata={"Date": None})
    finally:
        del figure.draw
    return buffer.getvalue().decode()


def _inline(svg: str, prefix: str) -> str:
    """The ``<svg>`` for use in HTML: without prolog, metadata and namespaces; ids that are its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL
    )  # would hold for the whole page
    opening, rest = svg.split(">", 1)
    opening = re.sub(r'\s(?:xmlns(?::\w+)?|version|width|height)="[^"]*"', "", opening)
    own = functools.partial(_own_ids, prefix, set())
    rest = re.sub(r"<[^>]+>", own, rest)  # tags only: a label may well say id="..."
    return f"{opening}>{rest}"


def _own_ids(prefix: str, seen: set[str], tag: "re.Match[str]") -> str:
    """A tag whose ids, and references to ids, are no other figure's."""
    text = tag[0].replace("xlink:href=", "href=")
    found = re.search(r'\sid="([^"]*)"', text)
    if found and found[1] in seen:  # artists of one gid share it; HTML wants each id once
        text = text.replace(found[0], "")
    elif found:
        seen.add(found[1])
        text = text.replace(found[0], f' id="{prefix}-{found[1]}"')
    text = text.replace('href="#', f'href="#{prefix}-').replace("url(#", f"url(#{prefix}-")
    # matplotlib repeats its whole list of fonts at every text.
    return re.sub(
        r"font-family: 'DejaVu Sans'[^;\"]*", "font-family: 'DejaVu Sans', sans-serif", text
    )


def draw_all(
    runs: Mapping[str, RunLike],
    names: Sequence[str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[list[Drawing], dict[str, str]]:
    """All figures that the runs allow.

    Args:
        runs: Label -> run.
        names: Of the figures; None: all there are.
        progress: Is told which figure is being drawn.

    Returns:
        The drawings; and figure -> why not, for the others.
    """
    drawings: list[Drawing] = []
    missing: dict[str, str] = {}
    for name in figure_names() if names is None else names:
        progress(f"drawing {name}")
        found = draw(name, runs)
        if isinstance(found, str):
            missing[name] = found
        else:
            drawings.append(found)
    return drawings, missing | (LEFT_OUT if names is None else {})
