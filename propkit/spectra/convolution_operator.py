"""A convolution as a linear operator in space: what the layer executes, without a Fourier transform."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from propkit.spectra.convolution_geometry import Geometry

_CONV: dict[int, Callable[..., torch.Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., torch.Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


class ConvolutionOperator:
    """A: (channels, *map) -> (filters, *outputs) of `layout`, and its transpose.

    A transposed convolution is the transpose of the A that its weight and its layout describe; the singular values are
    the same.

    Args:
        weight: (filters, channels / groups, *kernel).
        layout: Its geometry.
    """

    def __init__(self, weight: torch.Tensor, layout: Geometry) -> None:
        self.weight, self.layout = weight, layout
        self.inputs = (weight.shape[1] * layout.groups, *(a.size for a in layout.axes))
        self.outputs = (weight.shape[0], *(a.outputs for a in layout.axes))
        self._arguments = {
            "stride": tuple(a.stride for a in layout.axes),
            "dilation": tuple(a.dilation for a in layout.axes),
            "groups": layout.groups,
        }

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """A x: (batch, *inputs) -> (batch, *outputs)."""
        if self.layout.circular:
            for j, a in enumerate(self.layout.axes):
                x = x.index_select(2 + j, torch.arange(a.reach, device=x.device) % a.size)
        else:
            x = F.pad(x, self._borders(1))
        return _CONV[len(self.layout.axes)](x, self.weight, **self._arguments)

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """Aᵀ y: (batch, *outputs) -> (batch, *inputs)."""
        x = _TRANSPOSED[len(self.layout.axes)](y, self.weight, **self._arguments)
        if not self.layout.circular:
            return F.pad(x, self._borders(-1))
        for j, a in enumerate(self.layout.axes):
            shape = (*x.shape[: 2 + j], a.size, *x.shape[3 + j :])
            where = torch.arange(a.reach, device=x.device) % a.size
            x = x.new_zeros(shape).index_add(2 + j, where, x)
        return x

    def _borders(self, sign: int) -> list[int]:
        pads = [(a.low, a.reach - a.low - a.size) for a in self.layout.axes]
        return [sign * p for pair in reversed(pads) for p in pair]

    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix of one group."""
        groups = self.layout.groups
        return math.prod(self.outputs) // groups, math.prod(self.inputs) // groups

    def matrices(self) -> torch.Tensor:
        """The matrix of each group, or its transpose: (groups, smaller dimension, larger dimension)."""
        rows, columns = self.shape()
        groups = self.layout.groups
        side = self.outputs if rows < columns else self.inputs
        basis = torch.eye(min(rows, columns), dtype=self.weight.dtype, device=self.weight.device)
        basis = basis.view(-1, side[0] // groups, *side[1:])
        alone = self.layout._replace(groups=1)
        found = []
        for part in self.weight.chunk(groups):
            operator = ConvolutionOperator(part, alone)
            product = operator.adjoint if rows < columns else operator.apply
            found.append(product(basis).flatten(1))
        return torch.stack(found)
