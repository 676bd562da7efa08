"""The weights of convolutions and linear layers as matrices of kernels, and their groups.

The matrix of a layer has one row per output channel, ``(fan_out, fan_in)``: the transpose of the W
of arXiv:1703.01827. Where there are more kernels than ``fan_in`` they cannot all be orthogonal and
are divided into groups (Sec. 4).
"""

from collections.abc import Iterator
from typing import Literal

from torch import Tensor, nn

Grouping = Literal["ceil", "literal"]
"""How many groups there are where fan_in < fan_out: see `group_sizes`."""

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


def parametric_layers(model: nn.Module) -> Iterator[tuple[str, Layer]]:
    """Linear layers and convolutions with their names; a shared weight comes once."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, Layer) and id(module.weight) not in seen:
            seen.add(id(module.weight))
            yield name, module


def group_sizes(fan_out: int, fan_in: int, groups: Grouping = "ceil") -> list[int]:
    """Sizes of the groups into which ``fan_out`` kernels of ``fan_in`` weights are divided.

    arXiv:1703.01827, Sec. 4, prints "f_out / f_in + f_out mod f_in groups". ``"literal"`` makes
    that many groups, as even as possible. ``"ceil"`` reads the second term as the size of a last
    group that takes the remainder: as many groups of ``fan_in`` as there are, then one of ``fan_out
    mod fan_in``.

    Raises:
        ValueError: A size is not positive or ``groups`` is unknown.

    Example:
        >>> group_sizes(64, 27), group_sizes(64, 576)
        ([27, 27, 10], [64])
        >>> group_sizes(64, 27, "literal")
        [6, 6, 6, 6, 5, 5, 5, 5, 5, 5, 5, 5]
    """
    if fan_out < 1 or fan_in < 1:
        raise ValueError(f"a weight needs elements, found fan_out={fan_out}, fan_in={fan_in}")
    full, remainder = divmod(fan_out, fan_in)
    if groups == "ceil":
        return [fan_in] * full + [remainder] * (remainder > 0)
    if groups == "literal":
        count = full + remainder if fan_out > fan_in else 1
        size, larger = divmod(fan_out, count)
        return [size + 1] * larger + [size] * (count - larger)
    raise ValueError(f"groups must be 'ceil' or 'literal', found {groups!r}")


def fans(weight: Tensor) -> tuple[int, int]:
    """``(fan_out, fan_in)`` of a weight ``(fan_out, ...)``.

    Raises:
        ValueError: The weight has fewer than two dimensions or no elements.
    """
    if weight.ndim < 2 or not weight.numel():
        raise ValueError(
            f"a weight has two or more dimensions and elements, found shape {tuple(weight.shape)}"
        )
    return weight.shape[0], weight[0].numel()


def kernel_groups(
    weight: Tensor, groups: Grouping = "ceil", channel_groups: int = 1
) -> list[Tensor]:
    """Matrices ``(kernels, fan_in)``, one for each group of kernels that shall be orthonormal.

    Args:
        weight: ``(fan_out, ...)`` of a linear layer or convolution; the matrices are views of it
            where its memory layout permits.
        groups: See `group_sizes`.
        channel_groups: The convolution's own ``groups``: kernels that see different channels are
            never compared.

    Raises:
        ValueError: The weight has fewer than two dimensions or no elements.
    """
    fan_out, fan_in = fans(weight)
    sizes = group_sizes(fan_out // channel_groups, fan_in, groups) * channel_groups
    return list(weight.flatten(1).split(sizes))
