"""How large activations are and how near to singular, by depth (Oyedotun, Shabayek, Aouada & Ottersten, ICPR 2020)."""

import numpy as np
import xarray as xr

from propkit.derived._arrays import describe, divide, variable
from propkit.schema import SITE

_PAPER = "Oyedotun et al., ICPR 2020"


def normalized_mean_activation(
    activation: xr.Dataset, *, include_parametric: bool = False
) -> xr.DataArray:
    """Mean absolute activation of each layer to the largest of all layers: mean|H^l| / max_k mean|H^k|.

    Args:
        activation: The group ``activation`` of a run, with ``mean_abs``.
        include_parametric: Take the outputs of layers with weights too. A network without nonlinearities of `torch.nn`
            (which calls functions) is always taken whole.

    Returns:
        (step, site) in [0, 1], 1 at the layer with the largest. NaN in steps where no layer is finite and positive.

    Raises:
        ValueError: No variable ``mean_abs``.
    """
    mean = variable(activation, "mean_abs")
    if not include_parametric and "fan_out" in activation.coords:
        nonlinear = np.flatnonzero(activation["fan_out"].values == 0)  # they have no weight
        mean = mean.isel(site=nonlinear) if nonlinear.size else mean
    ratio = divide(mean, mean.max(SITE))
    long_name = "mean absolute activation, to that of the largest layer"
    return describe(ratio, "normalized_mean_activation", long_name, _PAPER)


def near_singularity(representation: xr.Dataset) -> xr.Dataset:
    """How near to singular each layer's representation is, every measure between 0 (well conditioned) and 1 (singular).

    Args:
        representation: The group ``representation`` of a run.

    Returns:
        Variables (step, site): ``top_share`` σ_1²/Σσ², ``mean_cosine`` |mean cosine of samples|, ``rank_loss``
        1/effective rank, ``inverse_condition_number`` σ_min/σ_1, which alone is 0 where it is singular (κ = ∞).

    Raises:
        ValueError: A variable of the probe is not there.
    """
    condition = variable(representation, "condition_number")
    described = {
        "top_share": (variable(representation, "top_share"), "share of the top singular value"),
        "mean_cosine": (abs(variable(representation, "mean_cosine")), "mean cosine of samples"),
        "rank_loss": (1 / variable(representation, "effective_rank"), "1 / effective rank"),
        "inverse_condition_number": (1 / condition, "1 / condition number"),
    }
    return xr.Dataset({k: describe(v, k, text, _PAPER) for k, (v, text) in described.items()})
