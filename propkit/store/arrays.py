"""The arrays of a store: created through zarr, then written in place."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import log2, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from propkit.schema import SITE, STEP, Group
from propkit.store.attributes import to_json
from propkit.store.table import STEP_ATTRIBUTES, TEXT

if TYPE_CHECKING:
    import zarr

CHUNK_BYTES = 1 << 20
"""About what a chunk holds: enough for fast reading, little enough to be read for a few rows."""

LONGEST_CHUNK = 1 << 16
"""Rows of a chunk at most."""


@dataclass(frozen=True)
class GrowingArray:
    """An array that grows: where its chunks lie, and its metadata without the shape."""

    folder: Path
    dtype: str
    row: tuple[int, ...]
    period: int
    metadata: str

    def text(self, rows: int) -> str:
        """The array's metadata once it has that many rows."""
        return f'{{"shape": {[rows, *self.row]}, {self.metadata}'

    def write(self, start: int, block: npt.NDArray[np.generic]) -> None:
        """Put rows `start`, `start` + 1, ... where zarr looks for them."""
        data = np.ascontiguousarray(block, self.dtype)
        width = data.dtype.itemsize * prod(self.row)
        stop = start + len(data)
        for chunk in range(start // self.period, -(-stop // self.period)):
            origin = chunk * self.period
            first, last = max(start, origin), min(stop, origin + self.period)
            name = ".".join(["c", str(chunk), *("0" for _ in self.row)])
            # A new chunk gets its full size at once (a sparse file): zarr decodes whole chunks.
            size = self.period * width if first == origin else None
            rows = data[first - start : last - start]
            _write_at(self.folder / name, rows.tobytes(), (first - origin) * width, size)


def rows_per_chunk(width: int) -> int:
    """Rows of a chunk: the power of two that brings it closest to `CHUNK_BYTES`.

    >>> [rows_per_chunk(width) for width in (1, 44, 1000, 400_000)]
    [65536, 4096, 128, 1]
    """
    return min(LONGEST_CHUNK, 1 << max(0, round(log2(CHUNK_BYTES / (8 * width)))))


def open_group(path: Path, group: str = "") -> "zarr.Group":
    """The group of a store as zarr sees it on disk, for adding to it."""
    import zarr
    from zarr.storage import LocalStore

    return zarr.open_group(LocalStore(path), path=group, mode="r+", use_consolidated=False)


def create_group(path: Path, group: Group) -> tuple[dict[str, str], dict[str, GrowingArray]]:
    """Create the group, its coordinates and its empty arrays.

    Returns:
        Path -> metadata of what never changes, and variable -> array that grows.
    """
    attributes = to_json(group.attributes)
    along_site = " ".join(name for name in group.coords if name != SITE)
    if along_site:
        attributes["coordinates"] = along_site  # CF: xarray makes these coordinates, not variables
    node = open_group(path).create_group(group.name, overwrite=True, attributes=attributes)
    inline = {"kind": "inline", "must_understand": False, "metadata": {}}
    whole = {**_metadata(path / group.name), "consolidated_metadata": inline}
    fixed = {group.name: json.dumps(whole)}
    for name, values in group.coords.items():
        # dtype=str is the one spelling of strings that zarr v3 specifies.
        text = values.dtype.kind in TEXT
        array = node.create_array(
            name,
            shape=values.shape,
            chunks=values.shape,
            dtype=str if text else values.dtype,
            dimension_names=[SITE],
            **_PLAIN,
        )
        array[:] = values.astype(object) if text else values
        fixed[f"{group.name}/{name}"] = json.dumps(_metadata(path / group.name / name))
    step = _create_array(node, path, STEP, STEP_ATTRIBUTES, (), np.dtype(np.int64), 0)
    return fixed, {STEP: step, **create_values(node, path, group)}


def create_values(node: "zarr.Group", path: Path, group: Group) -> dict[str, GrowingArray]:
    """Create the group's variables, without rows."""
    row = (group.width,) if group.coords else ()
    float64 = np.dtype(np.float64)
    return {
        v.name: _create_array(node, path, v.name, v.attributes(), row, float64, float("nan"))
        for v in group.variables
    }


_PLAIN: dict[str, Any] = {
    "compressors": None,
    "filters": None,
    "chunk_key_encoding": {"name": "default", "separator": "."},  # "/" makes a folder a chunk
    "overwrite": True,
}


def _create_array(
    node: "zarr.Group",
    path: Path,
    name: str,
    attributes: Mapping[str, str],
    row: tuple[int, ...],
    dtype: np.dtype[Any],
    fill: float,
) -> GrowingArray:
    """Create an array without rows."""
    period = rows_per_chunk(prod(row))
    node.create_array(
        name,
        shape=(0, *row),
        chunks=(period, *row),
        dtype=dtype,
        fill_value=fill,
        dimension_names=[STEP, SITE][: 1 + len(row)],
        attributes={**attributes},
        **_PLAIN,
    )
    folder = path / node.path / name
    metadata = _metadata(folder)
    del metadata["shape"]
    return GrowingArray(folder, dtype.newbyteorder("<").str, row, period, json.dumps(metadata)[1:])


def _metadata(folder: Path) -> dict[str, Any]:
    metadata: dict[str, Any] = json.loads((folder / "zarr.json").read_bytes())
    return metadata


def _write_at(file: Path, data: bytes, offset: int, size: int | None) -> None:
    """Write bytes in place, creating the file and giving it its size if need be."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if size is not None:
            os.ftruncate(descriptor, size)
        while data:  # a disk that is nearly full takes a part
            written = os.pwrite(descriptor, data, offset)
            data, offset = data[written:], offset + written
    finally:
        os.close(descriptor)
