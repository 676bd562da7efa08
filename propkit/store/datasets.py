"""What a group holds, and its dataset: from a store, or from memory, the same."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from propkit.schema import SITE, SITE_ORDER, STEP
from propkit.store.attributes import to_json
from propkit.store.table import STEP_ATTRIBUTES, TEXT, Rows

if TYPE_CHECKING:
    import xarray as xr
    from zarr.abc.store import Store

Chunks = dict[Any, Any] | int | Literal["auto"] | None
"""How many steps, sites... a chunk of dask has; ``{}`` and ``"auto"`` leave it to the store and to dask."""


@dataclass(frozen=True)
class Contents:
    """What a group holds, as far as it is known without reading rows.

    Attributes:
        rows: Number of steps recorded.
        sites: Number of sites, None where the group has no ``site`` dimension.
        variables: Names of the variables over ``step``.
        last_step: The last step recorded, None before the first.
        axes: Lengths of the dimensions that variables have beside ``step`` and ``site``.
    """

    rows: int
    sites: int | None
    variables: tuple[str, ...]
    last_step: int | None
    axes: Mapping[str, int] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        """Length of each dimension."""
        site = {} if self.sites is None else {SITE: self.sites}
        return {STEP: self.rows, **site, **self.axes}

    def __str__(self) -> str:
        dims = ", ".join(f"{dim}: {size}" for dim, size in self.sizes.items())
        last = "no rows yet" if self.last_step is None else f"last step {self.last_step}"
        return f"({dims}) {', '.join(self.variables)}; {last}"


def contents_of_rows(rows: Rows, last_step: int | None) -> Contents:
    """What a group in memory holds."""
    sizes = rows.group.sizes
    site = sizes.pop(SITE, None)
    return Contents(len(rows.step), site, tuple(rows.columns), last_step, sizes)


def contents_of_store(
    root: Mapping[str, Any], last_steps: Mapping[str, int]
) -> dict[str, Contents]:
    """What the groups of a store hold, by its root metadata."""
    found: dict[str, Contents] = {}
    nodes = root["consolidated_metadata"]["metadata"]
    for name in (key.removesuffix(f"/{STEP}") for key in nodes if key.endswith(f"/{STEP}")):
        sizes: dict[str, int] = {}
        variables = []
        for key, node in nodes.items():
            dims = node.get("dimension_names") or [""]
            if key.startswith(f"{name}/") and STEP in (dims[0], key.removeprefix(f"{name}/")):
                sizes.update(zip(dims, node["shape"], strict=True))
                variables.append(key.removeprefix(f"{name}/"))
        if f"{name}/{SITE}" in nodes:  # there may be sites although no variable lies along them
            sizes[SITE] = nodes[f"{name}/{SITE}"]["shape"][0]
        rows, site = sizes.pop(STEP), sizes.pop(SITE, None)
        variables.remove(STEP)
        found[name] = Contents(rows, site, tuple(variables), last_steps.get(name), sizes)
    return found


def dataset_of_store(
    store: "Store", root: Mapping[str, Any], group: str, held: Contents, chunks: Chunks = None
) -> "xr.Dataset":
    """A group of a store, as of the commit in which it held that; values are read when they are used.

    Args:
        store: Where it is.
        root: The root metadata, of that commit or of a later one: the run may be compact by now.
        group: Its name.
        held: What it held.
        chunks: For dask, as in `xarray.open_zarr`; None: without dask.

    Raises:
        ImportError: Chunks were asked for, and dask is not installed.
    """
    import xarray as xr

    from propkit.store.reading import StoredGroup, StoredGroups

    nodes = root["consolidated_metadata"]["metadata"]
    stored = StoredGroup(store, nodes, group, held.variables, held.sizes)
    dataset = xr.open_dataset(stored, engine=StoredGroups, chunks=chunks)  # type: ignore[arg-type]  # takes a class, too
    return _in_order(dataset)


def dataset_of_rows(rows: Rows) -> "xr.Dataset":
    """The dataset that a store with these rows would give."""
    import xarray as xr

    group = rows.group
    coords: dict[str, Any] = {STEP: (STEP, rows.step, STEP_ATTRIBUTES)}
    for name, (dim, values, attributes) in group.coordinates().items():
        text = values.dtype.kind in TEXT
        coords[name] = (dim, plain_text(values) if text else values, attributes)
    variables = {
        v.name: (group.dims(v), rows.columns[v.name], v.attributes()) for v in group.variables
    }
    return _in_order(xr.Dataset(variables, coords, to_json(group.attributes)))


def _in_order(dataset: "xr.Dataset") -> "xr.Dataset":
    """Sites in the order of execution, where those that came later were put at the end."""
    order = dataset.attrs.pop(SITE_ORDER, None)
    if order is None:
        return dataset
    return dataset.isel({SITE: [i for i in order if i < dataset.sizes[SITE]]})


def plain_text(values: npt.NDArray[Any]) -> npt.NDArray[np.str_]:
    """NumPy's plain strings: xarray neither plots nor outer-joins the newer kind that zarr returns."""
    return np.array(values.tolist(), np.str_)
