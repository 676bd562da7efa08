"""The writer that keeps a whole run in memory."""

from collections.abc import Mapping
from dataclasses import dataclass

from propkit.schema import Group
from propkit.store.attributes import birth, ending, stamp, to_json
from propkit.store.table import Floats, Rows, Steps, Table, defined


@dataclass(frozen=True)
class Snapshot:
    """A run as it was at one commit: root attributes and the rows of each group."""

    attributes: dict[str, object]
    tables: dict[str, Rows]


class MemoryWriter:
    """Keeps a run in NumPy arrays; what a recorder writes to when no store is given.

    Args:
        attributes: Root attributes of the run.
    """

    def __init__(self, attributes: Mapping[str, object]) -> None:
        self._attributes = birth(attributes)
        self._tables: dict[str, Table] = {}
        self._seq = -1
        self._closed = False
        self._snapshot = Snapshot({}, {})
        self.commit()

    @property
    def snapshot(self) -> Snapshot:
        """The run at the last commit; safe to read from another thread."""
        return self._snapshot

    def define(self, group: Group) -> None:
        """Add a group, or variables and sites to one; see `protocol.Writer.define`."""
        self._check_open()
        if group.name in self._tables:
            table = self._tables[group.name]
            table.extend(table.grown(group))
        else:
            self._tables[group.name] = Table(group)

    def append(self, group: str, step: Steps, columns: Mapping[str, Floats]) -> None:
        """Copy rows in; see `protocol.Writer.append`."""
        self._check_open()
        defined(self._tables, group).append(step, columns)

    def update(self, **attributes: object) -> None:
        """Set root attributes; see `protocol.Writer.update`."""
        self._check_open()
        self._attributes |= to_json(attributes)

    def commit(self) -> None:
        """Make everything appended visible at once; see `protocol.Writer.commit`."""
        self._check_open()
        self._seq += 1
        commit = stamp(self._seq, {name: table.last for name, table in self._tables.items()})
        tables = {name: table.view() for name, table in self._tables.items()}
        # One assignment: a reader in another thread sees the old commit or the new one.
        self._snapshot = Snapshot({**self._attributes, "commit": commit}, tables)

    def close(self, state: str, reason: str = "") -> None:
        """Commit for the last time; see `protocol.Writer.close`."""
        if self._closed:
            return
        self._attributes |= ending(state, reason)
        self.commit()
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the run is closed: nothing can be added to it")
