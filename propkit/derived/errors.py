"""Ratios of error moments: how the error grows or vanishes from layer to layer (Xie, Xiong & Pu, CVPR 2017)."""

import numpy as np
import xarray as xr

from propkit.derived._arrays import common_steps, describe, divide, ratio_layers, variable
from propkit.schema import SITE

_PAPER = "arXiv:1703.01827"


def error_ratio(error_moment: xr.Dataset) -> xr.DataArray:
    """q^l / q^L: second-order moment of each layer's error to that of the highest layer (Fig. 4).

    Args:
        error_moment: The group ``error_moment`` of a run, or some of its steps.

    Returns:
        (step, site) over the layers described above; 1 at the last of them.

    Raises:
        ValueError: There are fewer than two layers, or no variable ``output``.
    """
    q = variable(error_moment, "output").isel(site=ratio_layers(error_moment))
    ratio = divide(q, q.isel(site=-1, drop=True))
    return describe(
        ratio,
        "error_ratio",
        "ratio of error moments, current to highest layer",
        f"{_PAPER}, Fig. 4",
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
    q = variable(error_moment, "output").isel(site=[first, last])
    ratio = divide(q.isel(site=0, drop=True), q.isel(site=1, drop=True))
    return describe(
        ratio,
        "end_to_end_ratio",
        "ratio of error moments, first to last layer",
        f"{_PAPER}, Fig. 3",
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
    q = variable(error_moment, "output").isel(site=ratio_layers(error_moment))
    # A variable has no coordinates: the two sides are divided by position, not aligned by site.
    ratio = divide(q.isel(site=slice(None, -1)), q.variable.isel(site=slice(1, None)))
    return describe(
        ratio,
        "consecutive_ratio",
        "ratio of error moments, layer to next layer",
        f"{_PAPER}, Sec. 5.2",
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
    first, last = _ends(error_moment)
    moment = _corrected(error_moment, weight, [first, last])
    ratio = divide(moment.isel(site=0, drop=True), moment.isel(site=1, drop=True))
    name = "ratio of error moments times mean squared filter norms, first to last layer"
    return describe(ratio, "corrected_end_to_end_ratio", name, f"{_PAPER}, Sec. 5.2")


def corrected_error_ratio(error_moment: xr.Dataset, weight: xr.Dataset) -> xr.DataArray:
    """The ratio of each layer to the highest without the norms of the weights: q^l·mean‖w_l‖² to q^L·mean‖w_L‖².

    Where batch normalisation follows the layers, this is how the error propagates whatever the scale of each weight;
    see `corrected_end_to_end_ratio`, its value at the first layer.

    Args:
        error_moment: The group ``error_moment`` of a run.
        weight: The group ``weight`` of the same run, with variable ``norm`` and coordinate ``fan_out``.

    Returns:
        (step, site) over the layers of `error_ratio`, at the steps that both groups have; 1 at the last layer.

    Raises:
        ValueError: As for `error_ratio`; or `weight` lacks a layer, or its ``fan_out``.
    """
    moment = _corrected(error_moment, weight, ratio_layers(error_moment).tolist())
    ratio = divide(moment, moment.isel(site=-1, drop=True))
    name = "ratio of error moments times mean squared filter norms, current to highest layer"
    return describe(ratio, "corrected_error_ratio", name, f"{_PAPER}, Fig. 4")


def _corrected(error_moment: xr.Dataset, weight: xr.Dataset, positions: list[int]) -> xr.DataArray:
    """Moments q · mean‖w‖² of these layers; all calls of a layer have the norm of its one weight."""
    sites = [str(error_moment[SITE].values[i]) for i in positions]
    weighed = [str(s) for s in weight[SITE].values]
    owners = [s if s in weighed else s.partition("#")[0] for s in sites]
    missing = [site for site in owners if site not in weighed]
    if missing or "fan_out" not in weight.coords:
        lacking = f"no site {missing[0]!r}" if missing else "no coordinate 'fan_out'"
        raise ValueError(
            f"the correction needs the norms of the layers' weights, from {sites[0]!r} to {sites[-1]!r}; the group "
            f"'weight' has {lacking}. Record both probes with the same include= and exclude="
        )
    error_moment, weight = common_steps(error_moment, weight)
    q = variable(error_moment, "output").isel(site=positions)
    norm = variable(weight, "norm").isel(site=[weighed.index(s) for s in owners])
    with np.errstate(all="ignore"):
        return q * norm.variable**2 / norm["fan_out"].variable


def _ends(dataset: xr.Dataset) -> tuple[int, int]:
    found = ratio_layers(dataset)
    return int(found[0]), int(found[-1])
