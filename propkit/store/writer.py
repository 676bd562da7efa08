"""Writing a run: what a writer does, and the writer of zarr stores.

A store is plain zarr v3. Rows are written in place into uncompressed chunks, beyond the length
that readers know of; one atomic rename of the root ``zarr.json``, whose inline consolidated metadata
holds the new lengths of all arrays, then makes them visible together. A reader sees the run before
the commit or after it, never between, and so does whoever opens the store after the process was
killed. A power failure may still lose what the operating system had not written yet. Readers that
ignore consolidated metadata see the lengths as of the last full chunk, until the run is closed.
"""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from propkit.schema import STEP, Group
from propkit.store.arrays import (
    GrowingArray,
    create_group,
    create_values,
    replace_file,
    write_coordinates,
)
from propkit.store.attributes import birth, ending, stamp, to_json
from propkit.store.hold import check_free, is_at, put_in_place, release, take
from propkit.store.root import local
from propkit.store.table import Floats, Steps, Table, defined


class Writer(Protocol):
    """Where a recorder puts its rows; used from one thread at a time.

    Nothing becomes visible to readers before `commit`, and then everything at once.
    """

    def define(self, group: Group) -> None:
        """Add a group with no rows.

        A group may be defined again with more variables, and with more sites after those there are: NaN in its
        earlier rows.

        Raises:
            ValueError: Its names or coordinates cannot be stored, or it exists and would not grow so.
        """

    def append(self, group: str, step: Steps, columns: Mapping[str, Floats]) -> None:
        """Take a copy of R rows.

        Args:
            group: Name of a group that was defined.
            step: Steps of the rows, shape (R,), increasing and larger than all before.
            columns: Variable name -> values, shape (R, S), (R, S, K) with a fixed axis of its own, (R, V) with a ragged
                one, or (R,) where the group has no sites. A variable that is left out is not available (NaN) in these
                rows.

        Raises:
            ValueError: No such group or variable, a wrong shape, steps that do not increase, or
                the run is closed.
        """

    def update(self, **attributes: object) -> None:
        """Set root attributes, visible at the next commit; see `attributes.to_json` for the values."""

    def commit(self) -> None:
        """Make everything since the last commit visible, atomically.

        Raises:
            OSError: It could not be written. Nothing has changed, neither for readers nor for the
                writer: call it again.
        """

    def close(self, state: str, reason: str = "") -> None:
        """Commit for the last time and let the store go; more calls do nothing.

        Args:
            state: How the run ended: ``"complete"``, ``"interrupted"`` or ``"failed"``.
            reason: Why, in words.

        Raises:
            ValueError: A run cannot end in that state.
            OSError: As `commit`; the run is still open and may be closed again.
        """


@dataclass
class _Entry:
    """A group of the store: the rows of the next commit, the rows committed, and its metadata."""

    table: Table
    rows: int
    fixed: dict[str, str]
    arrays: dict[str, GrowingArray]
    grown: bool = False  # in columns, since the last commit

    def write(self) -> int:
        """Write the rows of the next commit where no reader looks yet; the total after it."""
        new = self.table.view()
        if len(new.step):
            self.arrays[STEP].write(self.rows, new.step)
            for name, block in new.columns.items():
                self.arrays[name].write(self.rows, block)
        return self.rows + len(new.step)

    def rolls(self, rows: int) -> bool:
        """Whether the arrays have got new columns, or begin a new chunk on the way to that many rows.

        Wide rows have chunks of their own, which may be one row long: the longest chunk counts.
        """
        period = max((a.period for n, a in self.arrays.items() if n != STEP), default=1)
        return self.grown or self.rows // period != rows // period


