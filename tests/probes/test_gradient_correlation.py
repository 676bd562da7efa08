"""Correlation of errors against an explicit loop over pairs, and against the theory of wide networks."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import propkit
from propkit.probes import gradient_correlation
from propkit.testing import brute_force
from tests.conftest import cross_entropy, make_case


def _oracle(errors: np.ndarray) -> dict[str, float]:
    rows = errors.reshape(len(errors), -1).astype(np.float64)
    cosines = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        for a, b in itertools.combinations(rows, 2)
        if a.any() and b.any()
    ]
    if not cosines:
        return {"mean": np.nan, "mean_square": np.nan}
    return {"mean": np.mean(cosines), "mean_square": np.mean(np.square(cosines))}


def _values(errors: torch.Tensor) -> dict[str, float]:
    found = gradient_correlation(errors)
    assert all(v.ndim == 0 and v.dtype == torch.float64 for v in found.values())
    return {name: float(v) for name, v in found.items()}


def _check(errors: torch.Tensor) -> None:
    found, expected = _values(errors), _oracle(errors.double().numpy())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.integers(1, 9),
    st.lists(st.integers(1, 5), max_size=3),
    st.sets(st.integers(0, 8)),
    st.integers(0, 2**31),
)
def test_any_shape_with_samples_without_error(samples, rest, zeros, seed) -> None:
    errors = torch.randn(samples, *rest, generator=torch.Generator().manual_seed(seed))
    for i in zeros:
        errors[i:][:1] = 0
    _check(errors)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype) -> None:
    _check(torch.randn(6, 3, 4, 4).to(dtype))


@pytest.mark.parametrize("scale", [1e-250, 1e250])
def test_scale_does_not_matter(scale: float) -> None:
    errors = torch.randn(7, 5, dtype=torch.float64)
    scales = torch.tensor([scale, 1, 1, scale, 1, 1e-3, 1], dtype=torch.float64)[:, None]
    np.testing.assert_allclose(
        list(_values(errors * scales).values()), list(_values(errors).values()), rtol=1e-12
    )


def test_special_directions() -> None:
    same = torch.randn(1, 9).expand(5, 9)
    np.testing.assert_allclose(list(_values(same).values()), 1)
    np.testing.assert_allclose(list(_values(torch.eye(5)).values()), 0, atol=1e-15)
    simplex = torch.eye(4) - 0.25  # the least correlated there are
    np.testing.assert_allclose(list(_values(simplex).values()), [-1 / 3, 1 / 9])


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_complex_errors(shape) -> None:
    errors = torch.randn(shape, dtype=torch.complex64)
    pairs = itertools.combinations(errors.numpy().astype(np.complex128), 2)
    cosines = np.array([np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs])
    expected = [cosines.real.mean(), (np.abs(cosines) ** 2).mean()]
    np.testing.assert_allclose(list(_values(errors).values()), expected, rtol=1e-9)


def test_white_noise_has_the_mean_square_of_its_dimension() -> None:
    """E cos² = 1/d, with a standard deviation of about √2/d for each of the 1225 pairs."""
    errors = torch.randn(50, 400, generator=torch.Generator().manual_seed(1))
    found = _values(errors)
    assert found["mean_square"] == pytest.approx(1 / 400, abs=4 * 2**0.5 / 400 / 1225**0.5)
    assert abs(found["mean"]) < 4 / 20 / 1225**0.5


def test_no_pair_and_no_number_are_nan() -> None:
    nothing = [torch.zeros(3, 4), torch.randn(1, 4), torch.empty(0, 4), torch.empty(3, 0)]
    bad = [torch.tensor([[1.0, v], [1, 1], [1, 2]]) for v in (float("nan"), float("inf"))]
    for errors in nothing + bad:
        assert all(np.isnan(v) for v in _values(errors).values())


def test_the_errors_are_those_that_arrive_at_each_layer() -> None:
    model, x, y = make_case("plain")
    expected = brute_force(model, cross_entropy(x, y))
    found = propkit.measure(model, x, y, loss=F.cross_entropy, probes="gradient_correlation")
    ds = found["gradient_correlation"].isel(step=0)
    sites = ds["site"].values.tolist()
    assert len(sites) > 2
    for site in sites:
        oracle = _oracle(expected[site][0].grad_output.numpy())
        for name, value in oracle.items():
            np.testing.assert_allclose(ds[name].sel(site=site), value, rtol=1e-5, atol=1e-7)


# -- wide networks ----------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.linear(torch.relu(x))


def _kappa_0(c: float) -> float:
    return 1 - math.acos(c) / math.pi


def _kappa_1(c: float) -> float:
    return (math.sqrt(1 - c * c) + (math.pi - math.acos(c)) * c) / math.pi


_DEPTH, _WIDTH, _SAMPLES, _NETWORKS = 8, 768, 24, 16


def _measured(make_layer) -> tuple[np.ndarray, np.ndarray]:
    """Mean over networks at each layer, and its standard error: orthogonal inputs, the loss a linear functional."""
    runs = []
    for seed in range(_NETWORKS):
        generator = torch.Generator().manual_seed(seed)
        net = nn.Sequential(*(m for _ in range(_DEPTH) for m in make_layer()))
        for parameter in net.parameters():
            with torch.no_grad():
                parameter.normal_(0, math.sqrt(2 / _WIDTH), generator=generator)
        x = torch.randn(_WIDTH, _SAMPLES, generator=generator)
        x = torch.linalg.qr(x)[0].mT * math.sqrt(_WIDTH)
        v = torch.randn(_WIDTH, generator=generator)
        found = propkit.measure(
            net, x, loss=lambda out, v=v: (out @ v).sum(), probes="gradient_correlation"
        )
        runs.append(found["gradient_correlation"]["mean"].isel(step=0).values)
    return np.mean(runs, 0), np.std(runs, 0, ddof=1) / math.sqrt(_NETWORKS)


def test_feed_forward_gradients_shatter_as_predicted() -> None:
    """arXiv:1702.08591 with the exact ReLU kernels: at layer l the product of κ_0(c_k) over the layers k >= l.

    The masks at layer k agree as the inputs of its ReLU do, whose correlation c_k goes by κ_1 from 0.
    """
    c, factors = 0.0, []
    for _ in range(_DEPTH):
        factors.append(_kappa_0(c))
        c = _kappa_1(c)
    expected = np.cumprod(factors[::-1])[::-1]
    assert expected[0] == pytest.approx(0.05002, abs=1e-5)
    found, error = _measured(lambda: (nn.Linear(_WIDTH, _WIDTH, bias=False), nn.ReLU()))
    np.testing.assert_array_less(np.abs(found - expected), 4 * error + 2 / _WIDTH)
    assert error.max() < 0.015


def test_skip_connections_keep_gradients_together_as_predicted() -> None:
    """x + W relu(x): the product of (1 + κ_0(c_k))/2 over the blocks above; 0.25 where the plain network has 0.05."""
    c, factors = 0.0, []
    for _ in range(_DEPTH):
        factors.append((1 + _kappa_0(c)) / 2)
        c = (c + _kappa_1(c)) / 2
    assert np.prod(factors) == pytest.approx(0.187, abs=5e-4)  # at the input of the first block
    expected = np.append(np.cumprod(factors[:0:-1])[::-1], 1)  # at the outputs of the blocks
    found, error = _measured(lambda: (Residual(_WIDTH),))
    np.testing.assert_array_less(np.abs(found - expected), 4 * error + 2 / _WIDTH)
    assert error.max() < 0.015


def test_a_classifier_s_loss_has_directions_of_its_own_which_the_mean_square_sees_through() -> None:
    """At the logits the errors of the classes sum to about zero; their mean hides an alignment that is perfect."""
    logits = torch.zeros(30, 3, requires_grad=True)
    F.cross_entropy(logits, torch.arange(30) % 3).backward()
    found = _values(logits.grad)
    assert found["mean"] == pytest.approx(-1 / 29)
    # 3·C(10, 2) = 135 pairs of one class (cos 1), 300 of two classes (cos −1/2)
    assert found["mean_square"] == pytest.approx((135 + 300 / 4) / 435)
