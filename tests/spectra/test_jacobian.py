"""Jacobian spectra against dense Jacobians: NumPy's matrices, autograd's rows, finite differences, ARPACK."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from propkit.spectra import linearize
from propkit.spectra.jacobian import (
    Density,
    jacobian_density,
    jacobian_extremes,
    jacobian_matrix,
    jacobian_moments,
    jacobian_singular_values,
)
from propkit.spectra.lanczos import bidiagonalize, generator, trace_moments
from propkit.spectra.linearize import Jacobian
from propkit.testing import ResidualBlock


def _double(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _linear(matrix: torch.Tensor):
    return lambda x: matrix @ x


def _rows(f, x: torch.Tensor) -> np.ndarray:
    """Autograd, a backward pass for each output."""
    jacobian = torch.autograd.functional.jacobian(lambda z: f(z.clone()), x)
    return jacobian.reshape(-1, x.numel()).double().numpy()


# -- the operator -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**20))
def test_an_mlp_against_numpy(samples: int, inputs: int, outputs: int, seed: int) -> None:
    """J of a sample is W2 diag(W1 x > 0) W1; the batch's is block diagonal."""
    w1, w2 = _double(7, inputs, seed=seed), _double(outputs, 7, seed=seed + 1)
    x = _double(samples, inputs, seed=seed + 2)
    blocks = [w2.numpy() @ np.diag(w1.numpy() @ z > 0) @ w1.numpy() for z in x.numpy()]
    expected = scipy.linalg.block_diag(*blocks)

    def f(x):
        return F.relu(x @ w1.mT, inplace=True) @ w2.mT

    np.testing.assert_allclose(jacobian_matrix(f, x), expected, atol=1e-12)
    sigma = np.linalg.svd(expected, compute_uv=False)
    np.testing.assert_allclose(jacobian_singular_values(f, x), sigma, atol=1e-10)
    v, u = _double(x.numel(), seed=3), _double(len(expected), seed=4)
    operator = Jacobian(f, x)
    assert operator.shape == expected.shape
    np.testing.assert_allclose(operator.apply(v), expected @ v.numpy(), atol=1e-11)
    np.testing.assert_allclose(operator.apply_transposed(u), expected.T @ u.numpy(), atol=1e-11)


def _attention(x):
    q = x.view(1, 2, 3, 4)
    return F.scaled_dot_product_attention(q, q, q, is_causal=True)


_LSTM = nn.LSTM(3, 4, batch_first=True).double()
_MHA = nn.MultiheadAttention(8, 2, batch_first=True).double()
_FUNCTIONS = {
    "in-place activations": (
        nn.Sequential(nn.ReLU(inplace=True), nn.Conv1d(2, 3, 3), nn.ELU(inplace=True)),
        (2, 2, 6),
    ),
    "batch norm and pooling": (
        nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.MaxPool2d(2)),
        (3, 2, 4, 4),
    ),
    "residual": (ResidualBlock(2), (2, 2, 4, 3)),
    "attention": (lambda x: _MHA(x, x, x)[0], (1, 3, 8)),
    "fused attention": (_attention, (24,)),
    "recurrent": (lambda x: _LSTM(x)[0], (2, 3, 3)),
    "layer norm": (nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.LayerNorm(6)), (2, 5)),
    "views": (lambda x: x.view(2, 3).t()[1:].sin(), (6,)),
    "nothing": (nn.Identity(), (4,)),
}


@pytest.mark.parametrize("name", _FUNCTIONS)
def test_networks_against_autograd_and_finite_differences(name: str) -> None:
    f, shape = _FUNCTIONS[name]
    if isinstance(f, nn.Module):
        f = f.double()
    x = _double(*shape)
    rows, calls = _rows(f, x), []
    operator = Jacobian(lambda z: calls.append(1) or f(z), x)
    columns = torch.stack([operator.apply(e) for e in torch.eye(x.numel())], 1)
    np.testing.assert_allclose(columns, rows, atol=1e-10)
    assert len(calls) == 1
    np.testing.assert_allclose(operator.dense(), rows, atol=1e-10)
    v, step = _double(x.numel(), seed=5), 1e-6
    with torch.no_grad():
        up, down = (f((x + s * step * v.view(shape)).clone()) for s in (1, -1))
    np.testing.assert_allclose(operator.apply(v), (up - down).reshape(-1) / (2 * step), atol=1e-6)


