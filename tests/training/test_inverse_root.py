"""Inverse square roots of Gram matrices, by products and by eigenvalues, against NumPy in float64."""

import numpy as np
import pytest
import torch

from propkit.training import inverse_root as module
from propkit.training import polar_factor, procrustes_
from propkit.training.inverse_root import InverseRoots


def operators(number, rows, columns, seed=0):
    """Complex Gaussian matrices."""
    generator = np.random.default_rng(seed)
    parts = generator.standard_normal((2, number, rows, columns))
    return parts[0] + 1j * parts[1]


def with_values(values, columns, seed=0):
    """One operator that has these singular values."""
    u, _, v = np.linalg.svd(operators(1, len(values), columns, seed)[0], full_matrices=False)
    return u * values @ v


def roots(a, dtype=torch.float32, groups=1):
    """The inverse roots of A Aᴴ as complex128, from the encoding as Re + Im and back."""
    gram = a @ a.conj().swapaxes(1, 2)
    coded = torch.from_numpy(gram.real + gram.imag).to(dtype)
    coded = coded.view(-1, groups, *coded.shape[1:])
    trace = torch.from_numpy(np.trace(gram, axis1=1, axis2=2).real).view(-1, groups).amax(0)
    find = InverseRoots(len(a), coded[0, 0], a.shape[2])
    found = find(coded, trace.to(dtype)).flatten(0, 1).double().numpy()
    other = found.swapaxes(1, 2)
    return (found + other) / 2 + 1j * (found - other) / 2


def error(a, found):
    """Of the polar factors that the roots make: per matrix, per singular value."""
    u, _, v = np.linalg.svd(a, full_matrices=False)
    return np.linalg.norm(found @ a - u @ v, axis=(1, 2)) / a.shape[1] ** 0.5


@pytest.fixture
def without_eigenvalues(monkeypatch):
    def refuse(*_):
        raise AssertionError("eigenvalues were taken")

    monkeypatch.setattr(module, "inverse_root", refuse)
    monkeypatch.setattr(polar_factor, "inverse_root", refuse)


@pytest.mark.parametrize(("rows", "columns"), [(8, 16), (20, 36), (48, 80), (64, 256)])
def test_products_are_as_exact_as_float32_permits(rows, columns, without_eigenvalues):
    a = operators(12, rows, columns)
    assert error(a, roots(a)).max() < 3e-6


@pytest.mark.parametrize(("least", "most"), [(0.93, 1.0), (0.8, 1.2), (0.99, 1.01), (0.65, 1.05)])
def test_square_operators_whose_values_have_come_together(least, most, without_eigenvalues):
    """Whichever of the steps they start with."""
    values = np.random.default_rng(0).uniform(least, most, (6, 32))
    a = np.stack([with_values(v, 32, seed) for seed, v in enumerate(values)])
    assert error(a, roots(a)).max() < 2e-6


@pytest.mark.parametrize("shape", [(24, 64, 64), (9, 40, 44), (6, 90, 100), (7, 11, 11)])
def test_products_of_badly_conditioned_operators(shape, without_eigenvalues):
    """The Gram matrix in float32 loses the square of the condition number, and no more is lost."""
    a = operators(*shape)
    condition = np.linalg.cond(a)
    assert condition.max() > 30
    assert condition.max() < 400
    assert (error(a, roots(a)) < 1e-8 * condition**2 + 1e-6).all()


@pytest.mark.parametrize("shape", [(5, 100, 104), (300, 3, 16), (4, 1, 1)])
def test_others_by_eigenvalues(shape):
    """Small matrices, and large ones that are badly conditioned."""
    a = operators(*shape)
    condition = np.linalg.cond(a)
    assert (error(a, roots(a)) < 3e-7 * condition**2 + 3e-6).all()


def test_a_batch_that_does_not_converge_is_the_last_that_is_tried(monkeypatch):
    tried = []
    products = module._Products.roots
    monkeypatch.setattr(module._Products, "roots", lambda *args: tried.append(1) or products(*args))
    good, bad = torch.eye(16).repeat(4, 1, 1, 1), torch.eye(16).repeat(4, 1, 1, 1)
    bad[:, 0, 0, 0] = 0
    find, trace = InverseRoots(4, good[0, 0], 16), torch.full((1,), 16.0)
    half = torch.cat([good[:2], bad[:2]])
    for batch, times in ((good, 1), (half, 2), (bad, 3), (good, 3)):
        found = find(batch, trace)[:, 0]
        assert len(tried) == times
        torch.testing.assert_close(found[:, 1:, 1:], torch.eye(15).expand(4, 15, 15))


def test_one_small_value_that_the_spread_does_not_show():
    """The residual does: it is as exact as by eigenvalues, and the rest of the batch too."""
    values = np.ones((4, 32))
    values[1, 0], values[2, 0] = 0.02, 0.05
    a = np.stack([with_values(v, 48, seed) for seed, v in enumerate(values)])
    found = error(a, roots(a))
    assert found[[0, 3]].max() < 2e-6
    assert found[1] < 3e-4
    assert found[2] < 5e-5


