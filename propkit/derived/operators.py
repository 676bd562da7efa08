"""Shape of the spectrum of layers as operators on their maps."""

import numpy as np
import numpy.typing as npt
import xarray as xr

from propkit.derived._arrays import describe, divide, variable
from propkit.schema import ROW_SIZE, SITE, STEP

_PAPER = "arXiv:1805.10408"


def operator_condition_number(singular_values: xr.Dataset) -> xr.DataArray:
    """Condition number σ_max / σ_min of each layer's operator, inf where the smallest singular value is zero.

    Args:
        singular_values: The group ``singular_values`` (or ``singular_value_quantiles``) of a run.

    Returns:
        (step, site).

    Raises:
        ValueError: No variable ``spectral_norm`` or ``smallest``.
    """
    top, least = variable(singular_values, "spectral_norm"), variable(singular_values, "smallest")
    number = (top / least).where(top > 0)
    return describe(number, "operator_condition_number", "condition number", _PAPER)


def operator_stable_rank(singular_values: xr.Dataset) -> xr.DataArray:
    """Stable rank ‖A‖_F² / ‖A‖_2² of each layer's operator, between 1 and its rank.

    Args:
        singular_values: The group ``singular_values`` (or ``singular_value_quantiles``) of a run.

    Returns:
        (step, site).

    Raises:
        ValueError: No variable ``spectral_norm`` or ``frobenius_norm``.
    """
    norms = variable(singular_values, "frobenius_norm"), variable(singular_values, "spectral_norm")
    reference = "Rudelson & Vershynin, J. ACM 54(4), 2007"
    rank = divide(*norms) ** 2
    return describe(rank, "operator_stable_rank", "stable rank of the operator", reference)


def operator_effective_rank(singular_values: xr.Dataset) -> xr.DataArray:
    """Effective rank e^H(p) of each layer's operator: H is Shannon's entropy of p = σ²/Σσ², as in ``representation``.

    Args:
        singular_values: The group ``singular_values`` of a run; all its values are read.

    Returns:
        (step, site), between 1 and the rank. NaN for an operator that is zero or not finite.

    Raises:
        ValueError: No ragged variable ``value``.
    """
    value = variable(singular_values, "value")
    if ROW_SIZE not in singular_values.coords:
        raise ValueError("expected the group 'singular_values', whose variable 'value' is ragged")
    rank = xr.DataArray(
        _effective_rank(value.values, singular_values[ROW_SIZE].values),
        {k: v for k, v in singular_values.coords.items() if set(v.dims) <= {STEP, SITE}},
        (STEP, SITE),
    )
    reference = "Roy & Vetterli, EUSIPCO 2007"
    return describe(rank, "operator_effective_rank", "effective rank of the operator", reference)


def _effective_rank(
    values: npt.NDArray[np.floating], sizes: npt.NDArray[np.integer]
) -> npt.NDArray[np.float64]:
    """By site, from flat values (step, value), site after site."""
    ranks = np.full((len(values), len(sizes)), np.nan)
    ends = np.cumsum(sizes)
    for i, (start, stop) in enumerate(zip(ends - sizes, ends, strict=True)):
        energy = values[:, start:stop].astype(np.float64) ** 2
        with np.errstate(all="ignore"):
            p = energy / energy.sum(1, keepdims=True)
            entropy = -np.where(p > 0, p * np.log(p), p * 0).sum(1)
        ranks[:, i] = np.exp(entropy) if stop > start else np.nan
    return ranks
