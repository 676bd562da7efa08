"""Quantiles of the singular values of layers as operators on their maps, for long runs."""

import torch
from torch import nn

from propkit.probe import probe
from propkit.probes._operators import NORM_RULES, REFERENCE, UNITS, operator
from propkit.schedules import log_spaced

QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


@probe(
    sites="filters",
    dims={"quantiles": "quantile"},
    coords={"quantile": QUANTILES},
    units=dict.fromkeys(("quantiles", *NORM_RULES), UNITS),
    reduce={"quantiles": "mean", **NORM_RULES},
    once=True,
    every=log_spaced(10),
    reference=REFERENCE,
)
def singular_value_quantiles(
    weight: torch.Tensor, module: nn.Module, input: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Quantiles of the singular values of a layer, and its norms; maps may change their size within a run.

    The operator is that of ``singular_values``, and so is the cost; a thousandth is stored.

    Args:
        weight: The layer's weight.
        module: The layer, for its stride, padding and so on.
        input: What it receives; only the shape is looked at.

    Returns:
        ``quantiles`` (11,), float64, linear between neighbouring values, and the scalars of ``singular_values``.
    """
    layer = operator(weight, module, input.shape)
    ascending = layer.values.flip(0)
    places = torch.tensor(QUANTILES, dtype=ascending.dtype, device=ascending.device)
    places = places * (len(ascending) - 1)
    below = places.floor().long()
    low, high = ascending[below], ascending[(below + 1).clamp_max(len(ascending) - 1)]
    return {"quantiles": torch.lerp(low, high, places - below), **layer.norms()}
