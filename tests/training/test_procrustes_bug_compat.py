"""The error of the published projection, re-derived in NumPy."""

import math

import numpy as np
import pytest
import torch

from propkit.training import procrustes_


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def official(weight, size):
    """What the published code does, from its description: SVD at each frequency, the spectrum conjugated."""
    c_out, c_in, k, _ = weight.shape
    symbol = np.fft.fft2(weight.numpy(), (size, size)).transpose(2, 3, 0, 1)
    u, _, v = np.linalg.svd(symbol, full_matrices=False)
    spectrum = np.conj(u @ v).transpose(2, 3, 0, 1) * math.sqrt(c_out / min(c_in, c_out))
    return torch.from_numpy(np.fft.ifft2(spectrum).real[:, :, :k, :k])


@pytest.mark.parametrize("shape", [(64, 3, 3, 3), (8, 4, 3, 3), (8, 4, 1, 1), (4, 8, 1, 1)])
def test_bug_compat_repeats_the_published_error(shape):
    weight, size = gaussian(*shape), 16
    found = procrustes_(weight.clone(), size, bug_compat=True)
    torch.testing.assert_close(found, official(weight, size), atol=1e-9, rtol=0)


def test_the_published_error_leaves_one_tap_of_a_3x3_kernel():
    """Of conv1 (3 -> 64, map of 32) tap (0, 0) is left, nearly alone after the second time."""
    weight = gaussian(64, 3, 3, 3)
    once = procrustes_(weight.clone(), 32, bug_compat=True)
    assert float(once.square().sum()) == pytest.approx(0.11 * 64, rel=0.15)
    twice = procrustes_(once.clone(), 32, bug_compat=True).square().sum((0, 1))
    assert float(twice[0, 0] / twice.sum()) > 0.99
    assert float(twice[0, 0]) == pytest.approx(63.5, abs=0.6)
    # A delta-orthogonal kernel, which stays where it is without the error, vanishes.
    delta = torch.zeros(8, 8, 3, 3, dtype=torch.float64)
    delta[:, :, 1, 1] = torch.linalg.qr(gaussian(8, 8)).Q
    assert float(procrustes_(delta, 8, bug_compat=True).norm()) < 1e-5