def test_batch_normalisation_couples_samples_and_only_in_training_mode() -> None:
    net = nn.BatchNorm1d(3).double()
    x = _double(4, 3)
    for training in (True, False):
        net.train(training)
        blocks = jacobian_matrix(net, x).reshape(4, 3, 4, 3)
        between = blocks[0, :, 1].abs().max()
        assert (between > 1e-3) == training


def test_one_forward_pass_serves_all_products_so_that_a_dropout_mask_holds() -> None:
    calls = []

    def f(x):
        calls.append(1)
        return F.dropout(x, 0.5)

    matrix = jacobian_matrix(f, torch.ones(40))
    assert len(calls) == 1
    assert set(np.unique(matrix)) == {0.0, 2.0}
    operator = Jacobian(f, torch.ones(40))
    torch.testing.assert_close(
        operator.apply(torch.ones(40)), operator.apply_transposed(torch.ones(40))
    )


def test_what_is_around_does_not_matter_and_stays() -> None:
    layer = nn.Linear(3, 3)
    x = torch.randn(2, 3, requires_grad=True)
    expected = jacobian_singular_values(layer, x)
    state = torch.get_rng_state()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(jacobian_singular_values(layer, x), expected)
    jacobian_density(layer, x)
    jacobian_moments(layer, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert x.grad is None
    assert all(p.grad is None for p in layer.parameters())


class _OneWay(torch.autograd.Function):
    """exp with a backward pass that autograd cannot differentiate."""

    @staticmethod
    def forward(ctx, x):
        y = x.exp()
        ctx.save_for_backward(y)
        ctx.save_for_forward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


class _OneWayWithForwardMode(_OneWay):
    @staticmethod
    def jvp(ctx, tangent):
        return tangent * ctx.saved_tensors[0]


class _SilentlyCut(_OneWay):
    @staticmethod
    def backward(ctx, grad):
        return torch.from_numpy(grad.detach().numpy()) * ctx.saved_tensors[0]


def test_forward_mode_where_a_backward_pass_has_no_derivative() -> None:
    x = _double(5)

    def f(x):
        return _OneWayWithForwardMode.apply(x) + x

    operator = Jacobian(f, x)
    columns = torch.stack([operator.apply(e) for e in torch.eye(5)], 1)
    np.testing.assert_allclose(columns, np.diag(np.exp(x.numpy()) + 1), rtol=1e-14)


@pytest.mark.parametrize("operation", [_OneWay, _SilentlyCut])
def test_neither_way_is_an_error_not_a_wrong_number(operation) -> None:
    """The second would give the skip connection's Jacobian alone."""
    x = _double(5)

    def f(x):
        return operation.apply(x) + x

    with pytest.raises(RuntimeError, match=r"no derivative|disagrees.*jvp"):
        Jacobian(f, x).apply(torch.ones(5))
    np.testing.assert_allclose(jacobian_matrix(f, x), np.diag(np.exp(x.numpy()) + 1), rtol=1e-14)


def test_checkpointing() -> None:
    layer = nn.Linear(4, 4).double()
    x = _double(3, 4)

    def f(x):
        return checkpoint(lambda z: layer(z).tanh(), x, use_reentrant=False)

    operator = Jacobian(f, x)
    expected = _rows(lambda x: layer(x).tanh(), x)
    np.testing.assert_allclose(operator.dense(), expected, atol=1e-14)
    v = _double(12)
    np.testing.assert_allclose(operator.apply(v), expected @ v.numpy(), atol=1e-13)


@pytest.mark.parametrize(
    ("f", "x", "error", "message"),
    [
        (lambda x: x, torch.arange(3), TypeError, r"x to be a real floating tensor.*int64"),
        (lambda x: x, torch.ones(3, dtype=torch.complex64), TypeError, "complex64"),
        (lambda x: (x, x), torch.ones(3), TypeError, r"f\(x\).*tuple"),
        (lambda x: x, torch.ones(0, 2), ValueError, r"x is empty, shape \(0, 2\)"),
        (lambda x: x.detach() * 2, torch.ones(3), ValueError, "does not depend on x"),
    ],
)
def test_what_has_no_jacobian(f, x, error, message) -> None:
    with pytest.raises(error, match=message):
        jacobian_singular_values(f, x)


def test_a_function_of_something_else() -> None:
    weight = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match="does not depend on x"):
        jacobian_singular_values(lambda x: 2 * weight, torch.ones(3))


