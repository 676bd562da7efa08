"""What a convolution reads where: map, taps, stride, dilation and padding, axis by axis."""

import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.modules.conv import _ConvNd

Sizes = int | Sequence[int]
Padding = str | int | Sequence[int] | Sequence[tuple[int, int]]


class Axis(NamedTuple):
    """One axis of y[i] = Σ_t K_t x[stride·i + dilation·t − low], i = 0 .. outputs − 1.

    Attributes:
        taps: Number of taps t.
        size: Length of x.
        stride: Step between the outputs.
        dilation: Step between the taps.
        low: How far the first output reaches to the left of x[0].
        outputs: Length of y.
    """

    taps: int
    size: int
    stride: int
    dilation: int
    low: int
    outputs: int

    @property
    def reach(self) -> int:
        """Length of the padded x that is read."""
        return (self.outputs - 1) * self.stride + self.dilation * (self.taps - 1) + 1


class Geometry(NamedTuple):
    """A convolution without its weight. That of a transposed convolution is that of its adjoint.

    Attributes:
        axes: One entry per spatial axis.
        groups: Number of groups.
        circular: x goes on periodically beyond its ends; else with zeros.
    """

    axes: tuple[Axis, ...]
    groups: int
    circular: bool

    @property
    def stationary(self) -> bool:
        """Whether the operator is diagonalised by the Fourier transform."""
        return self.circular and all(a.outputs * a.stride == a.size for a in self.axes)


