"""One table, three ways to show it: plain text, HTML in a notebook, `rich` in a terminal."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

_SHOWN = 24
"""Rows that the plain text shows, half of them from each end."""


@dataclass(frozen=True)
class Sheet:
    """A table ready to be shown; everything in it is text, none of it trusted.

    Attributes:
        headline: One line above the table.
        columns: Titles of the columns.
        rows: Cells, as many per row as there are columns.
        colors: A color per row (a name that both rich and CSS know), "" for none; of one of its cells.
        numeric: Which columns are aligned to the right.
        remarks: Lines below the table.
        ranks: A number per column: 0 is always shown; the higher, the sooner a narrow terminal does without it. By
            default the first and the last column are always shown.
        colored: Which cell of a row has its color.
        elsewhere: Where the reader finds what a narrow terminal leaves out.
    """

    headline: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    colors: Sequence[str]
    numeric: Sequence[bool]
    remarks: Sequence[str] = ()
    ranks: Sequence[int] = ()
    colored: int = -1
    elsewhere: str = ""

    def importance(self) -> Sequence[int]:
        """The rank of each column."""
        last = len(self.columns) - 1
        return self.ranks or [0 if i in (0, last) else i for i in range(len(self.columns))]

    def text(self) -> str:
        """Plain text; a long table is shortened in the middle.

        >>> print(Sheet("two layers", ["site", "value"], [["a", "1"], ["b", "10"]], ["", ""], [False, True]).text())
        two layers
          site  value
          a         1
          b        10
        """
        rows = [list(self.columns), *map(list, self.rows)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.columns))]
        lines = []
        for row in rows:
            cells = (
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(row, widths, self.numeric, strict=True)
            )
            lines.append(("  " + "  ".join(cells)).rstrip())
        if len(lines) > _SHOWN + 1:
            left_out = len(lines) - 1 - _SHOWN
            middle = f"  ... {left_out} more rows: .print() shows all"
            lines = [*lines[: _SHOWN // 2 + 1], middle, *lines[-_SHOWN // 2 :]]
        return "\n".join([self.headline, *lines, *(f"  - {r}" for r in self.remarks)])

    def html(self) -> str:
        """HTML that stands for itself, every text escaped."""
        head = "".join(f"<th>{html.escape(c)}</th>" for c in self.columns)
        body = []
        for row, color in zip(self.rows, self.colors, strict=True):
            cells = [
                f'<td style="text-align:{"right" if right else "left"}">{html.escape(cell)}</td>'
                for cell, right in zip(row, self.numeric, strict=True)
            ]
            if color and cells:
                i = self.colored % len(row)
                cells[i] = f'<td style="text-align:left;color:{color}">{html.escape(row[i])}</td>'
            body.append(f"<tr>{''.join(cells)}</tr>")
        remarks = "".join(f"<li>{html.escape(r)}</li>" for r in self.remarks)
        return (
            f'<div><b>{html.escape(self.headline)}</b><div style="max-height:40em;overflow:auto">'
            f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
            + (f"<ul>{remarks}</ul>" if remarks else "")
            + "</div>"
        )

    def rich(self) -> "RenderableType":
        """A renderable for `rich`, which fits the width of the terminal."""
        from propkit.diagnosis.terminal import Fitted

        return Fitted(self)


def number(value: float) -> str:
    """A number for a cell: three digits, empty for NaN."""
    return "" if value != value else f"{value:.3g}"