def test_arguments_are_checked(monkeypatch) -> None:
    x = torch.ones(3)
    with pytest.raises(ValueError, match="iterations: expected a positive integer, found 0"):
        jacobian_extremes(torch.sin, x, iterations=0)
    with pytest.raises(ValueError, match="probes"):
        jacobian_moments(torch.sin, x, probes=1.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        jacobian_density(torch.sin, x).quantile(2)
    monkeypatch.setattr(linearize, "DENSE_LIMIT", 8)
    with pytest.raises(ValueError, match=r"3 x 3 is too large.*jacobian_density"):
        jacobian_singular_values(torch.sin, x)


# -- extremes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (250, 250)])
def test_the_largest_against_arpack(shape) -> None:
    """Gaussian: no gap at the top. The bound of the error holds."""
    a = _double(*shape, seed=7)
    top = scipy.sparse.linalg.svds(a.numpy(), k=1, return_singular_vectors=False)[0]
    found = jacobian_extremes(_linear(a), torch.zeros(shape[1], dtype=torch.float64))
    assert float(found.largest) == pytest.approx(top, rel=1e-5)
    assert found.largest <= top * (1 + 1e-12)
    sigma = np.linalg.svd(a.numpy(), compute_uv=False)
    for value, error in ((found.largest, found.largest_error), found[1::2]):
        assert np.abs(sigma - float(value)).min() <= float(error) + 1e-12 * top
    assert found.smallest >= sigma[-1] * (1 - 1e-9)


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (30, 30)])
def test_both_ends_are_exact_once_the_krylov_space_is_complete(shape) -> None:
    a = _double(*shape) @ torch.diag(torch.logspace(0, -8, shape[1], dtype=torch.float64))
    found = jacobian_extremes(_linear(a), torch.zeros(shape[1], dtype=torch.float64))
    sigma = np.linalg.svd(a.numpy(), compute_uv=False)
    assert len(sigma) == 30
    assert float(found.largest) == pytest.approx(sigma[0], rel=1e-13)
    assert float(found.smallest) == pytest.approx(sigma[-1], rel=1e-6)
    assert float(found.smallest_error) <= 1e-9 * sigma[0]


def test_a_narrow_spectrum_is_resolved_at_both_ends() -> None:
    q = torch.linalg.qr(_double(500, 500))[0]
    a = q @ torch.diag(torch.linspace(0.8, 1.2, 500, dtype=torch.float64))
    found = jacobian_extremes(_linear(a), torch.zeros(500, dtype=torch.float64))
    np.testing.assert_allclose([*found[:2]], [1.2, 0.8], rtol=2e-3)
    assert found.smallest_error < 0.05


@pytest.mark.parametrize(
    ("diagonal", "largest", "smallest"),
    [
        ([0.0] * 5, 0, 0),
        ([1, 1, 0, 0, 1], 1, 0),
        ([2.0] * 5, 2, 2),
        ([torch.nan] * 5, *[np.nan] * 2),
    ],
)
def test_few_distinct_values(diagonal, largest, smallest) -> None:
    """The process stops where its space is exhausted, and nothing is left open."""
    a = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    found = jacobian_extremes(_linear(a), torch.zeros(5, dtype=torch.float64))
    np.testing.assert_allclose(found[:2], [largest, smallest], atol=1e-14)
    np.testing.assert_allclose(found[2:], [0 * largest] * 2, atol=1e-14)


