"""The orthonormality regulariser, arXiv:1703.01827, Eq. 3, as a scalar and as a gradient.

The paper's W_l is fan_in x fan_out; here W is its transpose, a row per kernel, so that the penalty
reads λ/2 Σ_l ‖W_l W_lᵀ − I‖_F² and its gradient 2λ (W_l W_lᵀ − I) W_l. It takes the place of weight
decay on convolutions and linear layers; biases and normalisation layers have neither.
"""

import torch
from torch import Tensor, nn

from propkit.training.kernels import Grouping, Layer, kernel_groups, parametric_layers


def orthonormality(
    model: nn.Module, coefficient: float = 1e-4, groups: Grouping = "ceil"
) -> Tensor:
    """Eq. 3 of arXiv:1703.01827: λ/2 Σ ‖W Wᵀ − I‖_F² over convolutions and linear layers.

    Where fan_in < fan_out the sum runs over groups of kernels (Sec. 4). Weights that layers share
    count once.

    Args:
        model: Any model.
        coefficient: λ.
        groups: ``"ceil"`` or ``"literal"``: see `propkit.training.kernels.group_sizes`.

    Returns:
        A differentiable scalar, to be added to the loss. At least float32, autocast or not.

    Raises:
        ValueError: The model has no convolution or linear layer.

    Example:
        >>> penalty = orthonormality(nn.Linear(3, 2), coefficient=1e-4)
        >>> penalty.backward()
    """
    terms = [
        (gram_error(W) ** 2).sum()
        for _, layer in parametric_layers(model)
        for W in layer_kernels(layer, groups)
    ]
    if not terms:
        raise ValueError("the model has no convolution and no linear layer to regularise")
    return coefficient / 2 * torch.stack(terms).sum()


@torch.no_grad()
def add_orthonormality_gradient_(
    model: nn.Module, coefficient: float = 1e-4, groups: Grouping = "ceil"
) -> None:
    """Add the gradient of `orthonormality`, 2λ (W Wᵀ − I) W, to ``.grad`` in place.

    The same as adding `orthonormality` to the loss, without a graph. Call it between ``backward()``
    and ``optimizer.step()``, after unscaling and clipping where there are such. Frozen weights are
    left alone.

    Args:
        model: Its weights' ``.grad`` change; those that are None are created.
        coefficient: λ.
        groups: See `orthonormality`.
    """
    for _, layer in parametric_layers(model):
        weight = layer.weight
        if not weight.requires_grad:
            continue
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        kernels = layer_kernels(layer, groups)
        if weight.grad.is_contiguous() and weight.grad.dtype == kernels[0].dtype:
            targets = weight.grad.flatten(1).split([len(W) for W in kernels])
            for W, target in zip(kernels, targets, strict=True):
                target.addmm_(gram_error(W), W, alpha=2 * coefficient)
        else:  # rows are no view of the gradient
            gradient = torch.cat([gram_error(W) @ W for W in kernels]).reshape(weight.shape)
            weight.grad.add_((2 * coefficient * gradient).to(weight.grad.dtype))


def layer_kernels(layer: Layer, groups: Grouping) -> list[Tensor]:
    """The layer's groups of kernels in float32 or better."""
    weight = layer.weight
    if weight.dtype in (torch.float16, torch.bfloat16):
        weight = weight.float()
    return kernel_groups(weight, groups, 1 if isinstance(layer, nn.Linear) else layer.groups)


def gram_error(W: Tensor) -> Tensor:
    """``W Wᵀ − I``, ``(kernels, kernels)``, not lowered by autocast."""
    with torch.autocast(W.device.type, enabled=False):
        gram = W @ W.T
    gram.diagonal().sub_(1)
    return gram
