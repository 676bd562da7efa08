"""The writer of runs elsewhere: on S3, Google, Azure, and wherever obstore or fsspec write.

Objects cannot be written in place. A flush puts the last chunk of each array anew, with the rows that have come, all at
once; when all are there, it puts the root metadata with the new lengths. A reader sees the run before that or after it.
"""

import errno
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from propkit.schema import STEP, Group, Variable
from propkit.store.attributes import birth, ending, stamp, to_json
from propkit.store.object_array import ObjectArray
from propkit.store.object_resume import LeftObjects
from propkit.store.objects import ROOT, Objects
from propkit.store.packing import Encoder, grows, value_node
from propkit.store.table import STEP_ATTRIBUTES, TEXT, Floats, Steps, Table, defined


@dataclass
class _Entry:
    """A group: the rows of the next commit, the metadata of what seldom changes, the arrays that grow."""

    table: Table
    fixed: dict[str, dict[str, Any]]
    arrays: dict[str, ObjectArray]
    waiting: dict[str, bytes] = field(default_factory=dict)  # to be put with the next commit


class ObjectWriter:
    """Writes a run into an object store; see `create` and `propkit.store.writer.Writer`.

    Attributes:
        objects: The store.
    """

    def __init__(self, objects: Objects, attributes: dict[str, object]) -> None:
        self.objects = objects
        self._attributes = attributes
        self._entries: dict[str, _Entry] = {}
        self._seq = 0
        self._generation = 0
        self._closed = False

    @classmethod
    def create(
        cls, target: Any, attributes: Mapping[str, object], overwrite: bool = False
    ) -> "ObjectWriter":
        """Create a run.

        Args:
            target: A URL, or a store of zarr's or obstore's.
            attributes: Root attributes of the run.
            overwrite: Replace the run that is there. On a store with conditional puts, a writer that is still at it is
                refused from then on.

        Raises:
            FileExistsError: Something is there already.
            ImportError: A package is missing; the message names the extra.
            OSError: It cannot be written.
            TypeError, ValueError: As `propkit.open`.
        """
        objects = Objects.at(target)
        objects.make_room(overwrite)
        writer = cls(objects, birth(attributes))
        objects.create_root(writer._root(writer._attributes, 0, {}))
        return writer

    @classmethod
    def resume(
        cls, run: LeftObjects, step: int, attributes: Mapping[str, object]
    ) -> "ObjectWriter":
        """Continue a run: rows of `step` and later are removed, and the next row may be that of `step`.

        Readers see the shorter run at once; what one that was opened before sees of the rows that were removed may be
        they, or NaN, or new ones.

        Args:
            run: The run.
            step: Where it goes on.
            attributes: Root attributes to set.

        Raises:
            BlockingIOError: Someone else has just taken it up, or goes on writing it.
            OSError: It could not be written. The run is as it was, or as it will be.
        """
        writer = cls(run.objects, {**run.attributes, **to_json(attributes)})
        commit = run.attributes["commit"]
        writer._seq, writer._generation = int(commit["seq"]), int(commit.get("generation", 0)) + 1
        for name, stored in run.groups.items():
            rows = int(np.searchsorted(stored.steps, step))
            entry = _Entry(Table(stored.group), {}, {})
            entry.table.last = int(stored.steps[rows - 1]) if rows else None
            for key, node in stored.nodes.items():
                if not grows(node):
                    entry.fixed[key] = node
                    continue
                cut = {**node, "shape": [rows, *node["shape"][1:]]}
                tail = stored.tail(run.objects, key, rows)
                entry.arrays[key.removeprefix(f"{name}/")] = ObjectArray.at(cut, tail)
            writer._entries[name] = entry
        try:
            # The root first: whoever opens the run from here on looks for no row that is removed below.
            writer._commit(writer._attributes, last=False)
        except FileNotFoundError as error:
            reason = "someone else has just continued, replaced or deleted the run"
            raise BlockingIOError(errno.EWOULDBLOCK, reason, run.name) from error
        # For readers that ignore the consolidated metadata. Chunks beyond stay, unseen, until they are put anew: to
        # delete them is to meet those of whoever takes the run over meanwhile.
        nodes = (
            (f"{n}/{v}", a.node) for n, e in writer._entries.items() for v, a in e.arrays.items()
        )
        run.objects.put({f"{key}/{ROOT}": json.dumps(node).encode() for key, node in nodes})
        return writer

    def define(self, group: Group) -> None:
        """Add a group, or variables and sites to one; see `Writer.define`."""
        self._check_open()
        entry = self._entries.get(group.name)
        if entry is None:
            step = ObjectArray.of((STEP,), (), "int64", **STEP_ATTRIBUTES)
            entry = _Entry(Table(group), {}, {STEP: step})
            self._entries[group.name] = entry
            added = group.variables
        else:
            grown = entry.table.grown(group)
            before = entry.table.group.variables
            added = grown.variables[len(before) :]
            for v in before:
                columns = entry.arrays[v.name].node["shape"][1:]
                if columns != [*grown.row(v)]:
                    entry.arrays[v.name] = entry.arrays[v.name].widened(grown.row(v))
                    self._empty(entry, v, columns[0])
            entry.table.extend(grown)
            group = grown
        rows = entry.arrays[STEP].node["shape"][0]
        for v in added:
            entry.arrays[v.name] = ObjectArray.blank(group, v, rows)
            self._empty(entry, v, 0)
        entry.waiting |= _coordinates(group, entry.fixed)

    def _empty(self, entry: _Entry, variable: Variable, columns: int) -> None:
        """Put what is new in earlier rows: a flush before a takeover, never committed, may have left values there."""
        if self._generation:
            key = f"{entry.table.group.name}/{variable.name}"
            chunks = entry.arrays[variable.name].empty(columns)
            entry.waiting |= {f"{key}/{name}": data for name, data in chunks.items()}

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
        self._check_open()
        self._commit(self._attributes, last=False)

    def close(self, state: str, reason: str = "") -> None:
        """Commit for the last time; see `Writer.close`."""
        if self._closed:
            return
        self._commit({**self._attributes, **ending(state, reason)}, last=True)
        self._closed = True

    def discard(self) -> None:
        """Remove a run that was created and has not begun."""
        if not self._closed:
            self.objects.check()
            self.objects.remove()
            self._closed = True

    def _commit(self, attributes: Mapping[str, object], last: bool) -> None:
        self.objects.check()
        puts: dict[str, bytes] = {}
        grown: dict[str, dict[str, ObjectArray]] = {}
        for name, entry in self._entries.items():
            new = entry.table.view()
            puts |= entry.waiting
            grown[name] = {}
            for variable, block in {STEP: new.step, **new.columns}.items():
                array, chunks = entry.arrays[variable].grown(block)
                grown[name][variable] = array
                puts |= {f"{name}/{variable}/{key}": data for key, data in chunks.items()}
                if last or entry.waiting:  # for readers that ignore the consolidated metadata
                    puts[f"{name}/{variable}/{ROOT}"] = json.dumps(array.node).encode()
        if puts:
            self.objects.put(puts)
        self.objects.replace_root(self._root(attributes, self._seq + 1, grown))
        # Only now has anything happened: a commit that failed above is simply tried again.
        self._seq += 1
        for name, entry in self._entries.items():
            entry.arrays, entry.waiting = grown[name], {}
            entry.table.clear()

    def _root(
        self,
        attributes: Mapping[str, object],
        seq: int,
        grown: Mapping[str, dict[str, ObjectArray]],
    ) -> bytes:
        nodes: dict[str, Any] = {}
        for name, entry in self._entries.items():
            nodes |= entry.fixed
            nodes |= {f"{name}/{variable}": array.node for variable, array in grown[name].items()}
        last = {name: e.table.last for name, e in self._entries.items()}
        commit = stamp(seq, last, generation=self._generation)
        root = {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": {**attributes, "commit": commit},
            "consolidated_metadata": {
                "kind": "inline",
                "must_understand": False,
                "metadata": nodes,
            },
        }
        return json.dumps(root, allow_nan=False).encode()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"{self.objects.name} is closed: nothing can be added to it")


