"""Initialisers by variance: He's and Glorot's, normal and uniform.

He et al., arXiv:1502.01852; Glorot & Bengio, AISTATS 2010. Numbers come from a generator on any
device, the CPU's if there is none, and are copied into the weight: the same on every device.
"""

import math

import torch
from torch import Tensor, nn

from propkit.training.kernels import fans


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
    return weight.copy_(normal(weight.shape, generator) * math.sqrt(2 / fan_in))


@torch.no_grad()
def he_uniform_(weight: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Fill with U(−√(6 / fan_in), √(6 / fan_in)), in place: the variance of `he_normal_`.

    `torch.nn.init.kaiming_uniform_` for a ReLU; Oyedotun et al. (ICPR 2020, Eq. 3) use it whatever
    the slope of their leaky ReLU.

    Args:
        weight: ``(fan_out, ...)``; fan_in is the number of elements of ``weight[0]``.
        generator: Source of the numbers, on any device.

    Returns:
        The weight.

    Raises:
        ValueError: The weight has fewer than two dimensions or no elements.
    """
    fans(weight)
    numbers = blank(weight.shape, generator)
    nn.init.kaiming_uniform_(numbers, nonlinearity="relu", generator=generator)
    return weight.copy_(numbers)


@torch.no_grad()
def glorot_normal_(weight: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Fill with N(0, 2 / (fan_in + fan_out)), in place: `torch.nn.init.xavier_normal_`.

    Args:
        weight: ``(c_out, c_in, *kernel)``; fan_in and fan_out both count the kernel's taps (groups
            are not taken into account).
        generator: Source of the numbers, on any device.

    Returns:
        The weight.

    Raises:
        ValueError: The weight has fewer than two dimensions or no elements.
    """
    fans(weight)
    numbers = blank(weight.shape, generator)
    return weight.copy_(nn.init.xavier_normal_(numbers, generator=generator))


@torch.no_grad()
def glorot_uniform_(weight: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Fill with U(−a, a), a² = 6 / (fan_in + fan_out), in place: the variance of `glorot_normal_`.

    Args:
        weight: As for `glorot_normal_`.
        generator: Source of the numbers, on any device.

    Returns:
        The weight.

    Raises:
        ValueError: The weight has fewer than two dimensions or no elements.
    """
    fans(weight)
    numbers = blank(weight.shape, generator)
    return weight.copy_(nn.init.xavier_uniform_(numbers, generator=generator))


def normal(
    shape: torch.Size | tuple[int, ...],
    generator: torch.Generator | None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal numbers, on the generator's device."""
    return blank(shape, generator, dtype).normal_(generator=generator)


def blank(
    shape: torch.Size | tuple[int, ...],
    generator: torch.Generator | None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """What a generator is to fill, on its device."""
    return torch.empty(shape, dtype=dtype, device="cpu" if generator is None else generator.device)
