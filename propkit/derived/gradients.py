"""Ratios of gradient norms at the two ends of a block (Zaeemzadeh, Rahnavard & Shah, TPAMI 2020)."""

from typing import Literal

import xarray as xr

from propkit.derived._arrays import describe, divide, variable

Direction = Literal["lower", "upper"]


def gradient_norm_ratio(gradient_norm: xr.Dataset, *, direction: Direction) -> xr.DataArray:
    """Norm of the gradient at one end of a block to that at the other. The papers look in opposite directions.

    Args:
        gradient_norm: The group ``gradient_norm`` of a run.
        direction: Which end is the numerator. ``"upper"``: output / input, as Zaeemzadeh et al. have it: above 1 the
            gradient vanishes on its way to the input, below 1 it grows. ``"lower"``: input / output, the direction of
            Xie et al.'s ratios of errors: above 1 it grows.

    Returns:
        (step, site) over the blocks; NaN where the denominator is zero or not finite, and at a first block whose input
        needs no gradient.

    Raises:
        ValueError: Another direction, or no variable ``output`` or ``input``.
    """
    if direction not in ("lower", "upper"):
        raise ValueError(f"direction={direction!r}: expected 'lower' (input / output) or 'upper'")
    ends = variable(gradient_norm, "input"), variable(gradient_norm, "output")
    ratio = divide(*ends) if direction == "lower" else divide(*ends[::-1])
    words = "input to output" if direction == "lower" else "output to input"
    reference = "arXiv:1805.07477, Sec. 4.1"
    return describe(ratio, "gradient_norm_ratio", f"ratio of gradient norms, {words}", reference)
