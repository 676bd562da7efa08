"""Ratios of norms of weights."""

import xarray as xr

from propkit.derived._arrays import describe, divide, variable


def stable_rank(weight: xr.Dataset) -> xr.DataArray:
    """Stable rank ‖W‖_F² / ‖W‖_2² of each weight as a matrix of filters, between 1 and its rank.

    That of a convolution as an operator is `operator_stable_rank`.

    Args:
        weight: The group ``weight`` of a run.

    Returns:
        (step, site).

    Raises:
        ValueError: No variable ``norm`` or ``spectral_norm``.
    """
    ratio = divide(variable(weight, "norm"), variable(weight, "spectral_norm")) ** 2
    reference = "Rudelson & Vershynin, J. ACM 54(4), 2007"
    return describe(ratio, "stable_rank", "stable rank of the weight", reference)


def update_ratio(weight: xr.Dataset) -> xr.DataArray:
    """How far a step moves each weight, ‖ΔW‖_F / ‖W‖_F, with W before the step.

    Args:
        weight: The group ``weight`` of a run.

    Returns:
        (step, site).

    Raises:
        ValueError: No variable ``update_ratio``: there was no step of an optimiser.
    """
    ratio = variable(weight, "update_ratio")
    return describe(ratio, "update_ratio", "relative size of the step", "")
