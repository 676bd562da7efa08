"""Writing a run into a zarr store.

A store is plain zarr v3. Rows are written in place into uncompressed chunks, beyond the length
that readers know of; one atomic rename of the root ``zarr.json``, whose inline consolidated metadata
holds the new lengths of all arrays, then makes them visible together. A reader sees the run before
the commit or after it, never between, and so does whoever opens the store after the process was
killed. Readers that ignore consolidated metadata see the lengths as of the last full chunk, until the run
is closed.

A power failure may take what the operating system had not written yet, out of the middle of a file. Rows are flushed
to the disk every few seconds, or at each commit; each says how many were, and after a restart readers trust only those.
"""

import errno
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from propkit.schema import Group
from propkit.store.arrays import (
    create_group,
    create_values,
    write_coordinates,
)
from propkit.store.attributes import birth, ending, stamp, texts, to_json
from propkit.store.entry import Entry
from propkit.store.files import replace_file
from propkit.store.hold import check_free, is_at, put_in_place, release, take
from propkit.store.pauses import pause
from propkit.store.resume import LeftRun, cut
from propkit.store.root import local
from propkit.store.sync import sync_since
from propkit.store.table import Floats, Steps, Table, defined

SYNC_SECONDS = 10.0
"""How often the rows of a run are flushed to the disk, unless they are at each commit."""