def test_what_has_not_converged_gets_more_steps(without_eigenvalues):
    values = np.ones((6, 32))
    values[1, 0], values[2, 0] = 0.3, 0.12
    a = np.stack([with_values(v, 48, seed) for seed, v in enumerate(values)])
    found = error(a, roots(a))
    assert found[[0, 3, 4, 5]].max() < 2e-6
    assert found[1:3].max() < 5e-5


def test_a_batch_of_both_kinds_in_groups():
    good, bad = operators(3, 24, 60), operators(3, 24, 60, seed=1)
    bad[:, 0] *= 0.01
    a = np.stack([good, bad], 1).reshape(-1, 24, 60)  # group 1 has the bad ones
    found = error(a, roots(a, groups=2))
    assert found[::2].max() < 3e-6
    assert found[1::2].max() < 3e-3
    assert error(a, roots(a, torch.float64, groups=2)).max() < 1e-10


def test_zeros_have_a_finite_root():
    gram = torch.zeros(3, 1, 16, 16)
    gram[1] = torch.eye(16)
    found = InverseRoots(3, gram[0, 0], 32)(gram, torch.full((1,), 16.0))
    assert found.isfinite().all()
    torch.testing.assert_close(found[1, 0], torch.eye(16))


def test_directions_without_gain_stay_bounded():
    """By √(1 / ε trace): the eigenvalue is raised to rounding."""
    a = operators(2, 16, 40)
    a[0, 0] = 0
    found = roots(a)
    largest = np.linalg.norm(found[0], 2)
    trace = np.linalg.norm(a, axis=(1, 2)).max() ** 2
    assert largest == pytest.approx(1 / np.sqrt(np.finfo(np.float32).eps * trace), rel=1e-3)
    assert error(a, found)[1] < 3e-6


def test_rounding_is_that_of_the_matrix_own_group():
    good, small = operators(1, 16, 40), 1e-3 * operators(1, 16, 40, seed=1)
    small[0, 0] = 0
    found = roots(np.concatenate([good, small]), groups=2)
    floor = np.finfo(np.float32).eps * np.linalg.norm(small) ** 2
    assert np.linalg.norm(found[1], 2) == pytest.approx(1 / np.sqrt(floor), rel=1e-3)


@pytest.mark.parametrize("values", [np.full(30, 2.0), np.r_[9.0, np.ones(29)], np.arange(1.0, 31)])
def test_the_bound_is_one_and_is_near(values):
    """Of λ_max by the fourth moment, or by mean and deviation (Samuelson), whichever is less."""
    away = values / values.mean() - 1
    fourth, mean, spread = (
        torch.tensor([x]) for x in ((away**4).sum() ** 0.5, values.mean(), away.std())
    )
    bound = float(module.largest_bound(fourth, mean, spread, len(values)))
    least = values.mean() * (1 + min((away**4).sum() ** 0.25, away.std() * 29**0.5))
    assert values.max() < bound == pytest.approx(least, rel=2e-5)


def polynomial(a, b, c):
    return lambda x: a * x + b * x**3 + c * x**5


def rational(a, b, s, p):
    return lambda x: a * x + b * x**3 + s * x / (1 + p * x**2)


@pytest.mark.parametrize(
    ("function", "low", "expected"),
    [
        (polynomial(*module.POLYNOMIAL), 0.11, [0.4075, 1] * 2),
        (rational(*module.RATIONAL), 0.002, [module.LOWEST, 1] * 2 + [module.LOWEST]),
        (polynomial(*module.STEP), module.LOWEST, [0.9044, 1] * 2),
    ],
)
def test_each_step_is_the_best_of_its_kind_and_interval(function, low, expected):
    """Chebyshev: least and largest value are taken in turn, at one point more than there are coefficients."""
    x = np.geomspace(low, 1, 200001)
    y = function(x)
    inner = np.flatnonzero(np.diff(np.sign(np.diff(y)))) + 1
    np.testing.assert_allclose(y[[0, *inner, -1]], expected, atol=2e-4)


def test_the_finish_is_as_exact_as_float32():
    e = np.linspace(-0.125, 0.125, 1001)
    assert abs(np.polyval(module.FINISH[::-1], e) * np.sqrt(1 - e) - 1).max() < 5e-7
    assert pytest.approx((1 + 0.9044**2) / 2) == module.CENTRE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 16, 40), (3, 24, 48)])
def test_matrix_polar_factor_of_well_conditioned_matrices(shape, dtype, without_eigenvalues):
    a = np.random.default_rng(0).standard_normal(shape)
    u, _, v = np.linalg.svd(a, full_matrices=False)
    found = polar_factor.matrix_polar_factor(torch.from_numpy(a).to(dtype))
    atol = 1e-13 if dtype == torch.float64 else 1e-6
    np.testing.assert_allclose(found.numpy(), u @ v, atol=atol, rtol=0)


@pytest.mark.parametrize("shape", [(32, 16, 1, 1), (32, 16, 3, 3)])
def test_projection_of_kernels_of_any_size(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = procrustes_(weight.clone(), 6)
    for scale in (1e-30, 1e30):
        torch.testing.assert_close(procrustes_(scale * weight, 6), expected, atol=2e-6, rtol=0)
