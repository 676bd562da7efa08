"""A table at the width of a terminal: what matters most is shown, numbers are whole, and what is left out is named."""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from propkit.diagnosis.render import Sheet

_GAP = 2
_WIDE = 30
"""Texts beyond this are broken before a column is left out for them."""
_NARROW = 8
"""Texts are not broken to less."""


class Fitted:
    """A sheet that `rich` shows at whatever width there is; markup in its texts is shown as it is."""

    def __init__(self, sheet: "Sheet") -> None:
        self._sheet = sheet

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        sheet = self._sheet
        widths = column_widths(sheet, options.max_width)
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for i, width in widths.items():
            right = sheet.numeric[i]
            title = Text(broken(sheet.columns[i], width))
            table.add_column(
                title, justify="right" if right else "left", width=width, overflow="fold"
            )
        for row, color in zip(sheet.rows, sheet.colors, strict=True):
            cells = {i: Text(broken(row[i], width)) for i, width in widths.items()}
            if color and (colored := sheet.colored % len(row)) in cells:
                cells[colored].stylize(color)
            table.add_row(*cells.values())
        yield Text(sheet.headline, style="bold")
        yield table
        for remark in (*sheet.remarks, *_what_is_left_out(sheet, widths, options.max_width)):
            yield Text(f"- {remark}")


def column_widths(sheet: "Sheet", width: int) -> Mapping[int, int]:
    """Columns that are shown -> their widths, in the order of the columns.

    Titles are broken, and long texts, before a column is left out; what room is then left over unbreaks them.
    """
    natural = [_natural(sheet, i) for i in range(len(sheet.columns))]
    ranks = sheet.importance()
    by_rank = sorted(range(len(ranks)), key=lambda i: ranks[i])
    widths: dict[int, int] = {}
    left = width + _GAP
    for i in by_rank:
        least = _least(sheet, i)
        if ranks[i] == 0 or least + _GAP <= left:
            widths[i] = least
            left -= least + _GAP
    # Only what is never left out can be too wide.
    for i in sorted(widths, key=lambda i: -widths[i]):
        if left < 0 and not sheet.numeric[i]:
            less = min(-left, max(widths[i] - _NARROW, 0))
            widths[i] -= less
            left += less
    for i in by_rank:
        if i in widths and left > 0:
            more = min(left, natural[i] - widths[i])
            widths[i] += more
            left -= more
    return {i: widths[i] for i in sorted(widths)}


def broken(text: str, width: int) -> str:
    """The text in lines of at most that width where spaces, dots and underscores allow it.

    >>> broken("layer1.0.conv1", 9).split()
    ['layer1.0.', 'conv1']
    """
    if cell_len(text) <= width:
        return text
    lines = [""]
    for piece in _pieces(text):
        if lines[-1] and cell_len((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def _pieces(text: str) -> list[str]:
    return re.findall(r"[^ ._]*[ ._]|[^ ._]+", text)


def _natural(sheet: "Sheet", i: int) -> int:
    return max(cell_len(text) for text in (sheet.columns[i], *(row[i] for row in sheet.rows)))


def _least(sheet: "Sheet", i: int) -> int:
    cells = max((cell_len(row[i]) for row in sheet.rows), default=0)
    title = max((cell_len(piece.rstrip()) for piece in _pieces(sheet.columns[i])), default=0)
    return max(title, cells if sheet.numeric[i] else min(cells, _WIDE))


def _what_is_left_out(sheet: "Sheet", shown: Mapping[int, int], width: int) -> Iterator[str]:
    names = [title for i, title in enumerate(sheet.columns) if i not in shown]
    if names:
        enough = sum(_least(sheet, i) + _GAP for i in range(len(sheet.columns))) - _GAP
        where = f", and {sheet.elsewhere} has them" if sheet.elsewhere else ""
        yield (
            f"left out at {width} columns: {', '.join(names)}; {enough} columns show all (in a pipe: COLUMNS={enough})"
            f"{where}"
        )
