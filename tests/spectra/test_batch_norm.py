"""Batch normalisation's spectrum against the Jacobian that autograd gives, in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.functional import jacobian

from propkit.spectra.batch_norm import (
    bn_eigenvalues,
    bn_eigenvalues_from_variance,
    channel_moments,
    pool_moments,
)

EPS = (1e-5, 0.1, 3.0)
GAMMA = (1.0, -0.7, 2.5, 0.0)


def _dense(x, gamma, eps, running_var=None) -> torch.Tensor:
    """The Jacobian of `F.batch_norm`; m = 1 and eps = 0, which PyTorch refuses in training, are written out."""

    def layer(x):
        if running_var is not None:
            zero = torch.zeros_like(running_var)
            return F.batch_norm(x, zero, running_var, gamma, None, False, 0.0, eps)
        if x.numel() == x.shape[1]:
            return 0 * x
        if eps == 0:
            return (x - x.mean(0)) / x.std(0, correction=0)
        return F.batch_norm(x, None, None, gamma, None, True, 0.0, eps)

    return jacobian(layer, x).reshape(x.numel(), x.numel())


def _check(x, gamma, eps, running_var=None) -> None:
    spectrum = bn_eigenvalues(x, gamma, eps, running_var=running_var)
    count = x.numel() // x.shape[1]
    assert spectrum.values.shape == (x.shape[1], 3)
    assert spectrum.multiplicities.sum() == count
    every = spectrum.expand()
    assert every.shape == (x.shape[1], count)
    dense = _dense(x, gamma, eps, running_var)
    scale = max(1.0, float(dense.abs().max()))
    assert (dense - dense.mT).abs().max() <= 1e-9 * scale
    expected = torch.linalg.eigvalsh(dense)
    assert (every.flatten().sort().values - expected).abs().max() <= 1e-9 * scale
    singular = torch.linalg.svdvals(dense).sort().values
    assert (every.flatten().abs().sort().values - singular).abs().max() <= 1e-9 * scale
    # channel by channel, not only the union
    blocks = dense.reshape(*x.shape, *x.shape).movedim(1, 0).movedim(x.ndim + 1, 1)
    for c in range(x.shape[1]):
        own = torch.linalg.eigvalsh(blocks[c, c].reshape(count, count))
        assert (every[c].sort().values - own).abs().max() <= 1e-9 * scale


@pytest.mark.parametrize(("m", "eps", "gamma"), [*itertools.product((1, 2, 3, 5, 32), EPS, GAMMA)])
def test_one_channel(m: int, eps: float, gamma: float) -> None:
    _check(torch.randn(m, 1, dtype=torch.float64), torch.tensor([gamma], dtype=torch.float64), eps)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(1, 3), min_size=2, max_size=5),
    st.sampled_from(EPS),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_any_shape(shape: list[int], eps: float, affine: bool, eval_mode: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(shape, dtype=torch.float64, generator=generator) + 5
    gamma = torch.randn(shape[1], dtype=torch.float64, generator=generator) if affine else None
    running = torch.rand(shape[1], dtype=torch.float64, generator=generator) if eval_mode else None
    _check(x, gamma, eps, running)


@pytest.mark.parametrize("m", [2, 3, 7])
def test_constant_channels(m: int) -> None:
    x = torch.randn(m, 3, dtype=torch.float64)
    x[:, 1] = 4.0
    gamma = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    _check(x, gamma, 0.1)
    zero, second, rho = bn_eigenvalues(x, gamma, 0.1).values[1].tolist()
    assert zero == 0
    assert second == rho == pytest.approx(-2 / 0.1**0.5)


def test_without_eps_there_is_a_second_null_direction_and_no_derivative_at_a_constant() -> None:
    x = torch.randn(6, 2, dtype=torch.float64)
    _check(x, None, 0.0)
    assert (bn_eigenvalues(x, None, 0.0).values[:, :2] == 0).all()
    x[:, 1] = 1.0
    second, rho = bn_eigenvalues(x, None, 0.0).values[1, 1:]
    assert second.isnan()
    assert rho.isinf()


def test_evaluation_mode_is_diagonal() -> None:
    x = torch.randn(4, 2, 3)
    values, multiplicities = bn_eigenvalues(
        x, torch.tensor([1.0, -3.0]), 0.0, running_var=torch.tensor([4.0, 9.0])
    )
    assert multiplicities.tolist() == [0, 0, 12]
    torch.testing.assert_close(values[:, 2], torch.tensor([0.5, -1.0], dtype=torch.float64))


@pytest.mark.parametrize("sizes", [(3, 5), (2, 2, 4), (1, 6)])
def test_synchronised_statistics_are_those_of_the_whole_batch(sizes) -> None:
    x = torch.randn(sum(sizes), 3, 4, dtype=torch.float64) + 10
    gamma = torch.randn(3, dtype=torch.float64)
    parts = [(part.numel() // 3, *channel_moments(part)) for part in x.split(sizes)]
    counts, means, variances = zip(*parts, strict=True)
    mean, variance = pool_moments(
        torch.tensor(counts, dtype=torch.float64), torch.stack(means), torch.stack(variances)
    )
    torch.testing.assert_close(mean, x.mean((0, 2)))
    found = bn_eigenvalues_from_variance(variance, sum(counts), gamma, 0.1)
    expected = torch.linalg.eigvalsh(_dense(x, gamma, 0.1))
    assert (found.expand().flatten().sort().values - expected).abs().max() <= 1e-9


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4])
@pytest.mark.parametrize("shape", [(3, 4, 50, 50), (200_000, 2), (40, 64, 9, 9), (2, 3, 70_000)])
def test_variance_survives_a_large_mean(shape, offset: float) -> None:
    """Sums of squares in float32 lose the variance at |mean| = 1e4 std altogether."""
    x = torch.randn(shape) + offset
    for y in (x, x.transpose(0, -1).contiguous().transpose(0, -1), x[..., ::2]):
        mean, variance = channel_moments(y)
        dims = [d for d in range(y.ndim) if d != 1]
        torch.testing.assert_close(mean, y.double().mean(dims), rtol=1e-13, atol=1e-13)
        exact = y.double().var(dims, correction=0)
        torch.testing.assert_close(variance, exact, rtol=1e-10, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_dtype_gives_float64(dtype) -> None:
    x = (100 * torch.randn(64, 3, 5)).to(dtype)  # squares overflow float16
    found = bn_eigenvalues(x, torch.ones(3, dtype=dtype))
    assert found.values.dtype == torch.float64
    expected = bn_eigenvalues(x.double())
    torch.testing.assert_close(found.values, expected.values, rtol=1e-12, atol=0)


def test_norm_identity() -> None:
    """‖Jδ‖² = ρ²(‖δ‖² − m mean(δ)² − (2 − κ)(x̂ᵀδ)²/m), without any Jacobian."""
    x, delta = torch.randn(2, 30, 1, dtype=torch.float64).unbind(0)
    eps = 0.3
    zero, second, rho = bn_eigenvalues(x, None, eps).values[0]
    out = F.batch_norm(x.requires_grad_(), None, None, training=True, eps=eps)
    (back,) = torch.autograd.grad(out, x, delta)
    centred = x.detach() - x.detach().mean()
    along = (centred * delta).sum() ** 2 / centred.square().sum()
    constant = delta.sum() ** 2 / 30
    rest = delta.square().sum() - along - constant
    expected = zero**2 * constant + second**2 * along + rho**2 * rest
    torch.testing.assert_close(back.square().sum(), expected)


@pytest.mark.parametrize(
    ("x", "kwargs", "message"),
    [
        (torch.randn(4), {}, "shape"),
        (torch.empty(0, 3), {}, "not empty"),
        (torch.ones(3, 2, dtype=torch.int64), {}, "floating"),
        (torch.randn(4, 3), {"gamma": torch.ones(2)}, "gamma of shape"),
        (torch.randn(4, 3), {"running_var": torch.ones(2)}, "running_var of shape"),
        (torch.randn(4, 3), {"eps": -1.0}, "eps >= 0"),
        (torch.randn(4, 3), {"eps": float("nan")}, "eps >= 0"),
    ],
)
def test_wrong_arguments_are_named(x, kwargs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bn_eigenvalues(x, **kwargs)


def test_wrong_statistics_are_named() -> None:
    with pytest.raises(ValueError, match="count >= 1"):
        bn_eigenvalues_from_variance(torch.ones(3), 0)
    with pytest.raises(ValueError, match=r"shape \(C,\)"):
        bn_eigenvalues_from_variance(torch.ones(3, 2), 4)
