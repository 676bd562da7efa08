"""What modulation multiplied the back-propagated errors by (Xie, Xiong & Pu, CVPR 2017)."""

import torch
from torch import nn

from propkit.hooks.factors import mean_factor
from propkit.probe import probe


# The weight's change is not looked at: it is what is known once the step's backward passes are over.
@probe(
    sites="parametric",
    reduce={"rho": "mean", "fired": "mean"},
    reference="arXiv:1703.01827, Sec. 4",
)
def modulation(update: torch.Tensor, module: nn.Module) -> dict[str, torch.Tensor]:  # noqa: ARG001 - says when
    """Factor ρ that `propkit.training.modulate` multiplied the layer's errors by in this step.

    ``error_moment`` records the errors as they arrive; ρ² times that is their moment after modulation. Weights'
    gradients are those of a network without modulation, times the product of ρ over the layer and all above.

    Args:
        update: Change of the layer's weight, which comes when the step is over; its values do not matter.
        module: The layer.

    Returns:
        ``rho``: mean factor over the calls and backward passes of the step, 1 where nothing is modulated.
        ``fired``: share of them in which it was not 1. 0-d, float64.
    """
    rho, fired = mean_factor(module)
    return {"rho": rho, "fired": fired}
