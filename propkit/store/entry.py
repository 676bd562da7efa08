"""A group of a store while it is written: its rows to come, and where they go."""

import json
from dataclasses import dataclass
from operator import add

from propkit.schema import STEP
from propkit.store.arrays import GrowingArray
from propkit.store.pauses import pause
from propkit.store.table import Table


@dataclass
class Entry:
    """A group of the store: the rows of the next commit, the rows committed, and its metadata."""

    table: Table
    rows: int
    fixed: dict[str, str]
    arrays: dict[str, GrowingArray]
    grown: bool = False  # in columns, since the last commit
    heads: tuple[
        str, ...
    ] = ()  # of the metadata, what the number of rows does not change; empty: to be made

    def nodes(self, rows: int) -> str:
        """Paths and metadata of the group and of all its arrays, one after the other as zarr expects."""
        if not self.heads:
            name = self.table.group.name
            fixed = ", ".join(f"{json.dumps(key)}: {text}" for key, text in self.fixed.items())
            heads = (f", {json.dumps(f'{name}/{variable}')}: " for variable in self.arrays)
            self.heads = (fixed, *heads)
        fixed, *paths = self.heads
        return fixed + "".join(map(add, paths, (a.text(rows) for a in self.arrays.values())))

    def write(self) -> int:
        """Write the rows of the next commit where no reader looks yet; the total after it."""
        new = self.table.view()
        if len(new.step):
            self.arrays[STEP].write(self.rows, new.step)
            for name, block in new.columns.items():
                self.arrays[name].write(self.rows, block)
                pause()
        return self.rows + len(new.step)

    def rolls(self, rows: int) -> bool:
        """Whether the arrays have got new columns, or begin a new chunk on the way to that many rows.

        Wide rows have chunks of their own, which may be one row long: the longest chunk counts.
        """
        period = max((a.period for n, a in self.arrays.items() if n != STEP), default=1)
        return self.grown or self.rows // period != rows // period
