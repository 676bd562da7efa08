"""Gaussian expectations against adaptive integration, Gauss-Hermite quadrature, PyTorch and known constants."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special

from propkit.spectra.activations import Activation, LeakyReLU, activation_named, kappa_0, kappa_1

NAMES = ("linear", "relu", "leaky_relu", "erf", "tanh", "gelu", "silu")
SMOOTH = ("linear", "erf", "tanh", "gelu", "silu")
TORCH = {
    "linear": lambda u: u,
    "relu": F.relu,
    "leaky_relu": lambda u: F.leaky_relu(u, 0.2),
    "erf": torch.erf,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
}


def _integral(f, q: float) -> float:
    def weighted(z):
        return f(np.sqrt(q) * z) * np.exp(-z * z / 2) / np.sqrt(2 * np.pi)

    return sum(
        integrate.quad(weighted, a, b, epsabs=1e-13, epsrel=1e-13, limit=200)[0]
        for a, b in ((-14, -1), (-1, 0), (0, 1), (1, 14))
    )


Z, W = special.roots_hermitenorm(400)


def _pair(f, q: float, c: float) -> float:
    z, w = Z, W / W.sum()
    u, v = np.sqrt(q) * z[:, None], np.sqrt(q) * (c * z[:, None] + np.sqrt(1 - c * c) * z)
    return float(w @ (f(u) * f(v)) @ w)


@pytest.mark.parametrize("name", NAMES)
def test_functions_are_pytorch_s_and_derivatives_autograd_s(name: str) -> None:
    u = torch.linspace(-6, 6, 201, dtype=torch.float64) + 0.01
    u.requires_grad_()
    y = TORCH[name](u)
    (slope,) = torch.autograd.grad(y.sum(), u)
    ours = activation_named(name, 0.2)
    x = u.detach().numpy()
    np.testing.assert_allclose(ours.function(x), y.detach(), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(ours.derivative(x), slope, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("q", [1e-3, 0.3, 1.0, 4.0, 50.0])
@pytest.mark.parametrize("name", NAMES)
def test_moments_against_adaptive_integration(name: str, q: float) -> None:
    a = activation_named(name, 0.2)
    f, d = a.function, a.derivative
    kwargs = {"rtol": 1e-10, "atol": 1e-13}
    np.testing.assert_allclose(a.mean(q), _integral(f, q), **kwargs)
    np.testing.assert_allclose(a.second_moment(q), _integral(lambda u: f(u) ** 2, q), **kwargs)
    np.testing.assert_allclose(
        a.slope_second_moment(q), _integral(lambda u: d(u) ** 2, q), **kwargs
    )
    h = 1e-3 * q
    difference = sum(
        w * a.second_moment(q + k * h) for k, w in ((-2, 1), (-1, -8), (1, 8), (2, -1))
    ) / (12 * h)
    np.testing.assert_allclose(a.growth(q), difference, rtol=1e-8)


@pytest.mark.parametrize("c", [-1.0, -0.6, 0.0, 0.3, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("q", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("name", SMOOTH)
def test_products_against_gauss_hermite(name: str, q: float, c: float) -> None:
    a = activation_named(name)
    np.testing.assert_allclose(a.product(q, c), _pair(a.function, q, c), rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(
        a.slope_product(q, c), _pair(a.derivative, q, c), rtol=1e-7, atol=1e-8
    )


@pytest.mark.parametrize("name", ["erf", "gelu"])
@settings(deadline=None, max_examples=20)
@given(st.floats(1e-4, 20), st.floats(-1, 1))
def test_closed_forms_agree_with_our_own_quadrature(name: str, q: float, c: float) -> None:
    """Two derivations of the same numbers; the rule is exact to rounding for these two."""
    exact = activation_named(name)
    rule = Activation(exact.function, exact.derivative)
    kwargs = {"rtol": 1e-11, "atol": 1e-14}
    for method in ("mean", "second_moment", "slope_second_moment"):
        np.testing.assert_allclose(getattr(exact, method)(q), getattr(rule, method)(q), **kwargs)
    np.testing.assert_allclose(exact.product(q, c), rule.product(q, c), **kwargs)
    np.testing.assert_allclose(exact.slope_product(q, c), rule.slope_product(q, c), **kwargs)


@settings(deadline=None, max_examples=30)
@given(st.floats(-1, 1.5), st.floats(0.1, 5), st.floats(-0.999, 0.999))
def test_kinks_are_exact(slope: float, q: float, c: float) -> None:
    """In polar coordinates the radius integrates to 2q and the angle runs over arcs without kinks."""
    a = LeakyReLU(slope)
    turn = np.arccos(c)
    corners = np.sort(
        np.mod([np.pi / 2, -np.pi / 2, turn + np.pi / 2, turn - np.pi / 2], 2 * np.pi)
    )

    def around(f, factor: float) -> float:
        def g(t):
            return f(np.cos(t)) * f(np.cos(t - turn))

        arcs = zip(corners, np.append(corners[1:], corners[0] + 2 * np.pi), strict=True)
        return factor * sum(integrate.quad(g, s, e, epsabs=1e-12)[0] for s, e in arcs) / (2 * np.pi)

    np.testing.assert_allclose(a.product(q, c), around(a.function, 2 * q), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(a.slope_product(q, c), around(a.derivative, 1), rtol=1e-9, atol=1e-9)


def test_known_kernels() -> None:
    a = LeakyReLU(0.1)
    np.testing.assert_allclose(a.product(1.0, 0.5), 0.29664, atol=5e-6)
    np.testing.assert_allclose(a.slope_product(1.0, 0.5), 0.37, atol=5e-6)
    assert kappa_1(1) == kappa_0(1) == 1
    assert kappa_1(0) == pytest.approx(1 / np.pi)
    assert kappa_0(0) == 0.5
    assert kappa_0(-1) == 0


def test_shapes_follow_the_argument() -> None:
    q = np.array([[0.0, 0.5], [1.0, 2.0]])
    for name in NAMES:
        a = activation_named(name)
        for method in ("mean", "second_moment", "slope_second_moment", "growth"):
            values = getattr(a, method)(q)
            assert values.shape == (2, 2)
            assert values[1, 0] == pytest.approx(float(getattr(a, method)(1.0)), rel=1e-12)
        assert a.product(1.0, q / 2).shape == a.slope_product(1.0, q / 2).shape == (2, 2)
        assert a.product(1.0, 0.5).shape == ()


def test_a_callable_is_differentiated_numerically() -> None:
    a, exact = activation_named(np.tanh), activation_named("tanh")
    for method in ("second_moment", "slope_second_moment", "growth"):
        np.testing.assert_allclose(getattr(a, method)(1.3), getattr(exact, method)(1.3), rtol=1e-10)
    np.testing.assert_allclose(a.growth(0.0), 1.0, rtol=1e-6)
    np.testing.assert_allclose(activation_named(np.cos).growth(0.0), -1.0, rtol=1e-6)
    assert activation_named(a) is a


def test_unknown_activations_are_named() -> None:
    with pytest.raises(ValueError, match="there are linear, relu"):
        activation_named("rely")
    with pytest.raises(TypeError, match="name or a function"):
        activation_named(3)  # type: ignore[arg-type]
