"""Reading the live layout: plain numbers, taken straight from the files, and only the rows that are asked for.

zarr decodes whole chunks, of which a thread hands over each.
"""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from propkit.store.packing import Node
from propkit.store.run_directory import RunDirectory


def read_live(
    store: RunDirectory, key: str, node: Node, index: Sequence[int | slice]
) -> npt.NDArray[Any]:
    """Values of an array in the live layout (see `propkit.store.packing`).

    Args:
        store: Where it is.
        key: Its path there.
        node: Its metadata.
        index: Along each axis an integer, which takes the axis away, or a slice with a positive step.

    Raises:
        CompactedError: The run has been compacted.
        OSError: A chunk is damaged.
    """
    dtype = np.dtype(node["data_type"]).newbyteorder("<")
    period, *inner = node["chunk_grid"]["configuration"]["chunk_shape"]
    places = [
        range(n)[i if isinstance(i, slice) else slice(i, i + 1)]
        for n, i in zip(node["shape"], index, strict=True)
    ]
    rest = tuple(slice(p.start, p.stop, p.step) for p in places[2:])
    values = np.empty([len(p) for p in places], dtype)
    columns = list(_chunks(places[1], inner[0])) if inner else [(0, (), ())]
    row = prod(inner) * dtype.itemsize
    buffer = np.empty((min(period, len(places[0]) * places[0].step), *inner), dtype)
    for chunk, rows, here in _chunks(places[0], period):
        part = buffer[: here.stop - here.start]
        for column, there, within in columns:
            name = ".".join(
                ["c", str(chunk), *([str(column)] if inner else []), *("0" for _ in inner[1:])]
            )
            if not store.read_into(
                part.data.cast("B"), f"{key}/{name}", here.start * row, period * row
            ):
                part[...] = np.nan if dtype.kind == "f" else 0
            if inner:
                values[(rows, there)] = part[(slice(None, None, here.step), within, *rest)]
            else:
                values[rows] = part[:: here.step]
    taken = tuple(slice(None) if isinstance(i, slice) else 0 for i in index)
    return values[taken]


def _chunks(places: range, size: int) -> Iterator[tuple[int, slice, slice]]:
    """The chunks of that size in which the places lie: number, which of the places, and where they are in the chunk.

    >>> list(_chunks(range(3, 9, 2), 5))
    [(0, slice(0, 1, None), slice(3, 4, 2)), (1, slice(1, 3, None), slice(0, 3, 2))]
    """
    for chunk in range(places[0] // size, places[-1] // size + 1) if places else ():
        origin = chunk * size
        first = max(0, -((places.start - origin) // places.step))
        end = min(len(places), -((places.start - origin - size) // places.step))
        if first < end:
            here = slice(places[first] - origin, places[end - 1] - origin + 1, places.step)
            yield chunk, slice(first, end), here
