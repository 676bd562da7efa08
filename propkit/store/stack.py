"""The datasets of several runs as one with a dimension ``run``, whose values are read when they are used."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from propkit.schema import ROW_SIZE, SITE, SITE_INDEX
from propkit.store.alignment import Axis, Positions, axes, by_depth

RUN = "run"


def stack(datasets: Mapping[str, xr.Dataset], align: str, join: str) -> xr.Dataset:
    """Put the datasets of several runs side by side.

    Args:
        datasets: Label of a run -> its dataset; one at least.
        align: What sites are matched by: ``"site"``, ``"depth"`` or ``"relative_depth"``.
        join: Which steps: ``"outer"`` or ``"inner"``.

    Returns:
        Variables with a first dimension ``run``: (run, step, site), NaN where a run has no such place. Nothing is read
        but coordinates. A coordinate on which the runs agree keeps its dimensions; others get ``run`` too.

    Raises:
        ValueError: They cannot be matched, or a variable has other dimensions in one run than in another.
    """
    if align != SITE:
        datasets = {run: by_depth(run, d, align) for run, d in datasets.items()}
    found = axes(datasets, align, join)
    several = list(datasets.values())
    coords: dict[Hashable, Any] = {
        dim: axis.values for dim, axis in found.items() if axis.values is not None
    }
    for dim, axis in found.items():
        if axis.sites is not None:
            coords |= _ragged(dim, axis, align, found[align].size)
    for name in dict.fromkeys(c for dataset in several for c in dataset.coords):
        if name not in coords:
            coords[name] = _coordinate(_layer(several, name, found, datasets))
    variables = {}
    for name in dict.fromkeys(v for dataset in several for v in dataset.data_vars):
        layer = _layer(several, name, found, datasets)
        attributes = next(d[name].attrs for d in several if name in d.data_vars)
        variables[name] = xr.Variable((RUN, *layer.dims), _lazy(layer), attributes)
    coords[RUN] = np.array(list(datasets), np.str_)
    same = {
        k: v
        for k, v in several[0].attrs.items()
        if all(k in d.attrs and d.attrs[k] == v for d in several)
    }
    return xr.Dataset(variables, coords, same)


class _Stacked(BackendArray):
    """One variable of all runs, dims (run, ...): reads of each run what an index asks for.

    Args:
        sources: The variable of each run, lazy; None where a run lacks it.
        positions: For each run, for each dimension, where it has each place; -1 where it has not.
        dims: Dimensions, without ``run``.
    """

    def __init__(
        self,
        sources: Sequence[xr.Variable | None],
        positions: Sequence[Sequence[Positions]],
        dims: Sequence[str],
    ) -> None:
        known = [s for s in sources if s is not None]
        self.sources, self.positions, self.dims = sources, positions, tuple(dims)
        self.shape = (len(sources), *(len(p) for p in positions[0]))
        self.holes = len(known) < len(sources) or any((p < 0).any() for at in positions for p in at)
        self.own = np.result_type(*(s.dtype for s in known))
        self.dtype = np.result_type(self.own, np.float64) if self._promotes() else self.own

    def _promotes(self) -> bool:
        return self.holes and self.own.kind in "biu"

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        if not isinstance(key, indexing.VectorizedIndexer):
            return self._read(key.tuple)
        support = indexing.IndexingSupport.OUTER
        return indexing.explicit_indexing_adapter(key, self.shape, support, self._read)

    def _read(self, key: tuple[Any, ...]) -> npt.NDArray[Any]:
        wanted = [np.atleast_1d(np.arange(n)[k]) for n, k in zip(self.shape, key, strict=True)]
        result = np.full([len(w) for w in wanted], _missing(self.dtype), self.dtype)
        for row, run in enumerate(wanted[0].tolist()):
            source = self.sources[run]
            if source is None:
                continue
            at = [p[w] for p, w in zip(self.positions[run], wanted[1:], strict=True)]
            there = [np.flatnonzero(p >= 0) for p in at]
            if all(len(t) for t in there):
                indexers = [p[t] for p, t in zip(at, there, strict=True)]
                result[np.ix_(np.array([row]), *there)] = _values(source, indexers)
        numbers = tuple(0 if isinstance(k, int | np.integer) else slice(None) for k in key)
        taken: npt.NDArray[Any] = result[numbers]
        return taken

    def present(self) -> npt.NDArray[np.bool_]:
        """Which places the runs have, shape (run, ...)."""
        result = np.zeros(self.shape, np.bool_)
        for row, (source, at) in enumerate(zip(self.sources, self.positions, strict=True)):
            if source is not None:
                result[np.ix_(np.array([row]), *(np.flatnonzero(p >= 0) for p in at))] = True
        return result


def _lazy(layer: _Stacked) -> Any:
    """As xarray wraps what its own readers give: read when used, kept then, and never written to."""
    lazy: Any = indexing.LazilyIndexedArray(layer)
    return indexing.MemoryCachedArray(indexing.CopyOnWriteArray(lazy))  # type: ignore[no-untyped-call]


def _values(source: xr.Variable, indexers: Sequence[Positions]) -> npt.NDArray[Any]:
    """Those rows, columns... of a variable; slices, where it can be, are quicker to read."""
    keys: list[Any] = []
    for at in indexers:
        first, stop = int(at[0]), int(at[0]) + len(at)
        keys.append(slice(first, stop) if np.array_equal(at, np.arange(first, stop)) else at)
    values: npt.NDArray[Any] = source[tuple(keys)].values
    return values


def _missing(dtype: np.dtype[Any]) -> Any:
    return {"f": np.nan, "c": np.nan, "O": None, "U": "", "T": "", "m": "NaT", "M": "NaT"}.get(
        dtype.kind, 0
    )


def _layer(
    several: Sequence[xr.Dataset],
    name: Hashable,
    found: Mapping[str, Axis],
    labels: Mapping[str, xr.Dataset],
) -> _Stacked:
    sources = [d[name].variable if name in d.variables else None for d in several]
    dims = next(tuple(map(str, s.dims)) for s in sources if s is not None)
    for run, source in zip(labels, sources, strict=True):
        if source is not None and set(source.dims) != set(dims):
            raise ValueError(
                f"{name!r} has dimensions {source.dims} in run {run!r} and {dims} in another: choose a part that all "
                "have with study.map(lambda run: ...)"
            )
    sources = [s if s is None else s.transpose(*dims) for s in sources]
    positions = [[found[dim].positions[i] for dim in dims] for i in range(len(several))]
    return _Stacked(sources, positions, dims)


def _coordinate(layer: _Stacked) -> xr.Variable:
    """Without ``run`` where all runs that have a place agree on it."""
    values, there = layer._read((slice(None),) * len(layer.shape)), layer.present()
    first = there.argmax(axis=0)[None]
    agreed = np.take_along_axis(values, first, axis=0)
    equal = (values == agreed) | ((values != values) & (agreed != agreed))
    if (equal | ~there).all():
        own = agreed[0].astype(layer.own) if there.any(axis=0).all() else agreed[0]
        return xr.Variable(layer.dims, own)
    return xr.Variable((RUN, *layer.dims), values)


def _ragged(dim: str, axis: Axis, align: str, count: int) -> dict[Hashable, xr.Variable]:
    """The coordinates that say which values of a ragged dimension belong to which site."""
    index = np.asarray(axis.sites, np.int32)
    sizes = np.bincount(index, minlength=count)
    return {
        ROW_SIZE: xr.Variable((align,), sizes, {"sample_dimension": dim}),
        SITE_INDEX: xr.Variable((dim,), index, {"instance_dimension": align}),
    }
