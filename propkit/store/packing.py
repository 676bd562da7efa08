"""The two layouts of an array that grows with the steps, live and compact, as zarr describes them.

*Live*: uncompressed chunks of whole rows, one file each, into which rows can be written in place. *Compact*: compressed
chunks of 4096 rows and a few sites, in one shard. Their chunks have different names (``c.0.0`` and ``c/0/0``), so both
may lie side by side: whichever the metadata describes is read.
"""

import json
from collections.abc import Mapping, Sequence
from math import ceil, prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from propkit.schema import STEP
from propkit.store.arrays import chunk_shape

if TYPE_CHECKING:
    from zarr.abc.store import Store

LIVE = "live"
COMPACT = "compact"

ROWS = 4096
"""Rows of a compressed chunk at most, of arrays that have columns."""

COLUMNS = 16
"""Columns of a compressed chunk at least: what a reader of one site has to decode."""

CHUNK_BYTES = 1 << 19
"""What a compressed chunk holds at least, where there is as much."""

SHARD_BYTES = 1 << 28
"""What a shard holds at most: it is put together in memory."""

Node = Mapping[str, Any]


def grows(node: Node) -> bool:
    """Whether the metadata is that of an array over ``step``."""
    return bool(node["node_type"] == "array" and (node.get("dimension_names") or [""])[0] == STEP)


def array_of(store: "Store", key: str, node: Node) -> Any:
    """The zarr array that is under `key`, as `node` describes it; the store is not asked."""
    from zarr import Array
    from zarr.storage import StorePath

    return Array.from_dict(StorePath(store, key), dict(node))


def layout_of(root: Node) -> str:
    """``"live"`` or ``"compact"``, by the root metadata of a run; live as long as one array is."""
    nodes = root["consolidated_metadata"]["metadata"].values()
    return LIVE if any(grows(n) and is_live(n) for n in nodes) else COMPACT


def is_live(node: Node) -> bool:
    """Whether an array's chunks are of the live layout."""
    separator = node["chunk_key_encoding"].get("configuration", {}).get("separator", "/")
    return bool(separator == ".")


def compact_node(node: Node) -> dict[str, Any]:
    """The metadata of an array in the compact layout."""
    shape, dtype = node["shape"], np.dtype(node["data_type"])
    inner = compact_chunks(shape, dtype.itemsize)
    rest = [ceil(n / c) * c for n, c in zip(shape[1:], inner[1:], strict=True)]
    most = max(1, SHARD_BYTES // (inner[0] * prod(rest) * dtype.itemsize))
    shard = [min(max(1, ceil(shape[0] / inner[0])), most) * inner[0], *rest]
    blosc = {"cname": "zstd", "clevel": 3, "shuffle": "bitshuffle", "blocksize": 0}
    coded = [_LITTLE, {"name": "blosc", "configuration": {"typesize": dtype.itemsize, **blosc}}]
    if shard != inner:
        sharding = {
            "chunk_shape": inner,
            "codecs": coded,
            "index_codecs": [_LITTLE, {"name": "crc32c"}],
            "index_location": "end",
        }
        coded = [{"name": "sharding_indexed", "configuration": sharding}]
    return _with(node, shard, "/", coded)


def live_node(node: Node) -> dict[str, Any]:
    """The metadata of an array in the live layout."""
    return _with(node, list(chunk_shape(node["shape"][1:], node["data_type"])), ".", [_LITTLE])


def compact_chunks(shape: Sequence[int], itemsize: int) -> list[int]:
    """Shape of a compressed chunk.

    >>> [compact_chunks(shape, 8) for shape in ([64000], [64000, 44], [100, 44], [64000, 44, 9])]
    [[64000], [4096, 15], [100, 44], [910, 15, 9]]
    >>> compact_chunks([16, 400_000], 4)
    [16, 8164]
    """
    rows, *row = shape
    if not row:
        return [max(1, min(rows, 1 << 16))]
    columns, *rest = row
    each = prod(rest) * itemsize
    height = max(1, min(rows, ROWS, max(1, 2 * CHUNK_BYTES // (COLUMNS * each))))
    width = min(columns, max(COLUMNS, CHUNK_BYTES // (height * each)))
    return [height, ceil(columns / ceil(columns / width)), *rest]


class Encoder:
    """Gives the bytes that a store keeps of an array's blocks, without touching a store.

    Args:
        node: The array's metadata.
        empty: Whether to give chunks that are empty, all NaN, too: where there may be others under their names.
    """

    def __init__(self, node: Node, empty: bool = False) -> None:
        import zarr
        from zarr.storage import MemoryStore

        self._kept: dict[str, Any] = {}
        self._store = MemoryStore(self._kept)
        self._node = dict(node)
        self._put()
        self._array: Any = zarr.open_array(self._store, mode="r+")
        if empty:
            self._array = self._array.with_config({"write_empty_chunks": True})

    def encode(self, start: int, block: npt.NDArray[np.generic]) -> dict[str, bytes]:
        """The chunks of whole rows of chunks.

        Args:
            start: Their first row, which begins a row of chunks.
            block: All rows from there to the end of a row of chunks, or to the last row.

        Returns:
            Name of the chunk within the array -> content; empty chunks, all NaN, are left out unless asked for.
        """
        stop = start + len(block)
        if stop > self._array.shape[0]:
            self._array.resize((stop, *block.shape[1:]))
        self._array[start:stop] = block
        found = {k: v.to_bytes() for k, v in self._kept.items() if k != "zarr.json"}
        for key in found:
            del self._kept[key]
        return found

    def _put(self) -> None:
        from zarr.core.buffer import default_buffer_prototype

        data = json.dumps(self._node).encode()
        self._kept["zarr.json"] = default_buffer_prototype().buffer.from_bytes(data)


_LITTLE: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}


def _with(node: Node, chunks: list[int], separator: str, codecs: list[Any]) -> dict[str, Any]:
    """The metadata with other chunks, names of chunks and codecs."""
    return {
        **node,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": separator}},
        "codecs": codecs,
    }


def object_node(
    shape: list[int], chunks: list[int], dtype: str, dims: Sequence[str], **attributes: str
) -> dict[str, Any]:
    """The metadata of an array of numbers in compressed chunks, as a store of objects has it while it grows."""
    size = np.dtype(dtype).itemsize
    blosc = {"cname": "zstd", "clevel": 3, "shuffle": "bitshuffle", "blocksize": 0}
    node = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype,
        "fill_value": 0 if np.dtype(dtype).kind == "i" else "NaN",
        "attributes": attributes,
        "dimension_names": [*dims],
        "storage_transformers": [],
    }
    coded = [_LITTLE, {"name": "blosc", "configuration": {"typesize": size, **blosc}}]
    return _with(node, chunks, "/", coded)


def value_node(
    length: int, chunk: int, dtype: npt.DTypeLike | None, dim: str, attributes: Mapping[str, str]
) -> dict[str, Any]:
    """The metadata of a coordinate; `dtype` None: of text."""
    import zarr
    from zarr.storage import MemoryStore

    kept: dict[str, Any] = {}
    # dtype=str is the one spelling of strings that zarr v3 specifies.
    zarr.create_array(
        MemoryStore(kept),
        shape=(length,),
        chunks=(chunk,),
        dtype=str if dtype is None else np.dtype(dtype),
        dimension_names=[dim],
        attributes={**attributes},
        compressors=None,
        filters=None,
    )
    node: dict[str, Any] = json.loads(kept["zarr.json"].to_bytes())
    return node
