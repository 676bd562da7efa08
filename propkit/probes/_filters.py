"""A layer's weight as a matrix of filters."""

import torch
from torch import nn


def filter_matrix(weight: torch.Tensor, module: nn.Module | None = None) -> torch.Tensor:
    """Filters as rows: ``(fan_out, fan_in)``, float64 (or complex128) where the device has it.

    Args:
        weight: ``(fan_out, C / groups, *kernel)`` or ``(fan_out, fan_in)``; a transposed convolution's is
            ``(C, fan_out / groups, *kernel)``.
        module: The layer, needed for transposed convolutions only.
    """
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        groups = module.groups
        split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        weight = split.transpose(1, 2).reshape(groups * weight.shape[1], -1)
    matrix = weight.flatten(1)
    if matrix.device.type == "mps":
        return matrix
    return matrix.to(torch.complex128) if matrix.is_complex() else matrix.double()
