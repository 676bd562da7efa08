"""Correlation of filters (Xie, Xiong & Pu, CVPR 2017)."""

import numpy as np
import xarray as xr

from propkit.derived._arrays import describe, divide, is_convolution, variable
from propkit.schema import SITE

_PAPER = "arXiv:1703.01827"


def layer_correlation(filter_correlation: xr.Dataset) -> xr.DataArray:
    """Average cosine correlation of the pairs of filters of each layer (Eq. 8, layer by layer), in (-1, 1].

    Args:
        filter_correlation: The group ``filter_correlation`` of a run.

    Returns:
        (step, site). NaN where a layer has no pair of filters that are not zero.

    Raises:
        ValueError: No variable ``correlation`` or ``pairs``.
    """
    correlation = variable(filter_correlation, "correlation")
    mean = correlation.where(variable(filter_correlation, "pairs") > 0)
    long_name = "average cosine filter correlation of a layer"
    return describe(mean, "layer_correlation", long_name, f"{_PAPER}, Eq. 8")


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
    correlation = variable(filter_correlation, "correlation").isel(site=sites)
    pairs = variable(filter_correlation, "pairs").isel(site=sites)
    pairs = pairs.where(correlation.notnull() & pairs.notnull(), 0.0)
    mean = divide((pairs * correlation).sum(SITE, skipna=True), pairs.sum(SITE))
    return describe(
        mean, "pooled_correlation", "average cosine filter correlation", f"{_PAPER}, Eq. 8"
    )