class ZarrWriter:
    """Writes a run into a zarr store on a local file system (Linux, macOS); see `create`.

    Attributes:
        path: The store's directory.
    """

    def __init__(self, path: Path, attributes: dict[str, object], hold: int) -> None:
        self.path = path
        self._attributes = attributes
        self._hold: int | None = hold
        self._entries: dict[str, _Entry] = {}
        self._seq = 0

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        attributes: Mapping[str, object],
        overwrite: bool = False,
    ) -> "ZarrWriter":
        """Create a store, which appears under its name as a whole.

        Args:
            path: Directory to create; missing parents are created too.
            attributes: Root attributes of the run.
            overwrite: Replace the run that is there. Anything but a run is never replaced.

        Raises:
            FileExistsError: Something is there already; it is left as it is.
            BlockingIOError: The run to replace is being written.
            OSError: The directory cannot be created.
            ValueError: The path is a URL.
        """
        target = local(path).resolve()
        check_free(target, overwrite)
        begun = birth(attributes)
        fresh = target.with_name(f".{target.name}.{secrets.token_hex(4)}.new")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            fresh.mkdir()
        except OSError as error:
            reason = (
                f"cannot create a run in {target.parent} ({error.strerror}); choose another place"
            )
            raise OSError(error.errno, reason, str(target)) from error
        hold = None
        try:
            hold = take(fresh)
            (fresh / "zarr.json").write_text(_root({**begun, "commit": stamp(0, {})}, []))
            put_in_place(fresh, target)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            if hold is not None:
                os.close(hold)
            raise
        return cls(target, begun, hold)

    def define(self, group: Group) -> None:
        """Add a group, or variables and sites to one; see `Writer.define`."""
        self._check_place()
        entry = self._entries.get(group.name)
        if entry is None:
            table = Table(group)
            self._entries[group.name] = _Entry(table, 0, *create_group(self.path, group))
            return
        grown = entry.table.grown(group)
        fixed = write_coordinates(self.path, grown, entry.fixed)
        before = entry.table.group.variables
        added = replace(grown, variables=grown.variables[len(before) :])
        arrays = create_values(self.path, added)
        for array in arrays.values():
            array.blank(entry.rows)
        for v in before:
            if entry.arrays[v.name].row != grown.row(v):
                arrays[v.name] = entry.arrays[v.name].widened(grown.row(v), entry.rows)
        entry.arrays |= arrays
        entry.fixed, entry.grown = fixed, True
        entry.table.extend(grown)

    def append(self, group: str, step: Steps, columns: Mapping[str, Floats]) -> None:
        """Copy rows into the buffer; see `Writer.append`."""
        self._check_open()
        defined({name: e.table for name, e in self._entries.items()}, group).append(step, columns)

    def update(self, **attributes: object) -> None:
        """Set root attributes; see `Writer.update`."""
        self._check_open()
        self._attributes |= to_json(attributes)

    def commit(self) -> None:
        """Make everything appended visible, atomically; see `Writer.commit`."""
        self._commit(self._attributes, last=False)

    def close(self, state: str, reason: str = "") -> None:
        """Commit for the last time and let the store go; see `Writer.close`."""
        if self._hold is None:
            return
        self._commit({**self._attributes, **ending(state, reason)}, last=True)
        release(self._hold)
        self._hold = None

    def _commit(self, attributes: Mapping[str, object], last: bool) -> None:
        self._check_place()
        totals = {name: entry.write() for name, entry in self._entries.items()}
        for name, entry in self._entries.items():
            if last or entry.rolls(totals[name]):
                for array in entry.arrays.values():
                    replace_file(self.path, array.folder / "zarr.json", array.text(totals[name]))
        commit = stamp(self._seq + 1, {name: e.table.last for name, e in self._entries.items()})
        nodes = (
            f"{json.dumps(key)}: {text}"
            for name, entry in self._entries.items()
            for key, text in _nodes(name, entry, totals[name])
        )
        root = _root({**attributes, "commit": commit}, nodes)
        replace_file(self.path, self.path / "zarr.json", root)
        # Only now has anything happened: a commit that failed above is simply tried again.
        self._seq += 1
        for name, entry in self._entries.items():
            entry.rows, entry.grown = totals[name], False
            entry.table.clear()

    def _check_open(self) -> int:
        if self._hold is None:
            raise ValueError(f"{self.path} is closed: nothing can be added to it")
        return self._hold

    def _check_place(self) -> None:
        if not is_at(self._check_open(), self.path):
            reason = "the run was moved, deleted or replaced while it was being written"
            raise FileNotFoundError(errno.ENOENT, reason, str(self.path))


def _root(attributes: Mapping[str, object], nodes: Iterable[str]) -> str:
    return (
        '{"zarr_format": 3, "node_type": "group", '
        f'"attributes": {json.dumps(attributes, allow_nan=False)}, '
        '"consolidated_metadata": {"kind": "inline", "must_understand": false, '
        f'"metadata": {{{", ".join(nodes)}}}}}}}'
    )


def _nodes(name: str, entry: _Entry, rows: int) -> Iterable[tuple[str, str]]:
    """Path and metadata of a group and of all its arrays, one after the other as zarr expects."""
    yield from entry.fixed.items()
    for variable, array in entry.arrays.items():
        yield f"{name}/{variable}", array.text(rows)
