"""Jacobian spectra of blocks against SVDs of dense Jacobians by NumPy."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from propkit.module_map import module_map
from propkit.probes import jacobian_spectrum
from propkit.registry import DEFAULT_PROBES, find_probe
from propkit.testing import ResidualBlock


def _values(function, x: torch.Tensor) -> dict[str, float]:
    found = jacobian_spectrum(function, x)
    assert all(v.ndim == 0 and v.dtype == torch.float64 for v in found.values())
    return {name: float(v) for name, v in found.items()}


def _oracle(matrix: np.ndarray) -> dict[str, float]:
    sigma = np.linalg.svd(matrix, compute_uv=False)
    return {
        "largest": sigma[0],
        "smallest": sigma[-1],
        "mean_square": (matrix**2).sum() / matrix.shape[1],
        "spread": (sigma**2).std() / (sigma**2).mean(),
    }


@pytest.mark.parametrize("shape", [(1, 1), (7, 4), (4, 7), (48, 200), (200, 48)])
def test_small_jacobians_are_exact(shape) -> None:
    a = torch.randn(shape, dtype=torch.float64)
    found = _values(lambda x: a @ x, torch.zeros(shape[1], dtype=torch.float64))
    expected = _oracle(a.numpy())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-6), name


@pytest.mark.parametrize("shape", [(49, 49), (1000, 300), (300, 1000), (1000, 1000)])
def test_large_ones_within_the_stated_errors(shape) -> None:
    a = torch.randn(shape) / shape[1] ** 0.5
    found = _values(lambda x: a @ x, torch.zeros(shape[1]))
    expected = _oracle(a.double().numpy())
    assert found["largest"] == pytest.approx(expected["largest"], rel=2e-3)
    assert found["largest"] <= expected["largest"] * (1 + 1e-6)
    # the standard error of Hutchinson's estimator by 8 vectors is at most √(2 tr G²/8)/tr G with G = JᵀJ
    gram = (a @ a.mT).double()
    error = float((gram.square().sum() / 4).sqrt() / gram.trace())
    assert found["mean_square"] == pytest.approx(expected["mean_square"], rel=4 * error)
    assert found["spread"] == pytest.approx(expected["spread"], rel=10 * error)
    if "smallest" in found:
        assert found["smallest"] == pytest.approx(expected["smallest"], rel=0.1)


def test_the_smallest_is_given_where_it_is_known_and_nowhere_else() -> None:
    q = torch.linalg.qr(torch.randn(200, 200, dtype=torch.float64))[0]
    x = torch.zeros(200, dtype=torch.float64)
    narrow = q @ torch.diag(torch.linspace(0.9, 1.1, 200, dtype=torch.float64))
    assert _values(lambda x: narrow @ x, x)["smallest"] == pytest.approx(0.9, rel=0.01)
    wide = q @ torch.diag(torch.logspace(-3, 0, 200, dtype=torch.float64))
    assert "smallest" not in _values(lambda x: wide @ x, x)
    half = torch.arange(200) % 2  # dead units: zero is a singular value
    assert _values(lambda x: half * x, x)["smallest"] == pytest.approx(0, abs=1e-12)


def test_dynamical_isometry() -> None:
    """An orthogonal map preserves every norm: in double precision nothing else is left."""
    q = torch.linalg.qr(torch.randn(100, 100, dtype=torch.float64))[0]
    found = _values(lambda x: 3 * x @ q, torch.zeros(2, 100, dtype=torch.float64))
    np.testing.assert_allclose([found["largest"], found["smallest"]], 3, rtol=1e-12)
    assert found["mean_square"] == pytest.approx(9, rel=0.02)
    assert found["spread"] < 0.3  # the square root of a noise of a few percent
    identity = _values(nn.Identity(), torch.zeros(40, dtype=torch.float64))
    np.testing.assert_allclose(list(identity.values()), [1, 1, 0, 1], atol=1e-12)


def test_one_direction_that_dominates_is_no_problem() -> None:
    """Rank one, 1000 inputs: Hutchinson's estimator alone would err by 50 % with 8 vectors."""
    u, v = torch.randn(2, 1000, dtype=torch.float64)
    found = _values(lambda x: u * (v @ x), torch.zeros(1000, dtype=torch.float64))
    top = float(u.norm() * v.norm())
    assert found["largest"] == pytest.approx(top, rel=1e-10)
    assert found["mean_square"] == pytest.approx(top**2 / 1000, rel=1e-10)
    assert found["spread"] == pytest.approx(999**0.5, rel=1e-10)


@pytest.mark.parametrize("training", [True, False])
def test_a_residual_block_with_batch_normalisation(training: bool) -> None:
    block = ResidualBlock(3).double().train(training)
    x = torch.randn(4, 3, 5, 4, dtype=torch.float64)
    twin = copy.deepcopy(block)
    matrix = torch.autograd.functional.jacobian(twin, x).reshape(240, 240)
    expected = _oracle(matrix.numpy())
    with module_map(block, x) as (function, z):
        found = _values(function, z)
    assert block.bn1.num_batches_tracked == 0
    assert found["largest"] == pytest.approx(expected["largest"], rel=1e-3)
    assert found["mean_square"] == pytest.approx(expected["mean_square"], rel=0.15)
    assert found["spread"] == pytest.approx(expected["spread"], rel=0.15)


def test_a_deep_collapsed_network() -> None:
    """20 ReLU layers of default initialisation: values of 1e-8, over many decades."""
    net = nn.Sequential(
        *(m for _ in range(20) for m in (nn.Linear(50, 50), nn.ReLU())), nn.Linear(50, 10)
    ).double()
    x = torch.randn(8, 50, dtype=torch.float64)
    matrix = torch.autograd.functional.jacobian(net, x).reshape(80, 400)
    expected, found = _oracle(matrix.numpy()), _values(net, x)
    assert expected["largest"] < 1e-5
    assert found["largest"] == pytest.approx(expected["largest"], rel=1e-6)
    for name in ("mean_square", "spread"):
        assert found[name] == pytest.approx(expected[name], rel=0.02)


def test_what_diverged_is_nan_not_an_error() -> None:
    for n in (3, 100):
        found = _values(lambda x: x * torch.nan, torch.ones(n))
        assert len(found) == 4
        assert all(np.isnan(v) for v in found.values())


def test_it_costs_what_it_says(monkeypatch) -> None:
    from propkit.spectra.linearize import Jacobian

    counts = {"apply": 0, "apply_transposed": 0}
    for name in counts:
        original = getattr(Jacobian, name)

        def counted(self, v, name=name, original=original):
            counts[name] += 1
            return original(self, v)

        monkeypatch.setattr(Jacobian, name, counted)
    forwards = []

    def function(x):
        forwards.append(1)
        return x * torch.linspace(1, 2, x.numel())

    jacobian_spectrum(function, torch.ones(300))
    assert len(forwards) == 1
    # and one product more, that of the check whether products and transposed ones agree
    assert counts == {"apply": 32, "apply_transposed": 33}


def test_it_draws_no_global_random_numbers_and_repeats_itself() -> None:
    a = torch.randn(100, 100)
    state = torch.get_rng_state()
    first, second = (_values(lambda x: a @ x, torch.zeros(100)) for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)


def test_it_runs_only_when_named() -> None:
    assert "jacobian_spectrum" not in DEFAULT_PROBES
    assert find_probe("jacobian_spectrum") is jacobian_spectrum
