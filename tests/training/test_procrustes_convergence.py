"""How exact the projection is: of matrices, and of kernels by repeated steps."""

import itertools
import math

import numpy as np
import pytest
import torch

from propkit.training import procrustes_
from propkit.training.polar_factor import matrix_polar_factor


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("near", [0.0, 0.05, 0.2])
def test_both_ways_to_a_matrix_polar_factor_agree_with_svd(near):
    a = gaussian(1, 16, 40)
    if near:
        u, _, v = torch.linalg.svd(a, full_matrices=False)
        a = 3 * (u @ v) + near * gaussian(1, 16, 40, seed=1)
    u, _, v = torch.linalg.svd(a, full_matrices=False)
    torch.testing.assert_close(matrix_polar_factor(a), u @ v, atol=1e-13, rtol=0)


def test_an_ill_conditioned_matrix_comes_out_orthonormal_to_rounding():
    """Condition 1e4, so that its Gram matrix alone leaves 1e-8."""
    u, _, v = torch.linalg.svd(gaussian(12, 20), full_matrices=False)
    a = u * torch.logspace(0, -4, 12, dtype=torch.float64) @ v
    found = matrix_polar_factor(a[None])[0]
    torch.testing.assert_close(found @ found.T, torch.eye(12).double(), atol=1e-13, rtol=0)
    torch.testing.assert_close(found, u @ v, atol=1e-8, rtol=0)


def spread(weight, size):
    """Root mean square of σ²/target − 1 over the operator's singular values, by NumPy's FFT."""
    symbol = np.fft.fft2(weight.numpy(), (size, size)).transpose(2, 3, 0, 1)
    squares = np.linalg.svd(symbol, compute_uv=False) ** 2
    target = max(1.0, weight.shape[0] / weight.shape[1])
    return float(np.sqrt(np.mean((squares / target - 1) ** 2)))


def to_the_polar_factor(weight, size):
    """Distance to the nearest operator on target, in NumPy."""
    symbol = np.fft.fft2(weight.numpy(), (size, size)).transpose(2, 3, 0, 1)
    values = np.linalg.svd(symbol, compute_uv=False)
    target = math.sqrt(max(1.0, weight.shape[0] / weight.shape[1]))
    return float(np.sum((values - target) ** 2))


@pytest.mark.parametrize("shape", [(16, 3, 3, 3), (12, 12, 3, 3), (16, 8, 3, 3)])
def test_alternating_projections_approach_monotonically(shape):
    weight = procrustes_(gaussian(*shape), 8)
    distances = [to_the_polar_factor(weight, 8)]
    for _ in range(12):
        procrustes_(weight, 8)
        distances.append(to_the_polar_factor(weight, 8))
    assert all(b < a for a, b in itertools.pairwise(distances))
    at_once = procrustes_(gaussian(*shape), 8, iterations=13)
    torch.testing.assert_close(at_once, weight, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("shape", "size"), [((64, 3, 3, 3), 16), ((24, 24, 3, 3), 8)])
def test_refinements_bring_the_singular_values_together(shape, size):
    errors = [
        spread(procrustes_(gaussian(*shape), size, refinements=n), size) for n in (0, 3, 10, 50)
    ]
    assert all(b < a for a, b in itertools.pairwise(errors))
    assert errors[-1] < 0.35 * errors[0]
