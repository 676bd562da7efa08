"""The arrays of a store: described by zarr, written in place."""

import functools
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, log2, prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from propkit.schema import STEP, Group
from propkit.store.attributes import to_json
from propkit.store.files import replace_file, write_at
from propkit.store.pauses import pause
from propkit.store.table import STEP_ATTRIBUTES, TEXT

COMPACT = (",", ":")
"""Separators of JSON that is written at each commit."""

CHUNK_BYTES = 1 << 20
"""About what a chunk holds: enough for fast reading, little enough to be read for a few rows."""

LONGEST_CHUNK = 1 << 16
"""Rows of a chunk at most."""

WIDEST_ROW = 1 << 22
"""Bytes of a row that one chunk takes whole; of wider ones, a reader of one site need not read all."""


@dataclass(frozen=True)
class GrowingArray:
    """An array that grows in rows, now and then in columns: where its chunks lie, and its metadata without the shape.

    Attributes:
        folder: Where the chunks lie.
        dtype: Little-endian.
        row: Shape of a row.
        period: Rows of a chunk.
        columns: Columns of a chunk, along the first axis of a row; those added later go to chunks of their own.
        metadata: What zarr.json holds, but for the shape.
    """

    folder: Path
    dtype: str
    row: tuple[int, ...]
    period: int
    columns: int
    metadata: str

    def text(self, rows: int) -> str:
        """The array's metadata once it has that many rows."""
        return f'{{"shape": [{rows}{self._rest}'

    def write(self, start: int, block: npt.NDArray[np.generic], column: int = 0) -> None:
        """Put rows `start`, `start` + 1, ... where zarr looks for them; only the chunks from `column` on."""
        data = np.ascontiguousarray(block, self.dtype)
        stop = start + len(data)
        for chunk in range(start // self.period, -(-stop // self.period)):
            origin = chunk * self.period
            first, last = max(start, origin), min(stop, origin + self.period)
            for name, part in self._parts(data[first - start : last - start], column):
                width = part.nbytes // len(part)
                # A new chunk gets its full size at once (a sparse file): zarr decodes whole chunks.
                size = self.period * width if first == origin else None
                write_at(f"{self._chunks}{chunk}{name}", part, (first - origin) * width, size)

    def widened(self, row: tuple[int, ...], rows: int) -> "GrowingArray":
        """The array with wider rows, `rows` of which are there: NaN in the new columns."""
        wider = replace(self, row=row)
        wider.blank(rows, ceil(self.row[0] / self.columns))
        return wider

    def blank(self, rows: int, column: int = 0) -> None:
        """Fill the chunks that row `rows` goes to with NaN, from that column of chunks on; those not there mean NaN."""
        if begun := rows % self.period:
            blank = np.full((self.period, *self.row), np.nan, self.dtype)
            self.write(rows - begun, blank, column)

    def cut(self, rows: int, beyond: int) -> None:
        """Remove rows from `rows` on, of which `beyond` - `rows` were written, and columns that it has not."""
        last = -(-rows // self.period)
        names = self._names
        for file in self.folder.glob("c.*"):
            chunk, _, name = file.name.removeprefix("c.").partition(".")
            if int(chunk) >= last or (f".{name}" if name else "") not in names:
                file.unlink()
        if not rows % self.period:
            return
        inner = (self.columns, *self.row[1:]) if self.row else ()
        fill = np.nan if np.dtype(self.dtype).kind == "f" else 0
        for name in names:
            file = self.folder / f"c.{last - 1}{name}"
            start = rows - (last - 1) * self.period
            stop = min(beyond - (last - 1) * self.period, self.period)
            if not file.exists():  # it means NaN, also in the rows before
                start, stop = 0, self.period
            blank = np.full((max(0, stop - start), *inner), fill, self.dtype)
            if len(blank):
                write_at(str(file), blank, start * blank[0].nbytes, None)

    @functools.cached_property
    def _rest(self) -> str:
        """The array's metadata after the number of rows."""
        return "".join(f", {n}" for n in self.row) + f"], {self.metadata}"

    @functools.cached_property
    def _chunks(self) -> str:
        """How the paths of the chunks begin."""
        return f"{self.folder}/c."

    @functools.cached_property
    def _names(self) -> list[str]:
        """Ends of the names of the chunks that hold one row."""
        if not self.row:
            return [""]
        rest = ".0" * (len(self.row) - 1)
        return [f".{i}{rest}" for i in range(ceil(self.row[0] / self.columns))]

    def _parts(
        self, rows: npt.NDArray[np.generic], column: int
    ) -> Iterator[tuple[str, npt.NDArray[np.generic]]]:
        """End of the chunk's name, and what it holds of the rows: all its columns, NaN beyond those there are."""
        if not self.row or self.columns == self.row[0]:
            yield from ((name, rows) for name in self._names[column:])
            return
        for i, name in list(enumerate(self._names))[column:]:
            part = rows[:, i * self.columns : (i + 1) * self.columns]
            if part.shape[1] < self.columns:
                whole = np.full((len(rows), self.columns, *self.row[1:]), np.nan, self.dtype)
                whole[:, : part.shape[1]] = part
                part = whole
            yield name, np.ascontiguousarray(part)


def rows_per_chunk(width: int, itemsize: int = 8) -> int:
    """Rows of a chunk: the power of two that brings it closest to `CHUNK_BYTES`.

    >>> [rows_per_chunk(width) for width in (1, 44, 1000, 400_000)]
    [65536, 4096, 128, 1]
    """
    return min(LONGEST_CHUNK, 1 << max(0, round(log2(CHUNK_BYTES / (itemsize * width)))))


def chunk_shape(row: Sequence[int], dtype: npt.DTypeLike) -> tuple[int, ...]:
    """Shape of a chunk into which rows of that shape are written; the first number is that of its rows."""
    itemsize = np.dtype(dtype).itemsize
    bytes_each = itemsize * prod(row[1:])
    columns = row[0] if row else 1
    if columns * bytes_each > WIDEST_ROW:
        columns = max(1, CHUNK_BYTES // bytes_each)
    inner = (columns, *row[1:]) if row else ()
    return (rows_per_chunk(prod(inner), itemsize), *inner)


def create_group(path: Path, group: Group) -> tuple[dict[str, str], dict[str, GrowingArray]]:
    """Create the group, its coordinates and its empty arrays, in place of what may be there.

    Returns:
        Path -> metadata of what seldom changes, and variable -> array that grows.
    """
    folder = path / group.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    fixed = write_coordinates(path, group, {})
    step = _create_array(folder / STEP, STEP_ATTRIBUTES, (STEP,), (), np.dtype(np.int64), 0)
    return fixed, {STEP: step, **create_values(path, group)}


def write_coordinates(path: Path, group: Group, before: Mapping[str, str]) -> dict[str, str]:
    """Write the group's coordinates; those that were there keep their first chunks, so that readers may go on.

    Args:
        path: The store.
        group: The group.
        before: What this returned for the group when it was smaller.

    Returns:
        Path -> metadata as it stands in the root, of the group and of its coordinates.
    """
    found = group.coordinates()
    attributes = to_json(group.attributes)
    auxiliary = " ".join(name for name, coordinate in found.items() if name != coordinate.dim)
    if auxiliary:
        attributes["coordinates"] = auxiliary  # CF: xarray makes these coordinates, not variables
    own = {"attributes": attributes, "zarr_format": 3, "node_type": "group"}
    inline = {"kind": "inline", "must_understand": False, "metadata": {}}
    fixed = {group.name: json.dumps({**own, "consolidated_metadata": inline})}
    replace_file(path, path / group.name / "zarr.json", json.dumps(own))
    for name, (dim, values, marks) in found.items():
        key = f"{group.name}/{name}"
        (path / key).mkdir(exist_ok=True)
        chunk = len(values)
        if key in before:
            (chunk,) = json.loads(before[key])["chunk_grid"]["configuration"]["chunk_shape"]
        # dtype=str is the one spelling of strings that zarr v3 specifies.
        text = values.dtype.kind in TEXT
        shape, dtype = values.shape, str if text else values.dtype
        files = _encode(shape, (chunk,), dtype, None, (dim,), marks, values)
        for file, data in files.items():
            replace_file(path, path / key / file, data)
        pause()
        fixed[key] = json.dumps(json.loads(files["zarr.json"]), separators=COMPACT)
    return fixed


def create_values(path: Path, group: Group) -> dict[str, GrowingArray]:
    """Create the group's variables, without rows."""
    return {
        v.name: _create_array(
            path / group.name / v.name,
            v.attributes(),
            group.dims(v),
            group.row(v),
            np.dtype(v.dtype),
            float("nan"),
        )
        for v in group.variables
    }


def _create_array(
    folder: Path,
    attributes: Mapping[str, str],
    dims: tuple[str, ...],
    row: tuple[int, ...],
    dtype: np.dtype[Any],
    fill: float,
) -> GrowingArray:
    """Create an array without rows."""
    period, *inner = chunk_shape(row, dtype)
    columns = inner[0] if inner else 1
    files = _encode((0, *row), (period, *inner), dtype, fill, dims, attributes)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "zarr.json").write_text(files["zarr.json"].decode())
    metadata = json.loads(files["zarr.json"])
    del metadata["shape"]
    little = dtype.newbyteorder("<").str
    kept = json.dumps(metadata, separators=COMPACT)[1:]
    pause()
    return GrowingArray(folder, little, row, period, columns, kept)


def _encode(
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: Any,
    fill: float | None,
    dims: tuple[str, ...],
    attributes: Mapping[str, str],
    values: npt.NDArray[np.generic] | None = None,
) -> dict[str, bytes]:
    """What zarr stores of an array: file -> content."""
    import zarr
    from zarr.storage import MemoryStore

    kept: dict[str, Any] = {}
    filled: dict[str, Any] = {} if fill is None else {"fill_value": fill}
    array = zarr.create_array(
        MemoryStore(kept),
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        **filled,
        dimension_names=list(dims),
        attributes={**attributes},
        compressors=None,
        filters=None,
        chunk_key_encoding={"name": "default", "separator": "."},  # "/" makes a folder a chunk
    )
    if values is not None:
        array[:] = values.astype(object) if values.dtype.kind in TEXT else values
    return {name: data.to_bytes() for name, data in kept.items()}
