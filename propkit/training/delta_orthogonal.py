"""Delta-orthogonal kernels: convolutions all of whose singular values are 1."""

import torch
from torch import Tensor, nn

from propkit.training.init_variance import blank
from propkit.training.kernels import fans


@torch.no_grad()
def delta_orthogonal_(
    weight: Tensor,
    gain: float = 1.0,
    generator: torch.Generator | None = None,
    channel_groups: int = 1,
) -> Tensor:
    """Fill with zeros but for the central tap, a random orthogonal matrix times ``gain``, in place.

    Xiao et al., arXiv:1806.05393, Sec. 3.3. The convolution, stride 1, zero or circular padding
    alike, maps each pixel by that matrix: with c_in <= c_out, the published case, it keeps the norm
    of what goes forward, with c_in >= c_out that of gradients.

    Args:
        weight: ``(c_out, c_in / groups, *kernel)``; a linear layer's is the matrix itself. The
            central tap of an even kernel is the one before the middle, as for ``padding="same"``.
        gain: All singular values.
        generator: Source of the numbers, on any device.
        channel_groups: The convolution's ``groups``.

    Returns:
        The weight.

    Raises:
        ValueError: The weight has fewer than two dimensions or no elements, or the groups do not
            divide its channels.

    Example:
        >>> W = delta_orthogonal_(torch.empty(4, 4, 3, 3))
        >>> torch.allclose(W[:, :, 1, 1] @ W[:, :, 1, 1].T, torch.eye(4), atol=1e-6)
        True
    """
    fans(weight)
    filters, channels, *kernel = weight.shape
    if filters % channel_groups:
        raise ValueError(f"{channel_groups} groups do not divide {filters} channels")
    shape = (filters // channel_groups, channels)
    matrices = [
        nn.init.orthogonal_(blank(shape, generator, torch.float64), gain, generator=generator)
        for _ in range(channel_groups)
    ]
    central = weight.zero_()
    for k in reversed(kernel):
        central = central.select(-1, (k - 1) // 2)
    central.copy_(torch.cat(matrices))
    return weight
