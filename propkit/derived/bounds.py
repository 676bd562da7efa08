"""A bound on what residual blocks do to gradients (Zaeemzadeh, Rahnavard & Shah, TPAMI 2020, Corollary 1)."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from propkit.derived._arrays import common_steps, describe, variable
from propkit.derived.gradients import gradient_norm_ratio
from propkit.schema import SITE, STEP

_PAPER = "arXiv:1805.07477, Cor. 1"


def residual_bound(
    gradient_norm: xr.Dataset,
    singular_values: xr.Dataset,
    *,
    slope: float = 1.0,
    layers: Mapping[str, Sequence[str]] | None = None,
) -> xr.Dataset:
    """Corollary 1: (1 − δ)‖g_out‖ <= ‖g_in‖ <= (1 + δ)‖g_out‖ with δ = Π c·‖W_i‖_2, beside the measured ratio.

    It holds for blocks x + W_n ρ(... W_1 ρ(x)) with an identity skip connection and |ρ'| <= c, such as pre-activation
    blocks without normalisation. Batch normalisation inside multiplies the norms by its own, which is not counted here,
    and a projection in the skip connection takes the place of the identity: then it is no bound. The norm of a
    zero-padded convolution is the recorded upper bound (``padded_norm_bound``) where there is one.

    Args:
        gradient_norm: The group ``gradient_norm`` of a run, with residual blocks as sites.
        singular_values: The group ``singular_values`` (or ``singular_value_quantiles``). Not ``weight``: its spectral
            norm is that of the kernel as a matrix, which is not the norm of a convolution.
        slope: c, the largest slope of the nonlinearity: 1 for ReLU.
        layers: Block -> names of the layers in its branch; by default all layers of the second group inside the block.

    Returns:
        (step, site) over the blocks that have layers, at the steps of both groups: ``ratio`` ‖g_in‖/‖g_out‖, ``delta``,
        ``lower`` max(0, 1 − δ) and ``upper`` 1 + δ.

    Raises:
        ValueError: `singular_values` is another group, a layer is not in it, or no block has a layer.
    """
    if "smallest" not in singular_values:
        raise ValueError(
            "expected the group 'singular_values': the bound needs the spectral norms of the layers as operators. "
            "The spectral norm in the group 'weight' is that of a kernel as a matrix, not that of a convolution; "
            "record the probe 'singular_values'"
        )
    gradient_norm, singular_values = common_steps(gradient_norm, singular_values)
    norms = variable(singular_values, "spectral_norm")
    if "padded_norm_bound" in singular_values:
        norms = singular_values["padded_norm_bound"].fillna(norms)
    known = [str(s) for s in norms[SITE].values]
    blocks = [str(s) for s in gradient_norm[SITE].values]
    inside = {b: [s for s in known if s.startswith(f"{b}.")] for b in blocks}
    inside.update({b: list(names) for b, names in (layers or {}).items()})
    wrong = [n for n in inside if n not in blocks] or [
        n for names in inside.values() for n in names if n not in known
    ]
    if wrong:
        raise ValueError(
            f"layers={dict(layers or {})}: {wrong[0]!r} is not recorded; blocks are {', '.join(blocks)}, layers "
            f"{', '.join(known)}"
        )
    kept = [b for b in blocks if inside[b]]
    if not kept:
        raise ValueError(
            f"none of the layers {', '.join(known)} is inside one of the blocks {', '.join(blocks)}: record "
            "'gradient_norm' with blocks= for the residual blocks"
        )
    ratio = gradient_norm_ratio(gradient_norm, direction="lower")
    ratio = ratio.isel({SITE: [blocks.index(b) for b in kept]})
    products = [
        (slope * norms.isel({SITE: [known.index(s) for s in inside[b]]})).prod(SITE, skipna=False)
        for b in kept
    ]
    delta = ratio.copy(data=np.stack([p.transpose(STEP).values for p in products], axis=1))
    return xr.Dataset(
        {
            "ratio": ratio,
            "delta": describe(delta, "delta", "product of the layers' norms", _PAPER),
            "lower": describe((1 - delta).clip(0), "lower", "lower bound", _PAPER),
            "upper": describe(1 + delta, "upper", "upper bound", _PAPER),
        }
    )
