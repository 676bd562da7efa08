"""Quantities computed from recorded ones: pure functions of a run's datasets.

**Which layers.** Xie, Xiong & Pu (arXiv:1703.01827) count convolutional layers, and so do the
ratios here: every convolution of the group, in order of execution, wherever it stands. A
convolution in a shortcut is one of them, since the group does not say what is a shortcut; leave
such sites out with ``attach(..., exclude=...)``. A network with fewer than two convolutions (an
MLP, a transformer) has no ratio in this sense, so all its parametric layers are taken instead.

**Direction.** A ratio is that of a layer to a *higher* one, nearer the loss: above 1 the error
grows on its way to the input, below 1 it vanishes. (Zaeemzadeh et al., arXiv:1805.07477, use the
opposite direction.)

A ratio whose denominator is zero or not finite is NaN. Lazy datasets stay lazy: only the sites that
a function needs are read.
"""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xarray as xr

from propkit.schema import SITE, STEP

_CONVOLUTION = re.compile(r"Conv(Transpose)?[123]d")  # not transformers' linear layer Conv1D
_PAPER = "arXiv:1703.01827"


def is_convolution(dataset: xr.Dataset) -> npt.NDArray[np.bool_]:
    """Which sites of a group are convolutions (transposed ones too); bool, shape (site,)."""
    types = dataset["type"].values if "type" in dataset.coords else [""] * dataset.sizes[SITE]
    return np.array([_CONVOLUTION.search(str(t)) is not None for t in types], dtype=bool)


def error_ratio(error_moment: xr.Dataset) -> xr.DataArray:
    """q^l / q^L: second-order moment of each layer's error to that of the highest layer (Fig. 4).

    Args:
        error_moment: The group ``error_moment`` of a run, or some of its steps.

    Returns:
        (step, site) over the layers described above; 1 at the last of them.

    Raises:
        ValueError: There are fewer than two layers, or no variable ``output``.
    """
    q = _variable(error_moment, "output").isel(site=_layers(error_moment))
    ratio = _divide(q, q.isel(site=-1, drop=True))
    return _describe(
        ratio, "error_ratio", "ratio of error moments, current to highest layer", "Fig. 4"
    )


def end_to_end_ratio(error_moment: xr.Dataset) -> xr.DataArray:
    """R = q^1 / q^L: second-order moment of the first layer's error to that of the last (Fig. 3).

    Args:
        error_moment: The group ``error_moment`` of a run.

    Returns:
        (step,). Below 1: vanishing, above 1: exploding.

    Raises:
        ValueError: There are fewer than two layers, or no variable ``output``.
    """
    first, last = _ends(error_moment)
    q = _variable(error_moment, "output").isel(site=[first, last])
    ratio = _divide(q.isel(site=0, drop=True), q.isel(site=1, drop=True))
    return _describe(
        ratio, "end_to_end_ratio", "ratio of error moments, first to last layer", "Fig. 3"
    )


def consecutive_ratio(error_moment: xr.Dataset) -> xr.DataArray:
    """q^l / q^(l+1): what one layer does to the error on its way down.

    The product over l is `end_to_end_ratio`.

    Args:
        error_moment: The group ``error_moment`` of a run.

    Returns:
        (step, site) over all layers but the last.

    Raises:
        ValueError: There are fewer than two layers, or no variable ``output``.
    """
    q = _variable(error_moment, "output").isel(site=_layers(error_moment))
    # A variable has no coordinates: the two sides are divided by position, not aligned by site.
    ratio = _divide(q.isel(site=slice(None, -1)), q.variable.isel(site=slice(1, None)))
    return _describe(
        ratio, "consecutive_ratio", "ratio of error moments, layer to next layer", "Sec. 5.2"
    )


