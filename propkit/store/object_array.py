"""An array of a run in an object store, as it grows."""

import re
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from propkit.schema import Group, Variable
from propkit.store.arrays import chunk_shape
from propkit.store.packing import Encoder, object_node

SMALLER = 4
"""How many times fewer rows a chunk has than on a disk: the last one is put again with each flush."""


@dataclass
class ObjectArray:
    """An array that grows by whole chunks, the last of which is put anew with each flush.

    Attributes:
        node: Its metadata.
        encoder: What gives the bytes of its chunks.
        tail: The rows of its last row of chunks, unless that is full.
    """

    node: dict[str, Any]
    encoder: Encoder
    tail: npt.NDArray[np.generic]

    @classmethod
    def of(
        cls, dims: tuple[str, ...], row: tuple[int, ...], dtype: str, **marks: Any
    ) -> "ObjectArray":
        """An array without rows."""
        period, *inner = chunk_shape(row, dtype)
        chunks = [max(1, period // SMALLER), *inner]
        return cls.at(
            object_node([0, *row], chunks, dtype, dims, **marks), np.empty((0, *row), dtype)
        )

    @classmethod
    def at(cls, node: dict[str, Any], tail: npt.NDArray[np.generic]) -> "ObjectArray":
        """An array that has rows.

        Its empty chunks are put too: under their names there may be what a writer left that was taken over.
        """
        return cls(node, Encoder(node, empty=True), tail)

    @classmethod
    def blank(cls, group: Group, variable: Variable, rows: int) -> "ObjectArray":
        """The array of a variable that comes when the group has rows already: NaN in them."""
        row = group.row(variable)
        array = cls.of(group.dims(variable), row, variable.dtype, **variable.attributes())
        tail = np.full((rows % array.period, *row), np.nan, variable.dtype)
        return replace(array, node={**array.node, "shape": [rows, *row]}, tail=tail)

    @property
    def period(self) -> int:
        """Rows of a chunk."""
        rows: int = self.node["chunk_grid"]["configuration"]["chunk_shape"][0]
        return rows

    def widened(self, row: tuple[int, ...]) -> "ObjectArray":
        """The array with wider rows: NaN in the new columns."""
        node = {**self.node, "shape": [self.node["shape"][0], *row]}
        tail = np.full((len(self.tail), *row), np.nan, self.tail.dtype)
        tail[:, : self.tail.shape[1]] = self.tail
        return ObjectArray.at(node, tail)

    def empty(self, columns: int) -> dict[str, bytes]:
        """Chunks of all rows so far in columns that come after the first `columns`."""
        shape = self.node["shape"]
        inner = self.node["chunk_grid"]["configuration"]["chunk_shape"][1:]
        first = ceil(columns / inner[0]) if inner else 0
        chunks: dict[str, bytes] = {}
        for start in range(0, shape[0], self.period):
            rows = min(self.period, shape[0] - start)
            block = np.full((rows, *shape[1:]), np.nan, self.tail.dtype)
            for key, data in self.encoder.encode(start, block).items():
                place = re.split("[/.]", key)[1:]
                if not inner or int(place[1]) >= first:
                    chunks[key] = data
        return chunks

    def grown(self, block: npt.NDArray[np.generic]) -> tuple["ObjectArray", dict[str, bytes]]:
        """The array with more rows, and the chunks that they change."""
        if not len(block):
            return self, {}
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
