"""Where the sites and steps of several runs meet: one axis for all, and where each run has its places."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from propkit.schema import ROW_SIZE, SITE, SITE_INDEX, STEP
from propkit.store.table import TEXT

if TYPE_CHECKING:
    import xarray as xr

Positions = npt.NDArray[np.int64]

DEPTH = "depth"
RELATIVE_DEPTH = "relative_depth"
ALIGNMENTS = (SITE, DEPTH, RELATIVE_DEPTH)
JOINS = ("outer", "inner")


@dataclass(frozen=True)
class Axis:
    """One dimension of several runs.

    Attributes:
        size: Its length.
        values: Its coordinate, shape (size,); None if it has none.
        positions: For each run, where it has each place: (size,), -1 where it has not.
        sites: Of a ragged dimension, the site that each place belongs to, shape (size,).
    """

    size: int
    values: npt.NDArray[Any] | None
    positions: Sequence[Positions]
    sites: Positions | None = None


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse what is not among the choices.

    Raises:
        ValueError: It is not.
    """
    if value not in choices:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, choices))}")


def by_depth(label: str, dataset: "xr.Dataset", align: str) -> "xr.Dataset":
    """The dataset of one run with its sites named by their (relative) depth; as it is if it has no sites.

    Args:
        label: The run, for the message.
        dataset: With dimension ``site``, or without.
        align: ``"depth"`` or ``"relative_depth"``: 0 for the first site, 1 for the last.

    Raises:
        ValueError: The depth is not known, or shared by several sites.
    """
    if SITE not in dataset.dims:
        return dataset
    if DEPTH not in dataset.coords:
        raise ValueError(
            f"run {label!r} has no coordinate 'depth' along its sites; use align='site'"
        )
    depth = dataset[DEPTH].values
    found, times = np.unique(depth, return_counts=True)
    if len(found) < len(depth):
        shared = found[times > 1][0]
        names = dataset[SITE].values[depth == shared].tolist()
        raise ValueError(
            f"align={align!r} needs one site per depth, but run {label!r} has {', '.join(map(str, names[:4]))} at "
            f"depth {shared}: use align='site', or choose among them first, as in study.map(lambda run: "
            f"run[group].isel(site=run[group]['type'] == 'Conv2d'), align={align!r})"
        )
    if align == RELATIVE_DEPTH:
        span = max(int(depth.max() - depth.min()), 1) if len(depth) else 1
        relative = (depth - depth.min()) / span if len(depth) else depth.astype(np.float64)
        dataset = dataset.assign_coords({RELATIVE_DEPTH: (SITE, relative)})
    return dataset.swap_dims({SITE: align}) if align != SITE else dataset


def axes(datasets: Mapping[str, "xr.Dataset"], align: str, join: str) -> dict[str, Axis]:
    """The axes on which the datasets of several runs meet.

    Args:
        datasets: Label of a run -> its dataset, after `by_depth`.
        align: What sites are matched by. A relative depth is matched by the nearest site; the others by equality.
        join: ``"outer"``: all steps; ``"inner"``: those that all runs have.

    Raises:
        ValueError: A run has a coordinate value twice.
    """
    found = {}
    for dim in dict.fromkeys(str(d) for dataset in datasets.values() for d in dataset.dims):
        labels = {run: _labels(run, dataset, dim) for run, dataset in datasets.items()}
        known = [values for values in labels.values() if values is not None]
        if not known:
            sizes = [dataset.sizes.get(dim, 0) for dataset in datasets.values()]
            size = max(sizes)
            places = np.arange(size)
            found[dim] = Axis(size, None, [np.where(places < n, places, -1) for n in sizes])
        elif dim == RELATIVE_DEPTH:
            found[dim] = _nearest(list(labels.values()))
        else:
            found[dim] = _equal(list(labels.values()), join if dim == STEP else "outer")
    for dim in found:
        if all(_is_ragged(d, dim, align) for d in datasets.values() if dim in d.dims):
            found[dim] = _flat(list(datasets.values()), found[align], dim)
    return found


