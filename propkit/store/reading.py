"""A group of a store as an xarray dataset, by the root metadata of one commit: values are read when they are used."""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from propkit.store.datasets import plain_text
from propkit.store.live import read_live
from propkit.store.packing import Node, array_of, grows, is_live
from propkit.store.run_directory import RunDirectory

if TYPE_CHECKING:
    from zarr.abc.store import Store


class StoredArray(BackendArray):
    """An array of numbers in a store, for xarray.

    Args:
        store: Where it is.
        key: Its path there.
        node: Its metadata in the root of one commit; rows that were added since are not seen.
    """

    def __init__(self, store: "Store", key: str, node: Node) -> None:
        self.shape = tuple(node["shape"])
        self.dtype = np.dtype(node["data_type"])
        self._store = store
        self._key = key
        self._node = node

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        store, name, node = self._store, self._key, self._node
        if isinstance(store, RunDirectory) and grows(node) and is_live(node):
            support, read = indexing.IndexingSupport.BASIC, partial(read_live, store, name, node)
        else:
            support, read = (
                indexing.IndexingSupport.OUTER,
                array_of(store, name, node).oindex.__getitem__,
            )
        return indexing.explicit_indexing_adapter(key, self.shape, support, read)

    async def async_getitem(self, key: indexing.ExplicitIndexer) -> Any:
        """The same, in a thread."""
        return await asyncio.to_thread(self.__getitem__, key)


class StoredGroup(NamedTuple):
    """A group of a store, as `StoredGroups` opens it.

    Attributes:
        store: Where it is.
        nodes: Metadata of the groups and arrays in its root.
        name: Its name.
        variables: Those of its variables that are wanted.
        sizes: How much of each dimension is wanted: the run may have grown since.
    """

    store: "Store"
    nodes: Mapping[str, Any]
    name: str
    variables: tuple[str, ...]
    sizes: Mapping[str, int]


class StoredGroups(BackendEntrypoint):
    """What makes datasets of them, for `xarray.open_dataset`."""

    def open_dataset(  # type: ignore[override]  # as xarray documents it
        self,
        filename_or_obj: StoredGroup,
        *,
        drop_variables: object = None,  # noqa: ARG002 - xarray asks for it
    ) -> xr.Dataset:
        """The variables, read when they are used, and the coordinates, of which texts are read now."""
        store, nodes, group, names, sizes = filename_or_obj
        attributes = dict(nodes[group]["attributes"])
        auxiliary = str(attributes.pop("coordinates", "")).split()
        variables, coordinates = {}, {}
        for key, node in nodes.items():
            name = key.removeprefix(f"{group}/")
            dims = node.get("dimension_names")
            if name == key or "/" in name or not dims:
                continue  # the group itself, other groups, what others have put there
            shape = [min(n, sizes.get(dim, n)) for dim, n in zip(dims, node["shape"], strict=True)]
            node = {**node, "shape": shape}
            if name in names:
                variables[name] = _variable(store, key, node)
            elif dims == [name] or name in auxiliary:
                coordinates[name] = _variable(store, key, node)
        ordered = {name: variables[name] for name in names if name in variables}
        return xr.Dataset(ordered, xr.Coordinates(coordinates, indexes={}), attributes)


def _variable(store: "Store", key: str, node: Node) -> xr.Variable:
    chunked = node["chunk_grid"]
    if node["codecs"][0]["name"] == "sharding_indexed":  # a shard is a file of chunks
        chunked = node["codecs"][0]
    chunks = chunked["configuration"]["chunk_shape"]
    preferred = dict(zip(node["dimension_names"], chunks, strict=True))
    data: Any
    if node["data_type"] == "string":
        data = plain_text(array_of(store, key, node)[:])
    else:
        data = indexing.LazilyIndexedArray(StoredArray(store, key, node))
    return xr.Variable(
        node["dimension_names"], data, node["attributes"], {"preferred_chunks": preferred}
    )
