"""What derived quantities share: which layers count, quotients that are NaN where they mean nothing, attributes."""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xarray as xr

from propkit.schema import SITE, STEP

_CONVOLUTION = re.compile(r"Conv(Transpose)?[123]d")  # not transformers' linear layer Conv1D


def is_convolution(dataset: xr.Dataset) -> npt.NDArray[np.bool_]:
    """Which sites of a group are convolutions (transposed ones too); bool, shape (site,)."""
    types = dataset["type"].values if "type" in dataset.coords else [""] * dataset.sizes[SITE]
    return np.array([_CONVOLUTION.search(str(t)) is not None for t in types], dtype=bool)


def layers(dataset: xr.Dataset) -> npt.NDArray[np.intp]:
    """Positions along ``site`` of the layers that a ratio runs over; in order of execution.

    All convolutions where there are at least two, else all sites.
    """
    convolutions = np.flatnonzero(is_convolution(dataset))
    return convolutions if convolutions.size >= 2 else np.arange(dataset.sizes[SITE])


def ratio_layers(dataset: xr.Dataset) -> npt.NDArray[np.intp]:
    """The same, at least two.

    Raises:
        ValueError: There are fewer.
    """
    found = layers(dataset)
    if found.size < 2:
        names = [
            f"{s} ({t})" for s, t in zip(dataset[SITE].values, dataset["type"].values, strict=True)
        ]
        raise ValueError(
            f"a ratio of errors needs at least two layers, but {', '.join(names) or 'none'} is all "
            "that was observed. Widen include= or drop exclude= in attach()"
        )
    return found


def variable(dataset: xr.Dataset, name: str) -> xr.DataArray:
    """A variable of a group.

    Raises:
        ValueError: It is not there.
    """
    if name not in dataset:
        there = ", ".join(map(str, dataset.data_vars)) or "none"
        raise ValueError(f"expected a variable {name!r}, found {there}: is this the right group?")
    return dataset[name]


def divide(numerator: xr.DataArray, denominator: xr.DataArray | xr.Variable) -> xr.DataArray:
    """A quotient, NaN where the denominator is zero or not finite; lazy if its parts are."""
    result: xr.DataArray = xr.apply_ufunc(
        _quotient, numerator, denominator, dask="parallelized", output_dtypes=[np.float64]
    )
    return result


def _quotient(
    numerator: npt.NDArray[np.float64], denominator: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    usable = np.isfinite(denominator) & (denominator != 0)
    with np.errstate(all="ignore"):
        quotient: npt.NDArray[np.float64] = np.where(usable, numerator / denominator, np.nan)
    return quotient


def common_steps(*groups: xr.Dataset) -> tuple[xr.Dataset, ...]:
    """The groups at the steps that all of them have: schedules differ."""
    steps = groups[0][STEP].values
    for group in groups[1:]:
        steps = np.intersect1d(steps, group[STEP].values)
    return tuple(group.sel({STEP: steps}) for group in groups)


def describe(
    array: xr.DataArray, name: str, long_name: str, reference: str, units: str = "1"
) -> xr.DataArray:
    """The array under its name, with the attributes that a variable of a run has."""
    attributes: Sequence[tuple[str, str]] = (
        ("units", units),
        ("long_name", long_name),
        ("reference", reference),
    )
    return array.rename(name).assign_attrs(attributes)