def test_the_bases_stay_orthogonal_in_the_face_of_converged_values() -> None:
    """Without reorthogonalisation the outlier would come back as a ghost within these steps."""
    a = torch.diag(torch.linspace(0, 1, 300, dtype=torch.float64) ** 2)
    a[-1, -1] = 1000
    operator = Jacobian(_linear(a), torch.zeros(300, dtype=torch.float64)).smaller()
    run = bidiagonalize(operator, 60, generator(3))
    assert len(run.diagonal) == 60
    np.testing.assert_allclose(run.basis @ run.basis.mT, np.eye(60), atol=1e-13)
    assert (run.ritz()[0] > 500).sum() == 1
    np.testing.assert_allclose(  # AᵀA V = V BᵀB + β α v e_kᵀ, projected
        run.basis @ a.mT @ a @ run.basis.mT, run.matrix.mT @ run.matrix, rtol=1e-9, atol=1e-9
    )


def test_the_error_is_the_residual_of_the_ritz_vectors() -> None:
    """‖Aᵀu − θv‖ with v = V q from the basis, u = A v/θ."""
    a = _double(60, 50)
    run = bidiagonalize(
        Jacobian(_linear(a), torch.zeros(50, dtype=torch.float64)).smaller(), 6, generator(4)
    )
    values, errors, _ = run.ritz()
    q = torch.linalg.svd(run.matrix)[2]
    v = run.basis.mT @ q.mT
    residuals = torch.linalg.vector_norm(a.mT @ (a @ v) / values - values * v, dim=0)
    torch.testing.assert_close(errors, residuals)


def test_single_precision_functions_lose_no_more_than_their_own_rounding() -> None:
    a = _double(120, 80)
    found = jacobian_extremes(_linear(a.float()), torch.zeros(80), iterations=80)
    sigma = np.linalg.svd(a.numpy(), compute_uv=False)
    assert found.largest.dtype == torch.float64
    np.testing.assert_allclose(found[:2], sigma[[0, -1]], atol=1e-6 * sigma[0])


