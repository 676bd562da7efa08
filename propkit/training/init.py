"""Initialisers of whole models, and orthonormal kernels.

He et al., arXiv:1502.01852; arXiv:1703.01827, Sec. 4. Those by variance are in `init_variance`, one
that keeps every singular value of a convolution in `delta_orthogonal`.
"""

import warnings
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from propkit.training.delta_orthogonal import delta_orthogonal_
from propkit.training.init_variance import (
    glorot_normal_,
    glorot_uniform_,
    he_normal_,
    he_uniform_,
    normal,
)
from propkit.training.kernels import Grouping, Layer, kernel_groups, parametric_layers

Scheme = Literal["he", "he_uniform", "glorot", "glorot_uniform", "orthonormal", "delta_orthogonal"]

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


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
        gaussian = normal((kernels.shape[1], kernels.shape[0]), generator, torch.float64)
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
        scheme: ``"he"`` (`he_normal_`), ``"he_uniform"``, ``"glorot"``, ``"glorot_uniform"``,
            ``"orthonormal"`` (`orthonormal_`) or ``"delta_orthogonal"``, which takes linear layers,
            too.
        generator: Source of the numbers; drawn in the order of ``model.named_modules()``.
        groups: See `orthonormal_`.

    Returns:
        The model.

    Raises:
        ValueError: The scheme is unknown.

    Warns:
        UserWarning: The model has transposed convolutions, which keep their weights.
    """
    if scheme not in get_args(Scheme):
        schemes = ", ".join(get_args(Scheme))
        raise ValueError(f"scheme must be one of {schemes}, found {scheme!r}")
    for _, layer in parametric_layers(model):
        _fill(layer, scheme, generator, groups)
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


def _fill(
    layer: Layer, scheme: Scheme, generator: torch.Generator | None, groups: Grouping
) -> None:
    channel_groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    if scheme == "orthonormal":
        orthonormal_(layer.weight, groups, generator, channel_groups)
    elif scheme == "delta_orthogonal":
        delta_orthogonal_(layer.weight, generator=generator, channel_groups=channel_groups)
    else:
        fills = {
            "he": he_normal_,
            "he_uniform": he_uniform_,
            "glorot": glorot_normal_,
            "glorot_uniform": glorot_uniform_,
        }
        fills[scheme](layer.weight, generator)
