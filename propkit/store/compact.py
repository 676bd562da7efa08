"""Compaction: a finished run in compressed chunks and few files, and back again for a writer that resumes it.

The new chunks are written beside the old ones, which readers go on using; one rename of the root ``zarr.json`` then
turns to the new ones, those of the arrays follow, and only after that are the old ones deleted. Killed at any moment,
the run is in the old layout or in the new one, whole; what was left over is cleared away by the next compaction.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from propkit.store.arrays import GrowingArray
from propkit.store.files import replace_file
from propkit.store.hold import claim, release
from propkit.store.packing import (
    COMPACT,
    LIVE,
    Encoder,
    Node,
    array_of,
    compact_node,
    grows,
    is_live,
    layout_of,
    live_node,
)
from propkit.store.root import local, read_root
from propkit.store.sync import sync_path, sync_since

if TYPE_CHECKING:
    from zarr.abc.store import Store

__all__ = ["COMPACT", "LIVE", "compact", "expand", "layout_of", "worthwhile"]

GRACE = 0.2
"""Seconds for which the old chunks stay, for those who have read the old metadata and read the chunks next.

As long after the change of the root, which everybody reads, as after that of the arrays, which readers without
consolidated metadata do.
"""

_BLOCK = 1 << 26
"""Bytes that are decoded at once where whole shards are not needed."""


def compact(path: str | os.PathLike[str], *, grace: float = GRACE) -> None:
    """Compress a run that is not being written; its values stay the same, bit by bit.

    A chunk holds 4096 steps and some 16 sites, compressed by zstd; all chunks of a variable lie in one file (a shard,
    in the words of zarr; of 256 MiB at most). What is compact already stays as it is.

    Readers may go on while it happens. A dataset that propkit opened before and reads after says that the run was
    compacted: ``run.refresh()`` gives it anew. One that xarray opened by itself, and reads when the old chunks are gone
    (`grace`), finds chunks missing, which mean NaN: open it again.

    Args:
        path: The store's directory.
        grace: Seconds for which the old chunks are kept after each of the two changes, of the root and of the arrays.

    Raises:
        BlockingIOError: The run is being written.
        FileNotFoundError, ValueError: As `propkit.open`.
        OSError: The disk is full, for instance; the run is as it was.
    """
    _rewrite(path, lambda node: is_live(node), _pack, grace)


def expand(path: str | os.PathLike[str], *, grace: float = 0.0) -> None:
    """Undo `compact`: chunks into which a writer can append in place. Arguments and errors are the same."""
    _rewrite(path, lambda node: not is_live(node), _unpack, grace)


def worthwhile(path: str | os.PathLike[str]) -> bool:
    """Whether compaction makes a run fewer files: one within its first chunks has little to gain."""
    nodes = read_root(local(path))["consolidated_metadata"]["metadata"].values()
    return any(
        n["shape"][0] > n["chunk_grid"]["configuration"]["chunk_shape"][0]
        for n in nodes
        if grows(n) and is_live(n)
    )


Rows = Callable[[int, int], npt.NDArray[np.generic]]
"""Values of the rows from start to stop."""


def rows_of(store: "Store", key: str, node: Node) -> Rows:
    """The rows of the array under `key`, as `node` describes it."""
    from propkit.store.live import read_live
    from propkit.store.run_directory import RunDirectory

    if isinstance(store, RunDirectory) and grows(node) and is_live(node):
        rest = (slice(None),) * (len(node["shape"]) - 1)
        return lambda start, stop: read_live(store, key, node, (slice(start, stop), *rest))
    array = array_of(store, key, node)
    return lambda start, stop: array[start:stop]


def packed(node: Node, read: Rows) -> Iterator[tuple[str, bytes]]:
    """The chunks of an array in the compact layout that `node` describes: name, content."""
    encoder = Encoder(node)
    rows, height = node["shape"][0], node["chunk_grid"]["configuration"]["chunk_shape"][0]
    for start in range(0, rows, height):
        yield from encoder.encode(start, read(start, min(rows, start + height))).items()


def _pack(folder: Path, node: Node, read: Rows) -> dict[str, Any]:
    packed_node = compact_node(node)
    for name, data in packed(packed_node, read):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return packed_node


def _unpack(folder: Path, node: Node, read: Rows) -> dict[str, Any]:
    live = live_node(node)
    rows, *row = node["shape"]
    period, *inner = live["chunk_grid"]["configuration"]["chunk_shape"]
    dtype = np.dtype(node["data_type"])
    columns = inner[0] if inner else 1
    array = GrowingArray(folder, dtype.newbyteorder("<").str, tuple(row), period, columns, "")
    bytes_each = max(1, dtype.itemsize * int(np.prod(row)))
    at_once = period * max(1, _BLOCK // (period * bytes_each))
    for start in range(0, rows, at_once):
        array.write(start, read(start, min(rows, start + at_once)))
    return live


def _rewrite(
    path: str | os.PathLike[str],
    concerned: Callable[[Node], bool],
    rewrite: Callable[[Path, Node, Rows], dict[str, Any]],
    grace: float,
) -> None:
    """Bring the arrays concerned into the other layout."""
    from propkit.store.run_directory import RunDirectory

    place = local(path).resolve()
    read_root(place)
    hold, _ = claim(place, takeover=False)
    try:
        root = read_root(place)
        mark = (place / "zarr.json").stat().st_mtime_ns
        nodes = root["consolidated_metadata"]["metadata"]
        store = RunDirectory(place, read_only=True)
        todo = [key for key, node in nodes.items() if grows(node) and concerned(node)]
        with ThreadPoolExecutor(1) as disk:  # which takes one array while the next is coded
            taken = []
            for key in todo:
                node = nodes[key]
                _clear(place / key, node)  # what a rewriting that was killed has left
                nodes[key] = rewrite(place / key, node, rows_of(store, key, node))
                taken.append(disk.submit(sync_since, place / key, mark))
            for on_disk in taken:
                on_disk.result()
        if todo:
            # On the disk before the old ones go: a power failure must not take both.
            sync_since(place, mark)
            replace_file(place, place / "zarr.json", json.dumps(root, allow_nan=False))
            sync_path(place / "zarr.json")
            sync_path(place)
            time.sleep(grace)
        # Those of the arrays follow only then: by them readers know that a missing chunk may be a deleted one.
        for key in todo:
            replace_file(place, place / key / "zarr.json", json.dumps(nodes[key]))
        if todo:
            time.sleep(grace)
        for key, node in nodes.items():
            if grows(node):
                _clear(place / key, node)
    finally:
        release(hold)


def _clear(folder: Path, node: Node) -> None:
    """Delete the chunks of the layout that the array is not in."""
    own = folder / "zarr.json"
    if is_live(json.loads(own.read_bytes())) != is_live(node):  # killed between the two
        replace_file(folder.parents[1], own, json.dumps(node))
    if is_live(node):
        shutil.rmtree(folder / "c", ignore_errors=True)
    else:
        _clear_live(folder)


def _clear_live(folder: Path) -> None:
    for file in folder.glob("c.*"):
        file.unlink()