def test_seeds() -> None:
    a = _double(60, 60)
    x = torch.zeros(60, dtype=torch.float64)
    first, again, other = (
        jacobian_extremes(_linear(a), x, iterations=5, seed=s).largest for s in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_a_network_initialised_with_the_same_seed_is_no_special_case() -> None:
    """A plain generator with seed 0 would start from the network's own first row, which is one of the worst starts."""
    a = torch.randn(300, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = jacobian_density(_linear(a), torch.zeros(200, dtype=torch.float64), probes=1)
    expected = float(a.square().sum()) / 200
    assert float(found.moment(2)) == pytest.approx(expected, rel=0.4)  # it would be 1.7 times that


# -- density and moments ----------------------------------------------------------------------------------------------


def _distance(density: Density, sigma: np.ndarray) -> float:
    """Wasserstein-1, relative to the mean singular value."""
    found = scipy.stats.wasserstein_distance(
        density.nodes.numpy(), sigma, u_weights=density.weights.numpy()
    )
    return float(found) / sigma.mean()


@pytest.mark.parametrize("shape", [(400, 300), (300, 400)])
def test_the_density_of_a_gaussian_matrix(shape) -> None:
    """n = 300, 16 vectors: sampling error of a share 1/√(16·300) = 1.4 %."""
    a = _double(*shape, seed=7)
    sigma = np.linalg.svd(a.numpy(), compute_uv=False)
    x = torch.zeros(shape[1], dtype=torch.float64)
    density = jacobian_density(_linear(a), x, probes=16)
    assert float(density.weights.sum()) == pytest.approx(1)
    assert (density.nodes.diff() >= 0).all()
    assert _distance(density, sigma) < 0.02
    for q in (0.1, 0.5, 0.9):
        assert float(density.quantile(q)) == pytest.approx(np.quantile(sigma, q), rel=0.1)
    assert density.quantile(0) == density.nodes[0]
    assert density.quantile(1) == density.nodes[-1]


def test_the_quadrature_is_exact_for_low_moments_of_each_vector() -> None:
    """Gauss' rule of 4 steps: Σ w σ^(2p) = vᵀ(AᵀA)^p v up to p = 7."""
    a = _double(50, 40) / 10
    operator = Jacobian(_linear(a), torch.zeros(40, dtype=torch.float64)).smaller()
    run = bidiagonalize(operator, 4, generator(0))
    values, _, weights = run.ritz()
    v, gram = run.basis[0].numpy(), (a.mT @ a).numpy()
    for p in range(8):
        expected = v @ np.linalg.matrix_power(gram, p) @ v
        assert float((weights * values ** (2 * p)).sum()) == pytest.approx(expected, rel=1e-11)
    beyond = v @ np.linalg.matrix_power(gram, 8) @ v
    assert float((weights * values**16).sum()) != pytest.approx(beyond, rel=1e-6)


def test_the_density_of_a_network() -> None:
    net = nn.Sequential(
        *(
            m
            for _ in range(3)
            for m in (nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        )
    ).double()
    x = _double(4, 4, 5, 5)
    sigma = jacobian_singular_values(net, x)
    np.testing.assert_allclose(
        sigma, np.linalg.svd(_rows(net, x), compute_uv=False), atol=1e-10 * float(sigma[0])
    )
    # Half of these values are zeros and the largest is 10 times the mean: that takes more steps and vectors.
    density = jacobian_density(net, x, probes=32, steps=80)
    assert _distance(density, sigma.numpy()) < 0.05
    moments = jacobian_moments(net, x)
    for estimate, power in zip(moments, (2, 4), strict=True):
        exact = float(sigma.pow(power).mean())
        assert float(estimate.value) == pytest.approx(exact, abs=4 * float(estimate.error))
        assert float(estimate.error) < 0.3 * exact


@pytest.mark.parametrize("shape", [(30, 70), (70, 30)])
def test_moments_are_means_over_the_inputs(shape) -> None:
    a = _double(*shape)
    found = jacobian_moments(_linear(a), torch.zeros(shape[1], dtype=torch.float64), probes=400)
    gram = (a.mT @ a).numpy()
    for estimate, exact in zip(found, (gram.trace(), (gram @ gram).trace()), strict=True):
        assert float(estimate.value) == pytest.approx(
            exact / shape[1], abs=4 * float(estimate.error)
        )
        assert float(estimate.error) < 0.05 * exact / shape[1]


@pytest.mark.parametrize("steps", [3, 12])
def test_what_lanczos_has_seen_is_taken_out_of_the_estimate(steps: int) -> None:
    """The sum is still unbiased, and varies far less where that is most of the trace."""
    a = _double(40, 40) @ torch.diag(torch.logspace(0, -2, 40, dtype=torch.float64))
    gram = (a.mT @ a).numpy()
    operator = Jacobian(_linear(a), torch.zeros(40, dtype=torch.float64)).smaller()
    run = bidiagonalize(operator, steps, generator(1))
    found = trace_moments(operator, 1500, generator(2), run)
    plain = trace_moments(operator, 1500, generator(2))
    for with_it, without, exact in zip(
        found, plain, (gram.trace(), (gram @ gram).trace()), strict=True
    ):
        assert float(with_it.value) == pytest.approx(exact, abs=4 * float(with_it.error))
        assert with_it.error < (0.3 if steps > 3 else 1.5) * without.error


def test_the_standard_error_is_that_of_repeated_runs() -> None:
    a, x = _double(40, 40), torch.zeros(40, dtype=torch.float64)
    runs = [jacobian_moments(_linear(a), x, probes=16, seed=s).mean_square for s in range(100)]
    values = torch.stack([r.value for r in runs])
    errors = torch.stack([r.error for r in runs])
    assert float(errors.mean() / values.std()) == pytest.approx(1, abs=0.25)  # 3.5/√(2·100)
    assert jacobian_moments(_linear(a), x, probes=1).mean_square.error.isnan()