def _coordinates(group: Group, fixed: dict[str, dict[str, Any]]) -> dict[str, bytes]:
    """The objects of a group's coordinates; their metadata go into `fixed`.

    Coordinates that were there keep the length of their chunks, so that readers may go on.
    """
    found = group.coordinates()
    attributes = to_json(group.attributes)
    auxiliary = " ".join(name for name, coordinate in found.items() if name != coordinate.dim)
    if auxiliary:
        attributes["coordinates"] = auxiliary  # CF: xarray makes these coordinates, not variables
    own = {"attributes": attributes, "zarr_format": 3, "node_type": "group"}
    inline = {"kind": "inline", "must_understand": False, "metadata": {}}
    puts = {f"{group.name}/{ROOT}": json.dumps(own).encode()}
    fixed[group.name] = {**own, "consolidated_metadata": inline}
    for name, (dim, values, marks) in found.items():
        key = f"{group.name}/{name}"
        chunk = len(values)
        if key in fixed:
            (chunk,) = fixed[key]["chunk_grid"]["configuration"]["chunk_shape"]
        text = values.dtype.kind in TEXT
        node = value_node(len(values), chunk, None if text else values.dtype, dim, marks)
        fixed[key] = node
        chunks = Encoder(node).encode(0, values.astype(object) if text else values)
        puts |= {f"{key}/{name}": data for name, data in chunks.items()}
        puts[f"{key}/{ROOT}"] = json.dumps(node).encode()
    return puts
