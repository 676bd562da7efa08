"""Reductions against float64 NumPy, for dtypes, sizes and memory formats where naive ones fail."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from propkit.probes._reductions import frobenius_norm, mean_square, square_sum


@given(st.lists(st.integers(1, 6), min_size=0, max_size=5), st.integers(0, 2**31))
def test_any_shape(shape: list[int], seed: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    exact = x.double().numpy()
    np.testing.assert_allclose(square_sum(x), (exact**2).sum(), rtol=1e-6)
    np.testing.assert_allclose(mean_square(x), (exact**2).mean(), rtol=1e-6)
    np.testing.assert_allclose(frobenius_norm(x), np.linalg.norm(exact.ravel()), rtol=1e-6)


@pytest.mark.parametrize(
    "shape", [(2**24,), (4, 2**22), (2, 3, 2**21), (4096, 4096), (1, 1, 1, 2**23)]
)
def test_large_tensors_stay_exact(shape) -> None:
    x = torch.rand(shape)
    exact = float(x.double().square().sum())
    assert abs(float(square_sum(x)) / exact - 1) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_neither_overflows_nor_underflows(dtype) -> None:
    for scale in (3e4, 1e-4):
        x = (torch.randn(64, 128) * scale).to(dtype)
        np.testing.assert_allclose(mean_square(x), float(x.double().square().mean()), rtol=1e-5)


def test_channels_last_and_views() -> None:
    x = torch.randn(4, 6, 5, 7)
    for y in (x.contiguous(memory_format=torch.channels_last), x.transpose(1, 3), x[:, ::2]):
        np.testing.assert_allclose(square_sum(y), float(y.double().square().sum()), rtol=1e-6)


def test_tiny_values_do_not_vanish_in_the_square() -> None:
    assert float(mean_square(torch.full((10,), 1e-25, dtype=torch.float64))) == pytest.approx(1e-50)


def test_empty_and_not_finite() -> None:
    assert float(square_sum(torch.empty(0, 3))) == 0
    assert np.isnan(float(mean_square(torch.empty(0, 3))))
    assert np.isnan(float(square_sum(torch.tensor([1.0, float("nan")]))))
    assert float(square_sum(torch.tensor([1.0, float("inf")]))) == np.inf


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e22, 1e30])
def test_squares_that_float32_does_not_hold(scale: float) -> None:
    for n in (100, 100_000):
        x = torch.randn(n) * scale
        np.testing.assert_allclose(mean_square(x), float(x.double().square().mean()), rtol=1e-6)
    x = (torch.randn(100_000) * scale).bfloat16()
    np.testing.assert_allclose(mean_square(x), float(x.double().square().mean()), rtol=1e-6)


def test_the_remembered_sum_is_that_of_the_tensor_as_it_is() -> None:
    x = torch.ones(40_000)
    assert float(square_sum(x)) == pytest.approx(40_000)
    x.mul_(2)
    assert float(square_sum(x)) == pytest.approx(160_000)
    held = square_sum(x)
    assert float(frobenius_norm(x)) == pytest.approx(400)
    assert float(mean_square(x)) == pytest.approx(4)
    assert float(held) == pytest.approx(160_000)
    with torch.inference_mode():
        y = torch.ones(3)
        assert float(square_sum(y)) == pytest.approx(3)
        y.mul_(2)
        assert float(square_sum(y)) == pytest.approx(12)
