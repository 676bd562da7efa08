"""SGD and its schedule as in arXiv:1703.01827, Sec. 5, after arXiv:1512.03385, Sec. 4.2."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

Decayed = Literal["weights", "all"]


def sgd(
    model: nn.Module,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    decay: Decayed = "weights",
) -> torch.optim.SGD:
    """SGD with momentum over the parameters that are not frozen.

    Args:
        model: The model to train.
        lr: Learning rate.
        momentum: Momentum, not Nesterov's.
        weight_decay: L2 coefficient: adds ``weight_decay * w`` to the gradient.
        decay: What the decay acts on. ``"weights"``: parameters of two or more dimensions, that is
            the weights of convolutions and linear layers and so the very ones that the
            orthonormality regulariser acts on; biases, γ and β of normalisation layers are spared.
            ``"all"``: these too, as common in older code. The paper does not say which it used.

    Raises:
        ValueError: The model has nothing to train, or ``decay`` is unknown.
    """
    if decay not in ("weights", "all"):
        raise ValueError(f"decay must be 'weights' or 'all', found {decay!r}")
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if decay == "all" or p.ndim >= 2]
    spared = [p for p in trained if decay != "all" and p.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    if not trained:
        raise ValueError("the model has no parameters that require gradients")
    return torch.optim.SGD([g for g in groups if g["params"]], lr=lr, momentum=momentum)


def learning_rate_factor(step: int, milestones: Sequence[int], gamma: float = 0.1) -> float:
    """What multiplies the initial learning rate at a step (from 0): γ for each milestone reached.

    Example:
        >>> [round(learning_rate_factor(s, (32000, 48000)), 3) for s in (0, 31999, 32000, 48000)]
        [1.0, 1.0, 0.1, 0.01]
    """
    return gamma ** sum(step >= milestone for milestone in milestones)
