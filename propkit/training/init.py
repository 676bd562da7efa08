"""Initialisers: He's, and orthonormal kernels.

He et al., arXiv:1502.01852; arXiv:1703.01827, Sec. 4.
"""

import math
import warnings
from typing import Literal

import torch
from torch import Tensor, nn

from propkit.training.kernels import Grouping, fans, kernel_groups, parametric_layers

Scheme = Literal["he", "orthonormal"]

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@torch.no_grad()
def he_normal_(weight: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Fill with N(0, 2 / fan_in), in place (arXiv:1502.01852, Eq. 10).

    Args:
        weight: ``(fan_out, ...)``; fan_in is the number of elements of ``weight[0]``.
        generator: Source of the numbers, on any device; they are drawn in float32 there.

    Returns:
        The weight.

    Raises:
        ValueError: The weight has fewer than two dimensions or no elements.
    """
    _, fan_in = fans(weight)
    return weight.copy_(_normal(weight.shape, generator) * math.sqrt(2 / fan_in))


@torch.no_grad()
def orthonormal_(
    weight: Tensor,
    groups: Grouping = "ceil",
    generator: torch.Generator | None = None,
    channel_groups: int = 1,
) -> Tensor:
    """Fill with kernels of unit norm, orthogonal to each other, uniformly distributed, in place.

    arXiv:1703.01827, Sec. 4 (Gram-Schmidt from a random first kernel). The QR decomposition of a
    Gaussian matrix with the signs of R's diagonal moved to Q is the same, and stays orthogonal to
    rounding. Where fan_in < fan_out the kernels are orthonormal within groups, unlike
    `torch.nn.init.orthogonal_`.

    Args:
        weight: ``(fan_out, ...)`` of a linear layer or convolution.
        groups: ``"ceil"`` or ``"literal"``: see `propkit.training.kernels.group_sizes`.
        generator: Source of the numbers, on any device.
        channel_groups: The convolution's ``groups``: the kernels of each are made orthonormal by
            themselves.

    Returns:
        The weight.

    Raises:
        ValueError: The weight has fewer than two dimensions or no elements, or ``groups`` is
            unknown.

    Example:
        >>> W = orthonormal_(torch.empty(4, 3, 3, 3)).flatten(1)
        >>> torch.allclose(W @ W.T, torch.eye(4), atol=1e-6)
        True
    """
    bases = []
    for kernels in kernel_groups(weight, groups, channel_groups):
        # float64: in float32 a square matrix loses orthogonality, and Gram-Schmidt far more.
        gaussian = _normal((kernels.shape[1], kernels.shape[0]), generator, torch.float64)
        Q, R = torch.linalg.qr(gaussian)
        signs = torch.where(R.diagonal() < 0, -1.0, 1.0).to(Q.dtype)
        bases.append((Q * signs).T)
    return weight.copy_(torch.cat(bases).reshape(weight.shape))


def initialize(
    model: nn.Module,
    scheme: Scheme = "he",
    generator: torch.Generator | None = None,
    groups: Grouping = "ceil",
) -> nn.Module:
    """Initialise convolutions and linear layers, zero their biases, reset normalisation layers.

    Other modules keep what they have.

    Args:
        model: Changed in place.
        scheme: ``"he"`` (`he_normal_`) or ``"orthonormal"`` (`orthonormal_`).
        generator: Source of the numbers; drawn in the order of ``model.named_modules()``.
        groups: See `orthonormal_`.

    Returns:
        The model.

    Raises:
        ValueError: The scheme is unknown.

    Warns:
        UserWarning: The model has transposed convolutions, which keep their weights.
    """
    if scheme not in ("he", "orthonormal"):
        raise ValueError(f"scheme must be 'he' or 'orthonormal', found {scheme!r}")
    for _, layer in parametric_layers(model):
        if scheme == "he":
            he_normal_(layer.weight, generator)
        else:
            channel_groups = 1 if isinstance(layer, nn.Linear) else layer.groups
            orthonormal_(layer.weight, groups, generator, channel_groups)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    for module in model.modules():
        if isinstance(module, _NORMS):
            module.reset_parameters()
    skipped = [name for name, m in model.named_modules() if isinstance(m, _TRANSPOSED)]
    if skipped:
        warnings.warn(
            f"initialize leaves transposed convolutions as they are: {', '.join(skipped)}",
            stacklevel=2,
        )
    return model


def _normal(
    shape: torch.Size | tuple[int, ...],
    generator: torch.Generator | None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    device = "cpu" if generator is None else generator.device
    return torch.randn(shape, generator=generator, dtype=dtype, device=device)
