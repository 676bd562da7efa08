"""Weights: size, spectral norm, distance from orthonormality, and how far a step moves them."""

import math

import torch
from torch import nn

from propkit.probe import probe
from propkit.probes._filters import filter_matrix
from propkit.probes._reductions import frobenius_norm_at_once, number
from propkit.spectra.matrix import gram, spectral_norm


@probe(
    sites="parametric",
    units={"norm": "weight", "spectral_norm": "weight", "orthonormality": "weight^2"},
    reduce={"norm": "max", "spectral_norm": "max", "orthonormality": "max"},
    reference="arXiv:1703.01827, Eq. 3",
)
def weight(weight: torch.Tensor, module: nn.Module) -> dict[str, float | torch.Tensor]:
    """Norms of a layer's weight matrix W, whose columns are its filters (fan_in x fan_out).

    The stable rank is ``norm² / spectral_norm²``.

    Args:
        weight: The layer's weight, filters first.
        module: The layer, which tells a transposed convolution from an ordinary one.

    Returns:
        ``norm`` ‖W‖_F, ``spectral_norm`` ‖W‖_2 and ``orthonormality`` ‖WᵀW − I‖_F (‖WᴴW − I‖_F), 0-d, float64.
        ‖WᵀW − I‖_F is at least √(fan_out − fan_in) where there are more filters than dimensions.
    """
    filters = filter_matrix(weight, module)
    m, n = filters.shape
    small = gram(filters)
    squares = number(small.diagonal().real.sum())
    finite = isinstance(squares, float) and math.isfinite(squares)
    largest = number(spectral_norm(filters, small, finite))
    # Whichever of WᵀW and WWᵀ is the smaller: the other has m − n eigenvalues 0 more, which are 1 away from those of I.
    small.diagonal().sub_(1)
    distance = number((small.abs() if small.is_complex() else small).square_().sum()) + max(
        m - n, 0
    )
    return {"norm": squares**0.5, "spectral_norm": largest, "orthonormality": distance**0.5}


@weight.also(units={"update_ratio": "1"}, reduce={"update_ratio": "max"})
def weight_update(weight: torch.Tensor, update: torch.Tensor) -> dict[str, float | torch.Tensor]:
    """Relative size of the step, ‖ΔW‖_F / ‖W‖_F with W before the step; NaN or inf where that is 0."""
    change, size = frobenius_norm_at_once(update), frobenius_norm_at_once(weight)
    if size == 0 and isinstance(change, float):  # Python divides no number by 0
        return {"update_ratio": math.inf * change}
    return {"update_ratio": change / size}