class ZarrWriter:
    """Writes a run into a zarr store on a local file system (Linux, macOS); see `create` and `resume`.

    Attributes:
        path: The store's directory.
    """

    def __init__(
        self, path: Path, attributes: Mapping[str, object], hold: int, durable: bool = False
    ) -> None:
        self.path = path
        self._attributes = texts(attributes)
        self._hold: int | None = hold
        self._entries: dict[str, Entry] = {}
        self._seq = 0
        self._generation = 0
        self._durable = durable
        self._synced = time.monotonic()
        self._mark = 0  # age of what is on the disk
        self._durable_rows: dict[str, int] = {}

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        attributes: Mapping[str, object],
        overwrite: bool = False,
        durable: bool = False,
    ) -> "ZarrWriter":
        """Create a store, which appears under its name as a whole.

        Args:
            path: Directory to create; missing parents are created too.
            attributes: Root attributes of the run.
            overwrite: Replace the run that is there. Anything but a run is never replaced.
            durable: Flush every commit to the disk before it counts, not only every `SYNC_SECONDS`.

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
            (fresh / "zarr.json").write_text(
                _root(texts({**begun, "commit": stamp(0, {}, {})}), [])
            )
            put_in_place(fresh, target)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            if hold is not None:
                os.close(hold)
            raise
        return cls(target, begun, hold, durable)

    @classmethod
    def resume(
        cls, run: LeftRun, step: int, attributes: Mapping[str, object], durable: bool = False
    ) -> "ZarrWriter":
        """Continue a run: rows of `step` and later are removed, and the next row may be that of `step`.

        Readers see the shorter run at once; one that was opened before sees NaN where the rows were.

        Args:
            run: The run, held.
            step: Where it goes on.
            attributes: Root attributes to set.
            durable: As in `create`.

        Raises:
            OSError: It could not be written. The run is as it was, or as it will be, and still held.
        """
        writer = cls(run.path, {**run.attributes, **to_json(attributes)}, run.hold, durable)
        commit = run.attributes["commit"]
        writer._seq, writer._generation = int(commit["seq"]), int(commit.get("generation", 0)) + 1
        for name, stored in run.groups.items():
            rows = int(np.searchsorted(stored.steps, step))
            entry = Entry(Table(stored.group), rows, dict(stored.fixed), dict(stored.arrays))
            entry.table.last = int(stored.steps[rows - 1]) if rows else None
            writer._entries[name] = entry
        with writer._explained():
            # The root first: whoever opens the run from here on looks for no row that is removed below.
            writer._commit(writer._attributes, last=False, sync=True)
            for name, stored in run.groups.items():
                cut(run.path, stored, writer._entries[name].rows)
        return writer

    def define(self, group: Group) -> None:
        """Add a group, or variables and sites to one; see `protocol.Writer.define`."""
        self._check_place()
        with self._explained():
            self._define(group)

    def _define(self, group: Group) -> None:
        entry = self._entries.get(group.name)
        if entry is None:
            table = Table(group)
            self._entries[group.name] = Entry(table, 0, *create_group(self.path, group))
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
        entry.fixed, entry.grown, entry.heads = fixed, True, ()
        entry.table.extend(grown)

    def append(self, group: str, step: Steps, columns: Mapping[str, Floats]) -> None:
        """Copy rows into the buffer; see `protocol.Writer.append`."""
        self._check_open()
        entry = self._entries.get(group)
        table = (
            entry.table if entry else defined({n: e.table for n, e in self._entries.items()}, group)
        )
        table.append(step, columns)

    def update(self, **attributes: object) -> None:
        """Set root attributes; see `protocol.Writer.update`."""
        self._check_open()
        self._attributes |= texts(attributes)

    def commit(self) -> None:
        """Make everything appended visible, atomically; see `protocol.Writer.commit`."""
        self._check_place()
        with self._explained():
            late = time.monotonic() - self._synced > SYNC_SECONDS
            self._commit(self._attributes, last=False, sync=self._durable or late)

    def close(self, state: str, reason: str = "") -> None:
        """Commit for the last time and let the store go; see `protocol.Writer.close`."""
        if self._hold is None:
            return
        ended = self._attributes | texts(ending(state, reason))
        self._check_place()
        with self._explained():
            late = time.monotonic() - self._synced > SYNC_SECONDS
            self._commit(ended, last=True, sync=late or self._durable or bool(self._mark))
        release(self._hold)
        self._hold = None

    def discard(self) -> None:
        """Remove a run that was created and has not begun."""
        if self._hold is not None:
            if is_at(self._hold, self.path):
                shutil.rmtree(self.path, ignore_errors=True)
            release(self._hold)
            self._hold = None

    def _commit(self, attributes: Mapping[str, str], last: bool, sync: bool) -> None:
        totals = {name: entry.write() for name, entry in self._entries.items()}
        for name, entry in self._entries.items():
            if last or entry.rolls(totals[name]):
                for array in entry.arrays.values():
                    replace_file(self.path, array.folder / "zarr.json", array.text(totals[name]))
                    pause()
        if sync:
            sync_since(self.path, self._mark)
            self._durable_rows, self._synced = totals, time.monotonic()
        last_steps = {name: entry.table.last for name, entry in self._entries.items()}
        commit = stamp(self._seq + 1, last_steps, totals, self._durable_rows, self._generation)
        nodes = (entry.nodes(totals[name]) for name, entry in self._entries.items())
        root = self.path / "zarr.json"
        text = _root({**attributes, "commit": f'"commit": {json.dumps(commit)}'}, nodes)
        pause()
        replace_file(self.path, root, text, durable=sync)
        pause()
        # Only now has anything happened: a commit that failed above is simply tried again.
        self._seq += 1
        for name, entry in self._entries.items():
            entry.rows, entry.grown = totals[name], False
            entry.table.clear()
        if sync:
            self._mark = root.stat().st_mtime_ns

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say of an error of the file system which run it meets, and what can be done."""
        try:
            yield
        except OSError as error:
            remedy = _REMEDIES.get(error.errno or 0, "see to the file system that holds it")
            reason = f"the run cannot be written ({error.strerror or error}); {remedy}"
            raise OSError(error.errno or errno.EIO, reason, str(self.path)) from error

    def _check_open(self) -> int:
        if self._hold is None:
            raise ValueError(f"{self.path} is closed: nothing can be added to it")
        return self._hold

    def _check_place(self) -> None:
        if not is_at(self._check_open(), self.path):
            reason = "the run was moved, deleted or replaced while it was being written"
            raise FileNotFoundError(errno.ENOENT, reason, str(self.path))


_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, the quota is used up",
    errno.EROFS: "the file system is read-only, choose another place",
    errno.EACCES: "make the directory writable, or choose another place",
    errno.ENOENT: "something else removes files from it",
}


def _root(attributes: Mapping[str, str], nodes: Iterable[str]) -> str:
    return (
        '{"zarr_format": 3, "node_type": "group", '
        f'"attributes": {{{", ".join(attributes.values())}}}, '
        '"consolidated_metadata": {"kind": "inline", "must_understand": false, '
        f'"metadata": {{{", ".join(nodes)}}}}}}}'
    )