def corrected_end_to_end_ratio(error_moment: xr.Dataset, weight: xr.Dataset) -> xr.DataArray:
    """R without the norms of the weights: (q^1 · mean‖w_1‖²) / (q^L · mean‖w_L‖²).

    Batch normalisation right after a layer makes q^l ∝ 1/‖W_l‖² and leaves the other layers alone,
    so that `end_to_end_ratio` mixes propagation with the norms of two weights. Multiplying by the
    mean squared norm of a filter, ‖W_l‖_F² / fan_out, removes them.

    Args:
        error_moment: The group ``error_moment`` of a run.
        weight: The group ``weight`` of the same run, with variable ``norm`` and coordinate
            ``fan_out``.

    Returns:
        (step,), at the steps that both groups have.

    Raises:
        ValueError: As for `end_to_end_ratio`; or `weight` lacks the first or the last layer, or its
            ``fan_out``.
    """
    ends = [str(error_moment[SITE].values[i]) for i in _ends(error_moment)]
    missing = [site for site in ends if site not in weight[SITE].values]
    if missing or "fan_out" not in weight.coords:
        lacking = f"no site {missing[0]!r}" if missing else "no coordinate 'fan_out'"
        raise ValueError(
            "the correction needs the norms of the first and the last layer's weights, "
            f"{ends[0]!r} and {ends[1]!r}; the group 'weight' has {lacking}. Record both probes "
            "with the same include= and exclude="
        )
    q = _variable(error_moment, "output").sel(site=ends)
    norm = _variable(weight, "norm").sel(site=ends)
    steps = np.intersect1d(q[STEP].values, norm[STEP].values)
    q, norm = q.sel(step=steps), norm.sel(step=steps)
    with np.errstate(all="ignore"):
        moment = q * norm.variable**2 / norm["fan_out"].variable
    ratio = _divide(moment.isel(site=0, drop=True), moment.isel(site=1, drop=True))
    name = "ratio of error moments times mean squared filter norms, first to last layer"
    return _describe(ratio, "corrected_end_to_end_ratio", name, "Sec. 5.2")


def pooled_correlation(
    filter_correlation: xr.Dataset, include_linear: bool = False
) -> xr.DataArray:
    """Average cosine correlation of all pairs of filters (Eq. 8): Σ pairs·correlation / Σ pairs.

    Args:
        filter_correlation: The group ``filter_correlation`` of a run.
        include_linear: Pool all layers of the group. A network without convolutions is always
            pooled so.

    Returns:
        (step,). Layers that are NaN at a step are left out of it; NaN where none is left.

    Raises:
        ValueError: No variable ``correlation`` or ``pairs``, or no site.
    """
    convolutions = np.flatnonzero(is_convolution(filter_correlation))
    everything = np.arange(filter_correlation.sizes[SITE])
    sites = everything if include_linear or not convolutions.size else convolutions
    if not sites.size:
        raise ValueError("the group 'filter_correlation' has no site, so there is nothing to pool")
    correlation = _variable(filter_correlation, "correlation").isel(site=sites)
    pairs = _variable(filter_correlation, "pairs").isel(site=sites)
    pairs = pairs.where(correlation.notnull() & pairs.notnull(), 0.0)
    mean = _divide((pairs * correlation).sum(SITE, skipna=True), pairs.sum(SITE))
    return _describe(mean, "pooled_correlation", "average cosine filter correlation", "Eq. 8")


def layers(dataset: xr.Dataset) -> npt.NDArray[np.intp]:
    """Positions along ``site`` of the layers that a ratio runs over; in order of execution.

    All convolutions where there are at least two, else all sites.
    """
    convolutions = np.flatnonzero(is_convolution(dataset))
    return convolutions if convolutions.size >= 2 else np.arange(dataset.sizes[SITE])


def _layers(dataset: xr.Dataset) -> npt.NDArray[np.intp]:
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


def _ends(dataset: xr.Dataset) -> tuple[int, int]:
    found = _layers(dataset)
    return int(found[0]), int(found[-1])


def _variable(dataset: xr.Dataset, name: str) -> xr.DataArray:
    if name not in dataset:
        there = ", ".join(map(str, dataset.data_vars)) or "none"
        raise ValueError(f"expected a variable {name!r}, found {there}: is this the right group?")
    return dataset[name]


def _divide(numerator: xr.DataArray, denominator: xr.DataArray | xr.Variable) -> xr.DataArray:
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


def _describe(array: xr.DataArray, name: str, long_name: str, where: str) -> xr.DataArray:
    attributes: Sequence[tuple[str, str]] = (
        ("units", "1"),
        ("long_name", long_name),
        ("reference", f"{_PAPER}, {where}"),
    )
    return array.rename(name).assign_attrs(attributes)
