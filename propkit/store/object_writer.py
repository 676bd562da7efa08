"""The writer of runs elsewhere: on S3, Google, Azure, and wherever obstore or fsspec write.

Objects cannot be written in place. A flush puts the last chunk of each array anew, with the rows that have come, all at
once; when all are there, it puts the root metadata with the new lengths. A reader sees the run before that or after it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from propkit.schema import STEP, Group, Variable
from propkit.store.arrays import chunk_shape
from propkit.store.attributes import birth, ending, stamp, to_json
from propkit.store.objects import ROOT, Objects
from propkit.store.packing import Encoder, object_node, value_node
from propkit.store.table import STEP_ATTRIBUTES, TEXT, Floats, Steps, Table, defined

SMALLER = 4
"""How many times fewer rows a chunk has than on a disk: the last one is put again with each flush."""


@dataclass
class _Array:
    """An array that grows: its metadata, and the rows of its last chunk."""

    node: dict[str, Any]
    encoder: Encoder
    tail: npt.NDArray[np.generic]

    @classmethod
    def of(cls, dims: tuple[str, ...], row: tuple[int, ...], dtype: str, **marks: Any) -> "_Array":
        period, *inner = chunk_shape(row, dtype)
        chunks = [max(1, period // SMALLER), *inner]
        node = object_node([0, *row], chunks, dtype, dims, **marks)
        return cls(node, Encoder(node), np.empty((0, *row), dtype))

    @property
    def period(self) -> int:
        rows: int = self.node["chunk_grid"]["configuration"]["chunk_shape"][0]
        return rows

    def widened(self, row: tuple[int, ...]) -> "_Array":
        """The array with wider rows: NaN in the new columns."""
        node = {**self.node, "shape": [self.node["shape"][0], *row]}
        tail = np.full((len(self.tail), *row), np.nan, self.tail.dtype)
        tail[:, : self.tail.shape[1]] = self.tail
        return _Array(node, Encoder(node), tail)

    def grown(self, block: npt.NDArray[np.generic]) -> tuple["_Array", dict[str, bytes]]:
        """The array with more rows, and the chunks that they change."""
        tail = np.concatenate([self.tail, block.astype(self.tail.dtype)])
        start = self.node["shape"][0] - len(self.tail)
        stop = start + len(tail)
        chunks: dict[str, bytes] = {}
        for first in range(0, len(tail), self.period):
            part = tail[first : first + self.period]
            chunks |= self.encoder.encode(start + first, part)
        node = {**self.node, "shape": [stop, *self.node["shape"][1:]]}
        rest = len(tail) % self.period
        return replace(self, node=node, tail=tail[len(tail) - rest :].copy()), chunks


@dataclass
class _Entry:
    """A group: the rows of the next commit, the metadata of what seldom changes, the arrays that grow."""

    table: Table
    fixed: dict[str, dict[str, Any]]
    arrays: dict[str, _Array]
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

    def define(self, group: Group) -> None:
        """Add a group, or variables and sites to one; see `Writer.define`."""
        self._check_open()
        entry = self._entries.get(group.name)
        if entry is None:
            step = _Array.of((STEP,), (), "int64", **STEP_ATTRIBUTES)
            entry = _Entry(Table(group), {}, {STEP: step})
            self._entries[group.name] = entry
            added = group.variables
        else:
            grown = entry.table.grown(group)
            before = entry.table.group.variables
            added = grown.variables[len(before) :]
            for v in before:
                if entry.arrays[v.name].node["shape"][1:] != [*grown.row(v)]:
                    entry.arrays[v.name] = entry.arrays[v.name].widened(grown.row(v))
            entry.table.extend(grown)
            group = grown
        rows = entry.arrays[STEP].node["shape"][0]
        for v in added:
            entry.arrays[v.name] = _blank(group, v, rows)
        entry.waiting |= _coordinates(group, entry.fixed)

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

    def _commit(self, attributes: Mapping[str, object], last: bool) -> None:
        puts: dict[str, bytes] = {}
        grown: dict[str, dict[str, _Array]] = {}
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
        self, attributes: Mapping[str, object], seq: int, grown: Mapping[str, dict[str, _Array]]
    ) -> bytes:
        nodes: dict[str, Any] = {}
        for name, entry in self._entries.items():
            nodes |= entry.fixed
            nodes |= {f"{name}/{variable}": array.node for variable, array in grown[name].items()}
        commit = stamp(seq, {name: e.table.last for name, e in self._entries.items()})
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


def _blank(group: Group, variable: Variable, rows: int) -> _Array:
    """The array of a variable that comes when the group has rows already: NaN in them."""
    row = group.row(variable)
    array = _Array.of(group.dims(variable), row, variable.dtype, **variable.attributes())
    tail = np.full((rows % array.period, *row), np.nan, variable.dtype)
    return replace(array, node={**array.node, "shape": [rows, *row]}, tail=tail)


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
