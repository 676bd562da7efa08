"""Optimisers, and SGD and its schedule as in arXiv:1703.01827, Sec. 5, after arXiv:1512.03385, Sec. 4.2."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

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
    groups = parameter_groups(model, weight_decay, decay)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum)


def parameter_groups(
    model: nn.Module, weight_decay: float, decay: Decayed = "weights"
) -> list[dict[str, Any]]:
    """The parameters that are not frozen, those that decay and those that do not: see `sgd`."""
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
    return [g for g in groups if g["params"]]


OptimizerName = Literal["sgd", "nesterov", "adagrad", "adadelta", "adam", "rmsprop"]


def make_optimizer(
    name: OptimizerName,
    model: nn.Module,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    decay: Decayed = "weights",
) -> torch.optim.Optimizer:
    """One of the optimisers of arXiv:1703.01827, Table 2.

    Args:
        name: ``sgd`` (with momentum), ``nesterov``, ``adagrad``, ``adadelta``, ``adam`` or ``rmsprop``.
        model: The model to train.
        lr: Learning rate.
        momentum: Of ``sgd`` and ``nesterov``; the others keep PyTorch's own settings.
        weight_decay: L2 coefficient, added to the gradient as the optimisers of that time did.
        decay: What the decay acts on, see `sgd`.

    Raises:
        ValueError: The name is unknown, the model has nothing to train, or ``decay`` is unknown.
    """
    if name == "sgd":
        return sgd(model, lr, momentum, weight_decay, decay)
    if name == "nesterov":
        groups = parameter_groups(model, weight_decay, decay)
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=True)
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adagrad": torch.optim.Adagrad,
        "adadelta": torch.optim.Adadelta,
        "adam": torch.optim.Adam,
        "rmsprop": torch.optim.RMSprop,
    }
    if name not in kinds:
        known = ", ".join(("sgd", "nesterov", *kinds))
        raise ValueError(f"optimizer must be one of {known}, found {name!r}")
    return kinds[name](parameter_groups(model, weight_decay, decay), lr=lr)


def learning_rate_factor(
    step: int,
    milestones: Sequence[int],
    gamma: float = 0.1,
    warm_up: int = 0,
    warm_up_factor: float = 0.1,
) -> float:
    """What multiplies the initial learning rate at a step (from 0).

    Args:
        step: Number of completed steps.
        milestones: Steps from which the rate is multiplied by ``gamma`` once more.
        gamma: See ``milestones``.
        warm_up: Number of first steps at a lower rate, for deep networks (400 at 0.01 for the
            110-layer one of arXiv:1512.03385, Sec. 4.2).
        warm_up_factor: What the rate is multiplied by in them.

    Example:
        >>> [round(learning_rate_factor(s, (32000, 48000)), 3) for s in (0, 31999, 32000, 48000)]
        [1.0, 1.0, 0.1, 0.01]
        >>> [learning_rate_factor(s, (), warm_up=400) for s in (0, 399, 400)]
        [0.1, 0.1, 1.0]
    """
    decayed = gamma ** sum(step >= milestone for milestone in milestones)
    return decayed * warm_up_factor if step < warm_up else decayed