def geometry(
    weight: torch.Tensor,
    size: Sizes,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    groups: int = 1,
    transposed: bool = False,
    padding: Padding = "circular",
    output_padding: Sizes = 0,
) -> Geometry:
    """Check the arguments of a convolution and lay it out axis by axis; they are those of the public functions.

    Raises:
        TypeError: `weight` is no real floating tensor, or a size is no integer.
        ValueError: The arguments do not fit together; the message says which.
    """
    if not (isinstance(weight, torch.Tensor) and weight.is_floating_point()):
        found = getattr(weight, "dtype", type(weight).__name__)
        raise TypeError(f"weight must be a real floating-point tensor, found {found}")
    if weight.ndim not in (3, 4, 5) or not weight.numel():
        raise ValueError(
            "weight must be (channels, channels / groups, *kernel) with 1 to 3 spatial axes and no empty one, "
            f"found shape {tuple(weight.shape)}"
        )
    dims = weight.ndim - 2
    groups = operator.index(groups)
    if groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"groups={groups} does not divide the {weight.shape[0]} filters of weight")
    sizes = integers(size, dims, "size", least=1)
    strides = integers(stride, dims, "stride", least=1)
    dilations = integers(dilation, dims, "dilation", least=1)
    extra = integers(output_padding, dims, "output_padding", least=0)
    if any(extra) and not transposed:
        raise ValueError("output_padding belongs to transposed convolutions")
    circular = padding == "circular"
    pads = _pads(padding, dims)
    if any(extra) and pads is None:
        raise ValueError('output_padding needs the padding in numbers, not "circular" or "zeros"')
    axes = []
    for j, (k, n, s, d) in enumerate(zip(weight.shape[2:], sizes, strides, dilations, strict=True)):
        span = d * (k - 1)
        if pads is None:
            low = 0 if circular else span // 2
            axis = Axis(k, n * s, s, d, low, n) if transposed else Axis(k, n, s, d, low, -(-n // s))
        elif transposed:
            low, high = pads[j]
            axis = Axis(k, (n - 1) * s - low - high + span + extra[j] + 1, s, d, low, n)
        else:
            low, high = pads[j]
            axis = Axis(k, n, s, d, low, (n + low + high - span - 1) // s + 1)
        if axis.size < 1 or axis.outputs < 1:
            raise ValueError(
                f"spatial axis {j}: a map of {n} with padding {pads and pads[j]} gives no output for {k} taps "
                f"at dilation {d}; use a larger map or more padding"
            )
        axes.append(axis)
    return Geometry(tuple(axes), groups, circular)


def integers(value: Sizes, dims: int, name: str, least: int) -> tuple[int, ...]:
    """`value` for each of `dims` axes."""
    try:
        if isinstance(value, Sequence):
            found = tuple(operator.index(v) for v in value)
        else:
            found = (operator.index(value),) * dims
    except TypeError:
        raise TypeError(f"{name} must be an integer or integers, found {value!r}") from None
    if len(found) != dims or min(found) < least:
        raise ValueError(f"{name} must be an integer >= {least} or {dims} of them, found {value!r}")
    return found


def _pads(padding: Padding, dims: int) -> list[tuple[int, int]] | None:
    """Zeros before and after each axis; None for the words, which pad to ceil(size / stride) outputs."""
    if isinstance(padding, str):
        if padding not in ("circular", "zeros"):
            raise ValueError(
                f'padding must be "circular", "zeros" or numbers of zeros, found {padding!r}'
            )
        return None
    axes: list[Sizes] = [padding] * dims if isinstance(padding, int | float) else list(padding)
    if len(axes) != dims:
        raise ValueError(f"padding must have an entry for each of {dims} axes, found {padding!r}")
    pairs = [integers(p, 2, "padding", least=0) for p in axes]
    return [(low, high) for low, high in pairs]


def conv_arguments(module: _ConvNd) -> dict[str, Any]:
    """The arguments with which the functions of this package describe a convolutional layer.

    Args:
        module: ``nn.Conv1d``, ``2d``, ``3d`` or one of their transposed versions.

    Returns:
        ``stride``, ``dilation``, ``groups``, ``transposed``, ``padding`` and ``output_padding``, for
        ``conv_spectral_norm(module.weight, size, **conv_arguments(module))``. The padding is "circular" where the
        layer's is, else pairs of numbers of zeros.

    Raises:
        TypeError: `module` is no convolution.
        ValueError: Its padding is neither circular nor by zeros, or circular by an amount that makes more or fewer
            than ceil(size / stride) outputs.

    Example:
        >>> from torch import nn
        >>> conv_arguments(nn.Conv2d(3, 8, 3, stride=2, padding=1))["padding"]
        [(1, 1), (1, 1)]
    """
    if not isinstance(module, _ConvNd):
        raise TypeError(f"expected a convolution of torch.nn, found {type(module).__name__}")
    spans = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    padding: str | list[tuple[int, int]]
    if module.padding == "same":
        padding = [(span // 2, span - span // 2) for span in spans]
    elif module.padding == "valid":
        padding = [(0, 0)] * len(spans)
    else:
        padding = [(int(p), int(p)) for p in module.padding]
    if module.padding_mode == "circular":
        for (low, high), span, s in zip(padding, spans, module.stride, strict=True):
            if not -s < low + high - span <= 0:
                raise ValueError(
                    f"circular padding by {low} + {high} for a kernel that spans {span} + 1 at stride {s} changes "
                    "the number of outputs, so that the layer is no circular convolution; pad by half the span"
                )
        padding = "circular"
    elif module.padding_mode != "zeros" and any(low or high for low, high in padding):
        raise ValueError(
            f"padding_mode={module.padding_mode!r} is neither circular nor zeros; pass the weight and the padding "
            "that comes nearest yourself"
        )
    return {
        "stride": tuple(module.stride),
        "dilation": tuple(module.dilation),
        "groups": module.groups,
        "transposed": module.transposed,
        "padding": padding,
        "output_padding": tuple(module.output_padding),
    }


def count(weight: torch.Tensor, layout: Geometry) -> int:
    """Number of singular values of the operator, zeros included: its smaller dimension."""
    rows = weight.shape[0] // layout.groups * math.prod(a.outputs for a in layout.axes)
    columns = weight.shape[1] * math.prod(a.size for a in layout.axes)
    return layout.groups * min(rows, columns)
