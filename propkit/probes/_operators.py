"""A layer as a linear operator on its map: its singular values and norms."""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from propkit.probe import Reduction
from propkit.probes._filters import filter_matrix
from propkit.spectra import conv_arguments, conv_singular_values, conv_zero_padding

UNITS = "output/input"
REFERENCE = "Sedghi, Gupta & Long, arXiv:1805.10408; arXiv:1805.07477, Thm 3"


class Operator(NamedTuple):
    """What is known of a layer as an operator, float64.

    Attributes:
        values: All singular values, descending, of the circular operator; of the matrix for a linear layer.
        padded: Exact Frobenius norm, and an upper bound of the spectral norm, with the zeros that the layer pads with;
            None where it does not pad with zeros.
    """

    values: torch.Tensor
    padded: tuple[torch.Tensor, torch.Tensor] | None

    def norms(self) -> dict[str, torch.Tensor]:
        """Scalars of a probe."""
        found = {
            "spectral_norm": self.values[0],
            "smallest": self.values[-1],
            "frobenius_norm": torch.linalg.vector_norm(self.values),
        }
        if self.padded is not None:
            found["padded_frobenius_norm"], found["padded_norm_bound"] = self.padded
        return found


NORM_RULES: dict[str, Reduction] = {
    "spectral_norm": "max",
    "smallest": "min",
    "frobenius_norm": "max",
    "padded_frobenius_norm": "max",
    "padded_norm_bound": "max",
}
"""How the scalars are combined over calls of a step, which differ in the size of the map only."""


def operator(weight: torch.Tensor, module: nn.Module, shape: torch.Size) -> Operator:
    """The operator that a layer is on a map of that shape (channels, or batch and channels, first).

    Zero padding, and every padding that is neither circular nor by zeros, is taken for circular, on the map rounded up
    to a multiple of the stride; what zeros change is in `Operator.padded`.
    """
    if not isinstance(module, _ConvNd):
        return Operator(torch.linalg.svdvals(filter_matrix(weight, module)), None)
    arguments = _arguments(module)
    size = tuple(shape[2 - weight.ndim :])
    if arguments["padding"] != "circular":
        # Rescaled to the exact Frobenius norm, which is taken back here.
        found = conv_zero_padding(weight, size, **arguments, dtype=torch.float64)
        top = found.singular_values[:1]
        scale = torch.where(top > 0, found.circular_norm / top, torch.zeros_like(top))
        return Operator(found.singular_values * scale, (found.frobenius_norm, found.upper_bound))
    if not module.transposed:
        size = tuple(-(-n // s) * s for n, s in zip(size, module.stride, strict=True))
    return Operator(conv_singular_values(weight, size, **arguments, dtype=torch.float64), None)


def _arguments(module: _ConvNd) -> dict[str, Any]:
    try:
        return conv_arguments(module)
    except ValueError:  # a padding that has no spectrum of its own
        return {
            "stride": tuple(module.stride),
            "dilation": tuple(module.dilation),
            "groups": module.groups,
            "transposed": module.transposed,
            "padding": "circular",
        }
