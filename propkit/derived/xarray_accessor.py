"""``.propkit`` on xarray's own objects: the derived quantities of a run that xarray opened by itself.

::

    import propkit.derived  # xarray's datasets and trees have .propkit from here on
    import xarray as xr

    tree = xr.open_datatree("run.zarr")
    tree.propkit.end_to_end_ratio()                             # as run.derived.end_to_end_ratio()
    tree["error_moment"].propkit.corrected_end_to_end_ratio()   # a group finds the others beside it
    tree["singular_values"].propkit.spectrum("layer1.0.conv1", step=100)

    errors = xr.open_zarr("run.zarr", group="error_moment")
    errors.isel(step=slice(10)).propkit.error_ratio()
    errors.propkit.corrected_error_ratio(weight=xr.open_zarr("run.zarr", group="weight"))

The functions are those of `propkit.derived`; nothing is computed here. xarray calls no package when it opens a store,
so something has to be imported first: `propkit.derived`, which is also what a run imports when it hands out a group.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from propkit.derived.accessor import Derived
from propkit.schema import SITE, SITE_ORDER
from propkit.store.spectrum import spectrum

NAME = "propkit"
"""Name of the accessors."""


class GroupError(KeyError, ValueError):
    """A group that a quantity needs is not there; unlike KeyError's, the message is printed as it is."""

    def __str__(self) -> str:
        return str(self.args[0])


@xr.register_dataset_accessor(NAME)  # type: ignore[no-untyped-call]
class DatasetAccessor(Derived):
    """``dataset.propkit``: derived quantities of one group of a run.

    The dataset stands for the first group that the quantity needs and that is not given by name:
    ``errors.propkit.corrected_error_ratio(weight=weights)``.
    """

    def __init__(self, dataset: xr.Dataset) -> None:
        self._dataset = dataset

    def spectrum(self, site: str, **options: Any) -> xr.DataArray:
        """One site's spectrum, as `propkit.Run.spectrum`, with its options but ``group``."""
        return spectrum(as_in_a_run(self._dataset), site, group="of this dataset", **options)

    def _take(
        self, groups: Sequence[str], given: Mapping[str, xr.Dataset]
    ) -> dict[str, xr.Dataset]:
        needed = [group for group in groups if group not in given]
        if len(needed) > 1:
            missing = ", ".join(f"{group}=..." for group in needed[1:])
            raise GroupError(
                "this is computed from several groups of a run, and a dataset is one of them: taken as "
                f"{needed[0]!r}, it needs {missing}. The accessor of the whole tree finds them by itself: "
                "xr.open_datatree('run.zarr').propkit"
            )
        taken = {**dict.fromkeys(needed, self._dataset), **given}
        return {group: as_in_a_run(dataset) for group, dataset in taken.items()}


@xr.register_datatree_accessor(NAME)  # type: ignore[no-untyped-call]
class TreeAccessor(Derived):
    """``tree.propkit``: derived quantities of a run's tree, or of one group with those beside it."""

    def __init__(self, tree: xr.DataTree) -> None:
        self._tree = tree

    def spectrum(self, site: str, *, group: str | None = None, **options: Any) -> xr.DataArray:
        """One site's spectrum, as `propkit.Run.spectrum`; of the tree itself where it is a group."""
        group = group or (str(self._tree.name) if self._tree.has_data else "singular_values")
        found = self._take([group], {})[group]
        return spectrum(found, site, group=group, **options)

    def _take(
        self, groups: Sequence[str], given: Mapping[str, xr.Dataset]
    ) -> dict[str, xr.Dataset]:
        own = self._groups()
        missing = [group for group in groups if group not in given and group not in own]
        if missing:
            there = ", ".join(own) or "none"
            how = f'propkit.attach(model, ..., probes=[..., "{missing[0]}"]) records it'
            if self._tree.name is None and self._tree.has_data:
                how = (
                    "a group without a name is not known to be one: take tree.to_dataset().propkit"
                )
            raise GroupError(f"expected the group {missing[0]!r}, found {there}: {how}")
        taken = {g: given[g] if g in given else own[g].to_dataset() for g in groups}
        return {group: as_in_a_run(dataset) for group, dataset in taken.items()}

    def _groups(self) -> dict[str, xr.DataTree]:
        """The groups of the run: below this node, or this one and those beside it."""
        tree = self._tree
        groups = dict(tree.children)
        if not groups and tree.parent is not None:
            groups = dict(tree.parent.children)
        if tree.name is not None and tree.has_data:
            groups[tree.name] = tree
        return groups


def as_in_a_run(dataset: xr.Dataset) -> xr.Dataset:
    """A group as a run hands it out: sites in the order of execution, plain strings; values stay lazy.

    Args:
        dataset: A group as xarray opened it, or a part of it. Sites that were selected are put in the order of depth.
    """
    text = {
        name: (c.dims, np.array(c.values.tolist(), np.str_), c.attrs)
        for name, c in dataset.coords.items()
        if c.dtype.kind in "OT"
    }
    dataset = dataset.assign_coords(text)
    order = dataset.attrs.get(SITE_ORDER)
    if order is None or SITE not in dataset.dims:
        return dataset
    sites = dataset.sizes[SITE]
    depth = dataset["depth"].values if "depth" in dataset.coords else np.zeros(sites)
    if len(order) != sites or (np.diff(depth[order]) < 0).any():
        order = np.argsort(depth, kind="stable").tolist()
    dataset = dataset.isel({SITE: order})
    dataset.attrs = {k: v for k, v in dataset.attrs.items() if k != SITE_ORDER}
    return dataset
