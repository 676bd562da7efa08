"""Spectral norms against LAPACK."""

import pytest
import torch

from propkit.spectra.matrix import gram, spectral_norm


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (7, 3), (64, 576), (512, 600)])
def test_small_matrices_are_exact(shape) -> None:
    a = torch.randn(shape, dtype=torch.float64)
    assert gram(a).shape == (min(shape), min(shape))
    assert float(spectral_norm(a)) == pytest.approx(
        float(torch.linalg.matrix_norm(a, 2)), rel=1e-12
    )


@pytest.mark.parametrize("shape", [(600, 900), (1024, 1024)])
def test_large_matrices_by_lanczos(shape) -> None:
    state = torch.get_rng_state()
    a = torch.randn(shape, dtype=torch.float64)
    torch.set_rng_state(state)
    found = float(spectral_norm(a))
    assert torch.equal(torch.get_rng_state(), state), "no random numbers are drawn"
    assert found == pytest.approx(float(torch.linalg.matrix_norm(a, 2)), rel=1e-3)


def test_zero_and_extreme_scales() -> None:
    assert float(spectral_norm(torch.zeros(4, 5, dtype=torch.float64))) == 0
    a = torch.randn(5, 5, dtype=torch.float64)
    exact = float(torch.linalg.matrix_norm(a, 2))
    for scale in (1e-100, 1e100):
        assert float(spectral_norm(scale * a)) == pytest.approx(scale * exact, rel=1e-12)
