"""When the explicit step of the orthonormality regulariser diverges.

The step W ← W − 2ηλ (W Wᵀ − I) W multiplies a singular value s by 1 − 2ηλ (s² − 1), which is below
−1, so that s grows ever faster, as soon as s² > 1 + 1/(ηλ): 1e5 for the η = 0.1, λ = 1e-4 of
arXiv:1703.01827. Very deep plain networks get there in their first step, when the exploded gradient
blows the first layers up.
"""

import math
import warnings
from typing import Literal

import torch
from torch import nn

from propkit.training.divergence import DivergenceError
from propkit.training.kernels import Grouping, parametric_layers
from propkit.training.regularizers import layer_kernels


def orthonormality_stability_limit(lr: float, coefficient: float = 1e-4) -> float:
    """The squared spectral norm above which a gradient step of the regulariser diverges.

    Args:
        lr: Learning rate η.
        coefficient: λ.

    Example:
        >>> round(orthonormality_stability_limit(lr=0.1, coefficient=1e-4))
        100001
    """
    return 1 + 1 / (lr * coefficient) if lr * coefficient > 0 else math.inf


@torch.no_grad()
def check_orthonormality_stability(
    model: nn.Module,
    lr: float,
    coefficient: float = 1e-4,
    groups: Grouping = "ceil",
    action: Literal["raise", "warn"] = "raise",
) -> None:
    """Refuse weights from which `orthonormality` and SGD would diverge.

    Cheap enough for a few calls a second: one small product per layer and one transfer to the host;
    the exact norm is computed only for layers that a bound does not clear.

    Args:
        model: The model whose weights are looked at.
        lr: Learning rate η.
        coefficient: λ.
        groups: See `propkit.training.orthonormality`.
        action: Raise an error or warn.

    Raises:
        DivergenceError: The squared spectral norm of a layer is above
            `orthonormality_stability_limit`, or not finite; the message names the layers.
    """
    limit = orthonormality_stability_limit(lr, coefficient)
    found = {name: value for name, value in _suspects(model, groups, limit) if not value <= limit}
    if not found:
        return
    layers = ", ".join(f"{name} {value:.2g}" for name, value in list(found.items())[:3])
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    message = (
        "the orthonormality regulariser diverges once ‖W‖² > 1 + 1/(lr·coefficient) = "
        f"{limit:.3g}; found {layers}{more}. "
        "Use a smaller learning rate or coefficient, warm up or clip"
    )
    if action == "raise":
        raise DivergenceError(message)
    warnings.warn(message, stacklevel=2)


def _suspects(model: nn.Module, groups: Grouping, limit: float) -> list[tuple[str, float]]:
    """Squared spectral norms of the layers that a bound does not put below the limit."""
    grams = [
        (name, W @ W.T)
        for name, layer in parametric_layers(model)
        for W in layer_kernels(layer, groups)
    ]
    if not grams:
        return []
    # ‖W‖² = λ_max(W Wᵀ), at most the largest absolute row sum.
    bounds = torch.stack([gram.abs().sum(1).max() for _, gram in grams]).tolist()
    suspects = []
    for (name, gram), bound in zip(grams, bounds, strict=True):
        if math.isfinite(bound) and bound > limit:
            suspects.append((name, float(torch.linalg.eigvalsh(gram.double())[-1])))
        elif not math.isfinite(bound):
            suspects.append((name, bound))
    return suspects