def weave(sequences: Iterable[Sequence[Any]]) -> list[Any]:
    """Every label once, in the order of each sequence as far as they agree.

    A label not met before goes right after the one that precedes it.

    >>> weave([["stem", "conv1", "fc"], ["stem", "conv1", "conv2", "conv3", "fc"]])
    ['stem', 'conv1', 'conv2', 'conv3', 'fc']
    """
    woven: list[Any] = []
    known: set[Any] = set()
    for sequence in sequences:
        place = 0
        for label in sequence:
            if label in known:
                place = woven.index(label) + 1
            else:
                woven.insert(place, label)
                known.add(label)
                place += 1
    return woven


def _labels(run: str, dataset: "xr.Dataset", dim: str) -> npt.NDArray[Any] | None:
    if dim not in dataset.coords:
        return None
    values: npt.NDArray[Any] = dataset[dim].values
    if len(set(values.tolist())) < len(values):
        raise ValueError(f"run {run!r} has a value of {dim!r} twice: its rows cannot be matched")
    return values


def _equal(labels: Sequence[npt.NDArray[Any] | None], join: str) -> Axis:
    """Places with equal labels meet."""
    known = [values for values in labels if values is not None]
    if all(np.array_equal(values, known[0]) for values in known[1:]):
        merged = known[0]
    elif known[0].dtype.kind in TEXT:
        merged = np.array(weave(values.tolist() for values in known))
    else:
        merged = np.unique(np.concatenate(known))
        if join == "inner":
            merged = merged[np.all([np.isin(merged, values) for values in known], axis=0)]
    positions = [_find(values, merged) for values in labels]
    return Axis(len(merged), merged, positions)


def _find(values: npt.NDArray[Any] | None, merged: npt.NDArray[Any]) -> Positions:
    if values is None or not len(values):
        return np.full(len(merged), -1)
    if np.array_equal(values, merged):
        return np.arange(len(merged))
    order = np.argsort(values)
    at = order[np.searchsorted(values, merged, sorter=order).clip(max=len(values) - 1)]
    return np.where(values[at] == merged, at, -1)


def _nearest(labels: Sequence[npt.NDArray[Any] | None]) -> Axis:
    """The places of the run that has most of them; of each other run, its nearest."""
    grid = max((values for values in labels if values is not None), key=len)
    grid = np.sort(grid)
    positions = []
    for values in labels:
        if values is None or not len(values):
            positions.append(np.full(len(grid), -1))
            continue
        distance = np.abs(grid[:, None] - values).round(9)  # equally far: the one before
        positions.append(distance.argmin(axis=1))
    return Axis(len(grid), grid, positions)


def _is_ragged(dataset: "xr.Dataset", dim: str, sites: str) -> bool:
    """Whether the dimension holds the values of one site after the other."""
    coords = dataset.coords
    return (
        SITE_INDEX in coords
        and ROW_SIZE in coords
        and coords[SITE_INDEX].dims == (dim,)
        and coords[ROW_SIZE].dims == (sites,)
        and int(coords[ROW_SIZE].sum()) == dataset.sizes[dim]
    )


def _flat(datasets: Sequence["xr.Dataset"], sites: Axis, dim: str) -> Axis:
    """As many places per site as the run with most of them has."""
    sizes = np.zeros((len(datasets), sites.size), np.int64)
    starts = np.zeros_like(sizes)
    for i, dataset in enumerate(datasets):
        if dim not in dataset.dims:
            continue
        own = dataset[ROW_SIZE].values.astype(np.int64)
        there = sites.positions[i] >= 0
        sizes[i, there] = own[sites.positions[i][there]]
        starts[i, there] = (own.cumsum() - own)[sites.positions[i][there]]
    widths = sizes.max(axis=0, initial=0)
    index = np.repeat(np.arange(sites.size), widths)
    within = np.arange(len(index)) - (widths.cumsum() - widths)[index]
    positions = np.where(within < sizes[:, index], starts[:, index] + within, -1)
    return Axis(len(index), None, list(positions), index)
