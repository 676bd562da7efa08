"""Expectations of activation functions under Gaussian pre-activations: all that mean-field theory needs of them.

u, u₁, u₂ are normal with mean 0 and variance q; u₁ and u₂ have the correlation c. Closed forms where there are any
(linear, ReLU, leaky ReLU, erf, GELU), else the trapezoidal rule, which converges exponentially for smooth functions
under a Gaussian weight (tanh, SiLU, any callable). Only NumPy and SciPy are needed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

Floats = npt.NDArray[np.float64]
Function = Callable[[Floats], Floats]

_REACH = 12.0
"""Standard deviations that integrals run over; the density beyond is below 1e-31."""
_STEP = 1 / 32
"""Step of the rule in one dimension, in standard deviations; twice as much in two."""


class Activation:
    """Gaussian expectations of a smooth activation function, by quadrature.

    The rule's error is about exp(−2πd·32/√q), where d is the distance from the real axis to the nearest singularity of
    φ in the complex plane (tanh: π/2, SiLU: π), with 16 for 32 in two dimensions: for tanh below 1e-12 up to q = 100
    in one dimension, q = 25 in two. A kink costs an error of the order of the step squared, 1e-3, a jump (the slope at
    a kink) one of the order of the step.

    Args:
        function: φ, vectorised.
        derivative: φ'; None differentiates numerically (fourth order, error about 1e-12 for a φ of order 1).
    """

    def __init__(self, function: Function, derivative: Function | None = None) -> None:
        self.function = function
        self.derivative = derivative or _numerical(function)

    def mean(self, q: npt.ArrayLike) -> Floats:
        """E φ(u); any shape."""
        return _expectation(self.function, q)

    def second_moment(self, q: npt.ArrayLike) -> Floats:
        """E φ(u)²."""
        return _expectation(lambda u: np.square(self.function(u)), q)

    def slope_second_moment(self, q: npt.ArrayLike) -> Floats:
        """E φ'(u)²."""
        return _expectation(lambda u: np.square(self.derivative(u)), q)

    def growth(self, q: npt.ArrayLike) -> Floats:
        """Derivative of `second_moment` by q: E(φ'² + φφ'') = E(φφ'u)/q, and φ'(0)² + φ(0)φ''(0) at q = 0."""
        q = np.asarray(q, dtype=np.float64)
        some = np.where(q > 0, q, 1.0)
        inside = _expectation(lambda u: _values(self.function, u) * self.derivative(u) * u, some)
        d = _numerical(self.derivative)
        zero = np.zeros(())
        at_zero = np.square(self.derivative(zero)) + _values(self.function, zero) * d(zero)
        return np.where(q > 0, inside / some, at_zero)

    def product(self, q: float, c: npt.ArrayLike) -> Floats:
        """E φ(u₁)φ(u₂) for each correlation; the shape of `c`."""
        return _pair_expectation(self.function, q, c)

    def slope_product(self, q: float, c: npt.ArrayLike) -> Floats:
        """E φ'(u₁)φ'(u₂) for each correlation; the shape of `c`."""
        return _pair_expectation(self.derivative, q, c)


class LeakyReLU(Activation):
    """φ(u) = max(u, 0) + β min(u, 0): ReLU for β = 0, linear for β = 1. Exact (Cho & Saul, NIPS 2009, for β = 0)."""

    def __init__(self, slope: float) -> None:
        super().__init__(
            lambda u: np.where(u > 0, u, slope * u), lambda u: np.where(u > 0, 1.0, slope)
        )
        self.slope = slope

    def mean(self, q: npt.ArrayLike) -> Floats:
        """(1 − β)√(q/2π)."""
        return np.asarray((1 - self.slope) * np.sqrt(np.asarray(q) / (2 * np.pi)))

    def second_moment(self, q: npt.ArrayLike) -> Floats:
        """q(1 + β²)/2."""
        return np.asarray(q, dtype=np.float64) * (1 + self.slope**2) / 2

    def slope_second_moment(self, q: npt.ArrayLike) -> Floats:
        """(1 + β²)/2."""
        return np.full(np.shape(q), (1 + self.slope**2) / 2)

    def growth(self, q: npt.ArrayLike) -> Floats:
        """(1 + β²)/2."""
        return self.slope_second_moment(q)

    def product(self, q: float, c: npt.ArrayLike) -> Floats:
        """q(βc + (1 − β)²/2 κ₁(c))."""
        c = np.clip(c, -1.0, 1.0)
        return np.asarray(q * (self.slope * c + (1 - self.slope) ** 2 / 2 * kappa_1(c)))

    def slope_product(self, q: float, c: npt.ArrayLike) -> Floats:  # noqa: ARG002 - it does not depend on q
        """β + (1 − β)²/2 κ₀(c)."""
        return np.asarray(self.slope + (1 - self.slope) ** 2 / 2 * kappa_0(c))


class Erf(Activation):
    """φ(u) = erf(u). Exact (Williams, NIPS 1996)."""

    def __init__(self) -> None:
        super().__init__(special.erf, lambda u: 2 / np.sqrt(np.pi) * np.exp(-u * u))

    def second_moment(self, q: npt.ArrayLike) -> Floats:
        """2/π arcsin(2q/(1 + 2q))."""
        q = np.asarray(q, dtype=np.float64)
        return np.asarray(2 / np.pi * np.arcsin(2 * q / (1 + 2 * q)))

    def slope_second_moment(self, q: npt.ArrayLike) -> Floats:
        """4/(π√(1 + 4q))."""
        return np.asarray(4 / np.pi / np.sqrt(1 + 4 * np.asarray(q, dtype=np.float64)))

    def growth(self, q: npt.ArrayLike) -> Floats:
        """4/(π(1 + 2q)√(1 + 4q))."""
        return self.slope_second_moment(q) / (1 + 2 * np.asarray(q, dtype=np.float64))

    def product(self, q: float, c: npt.ArrayLike) -> Floats:
        """2/π arcsin(2qc/(1 + 2q))."""
        return np.asarray(2 / np.pi * np.arcsin(2 * q * np.clip(c, -1.0, 1.0) / (1 + 2 * q)))

    def slope_product(self, q: float, c: npt.ArrayLike) -> Floats:
        """4/(π√((1 + 2q)² − (2qc)²))."""
        k = 2 * q * np.clip(c, -1.0, 1.0)
        return np.asarray(4 / np.pi / np.sqrt((1 + 2 * q) ** 2 - k * k))


class GELU(Activation):
    """φ(u) = uΦ(u), Φ the normal distribution function. Exact, by Stein's lemma (Tsuchida et al., arXiv:2002.08517)."""

    def __init__(self) -> None:
        super().__init__(
            lambda u: u * special.ndtr(u),
            lambda u: special.ndtr(u) + u * np.exp(-u * u / 2) / np.sqrt(2 * np.pi),
        )

    def mean(self, q: npt.ArrayLike) -> Floats:
        """q/√(2π(1 + q))."""
        q = np.asarray(q, dtype=np.float64)
        return np.asarray(q / np.sqrt(2 * np.pi * (1 + q)))

    def second_moment(self, q: npt.ArrayLike) -> Floats:
        """`product` at c = 1."""
        return self._product(np.asarray(q, dtype=np.float64), np.ones(()))

    def slope_second_moment(self, q: npt.ArrayLike) -> Floats:
        """`slope_product` at c = 1."""
        return self._slope_product(np.asarray(q, dtype=np.float64), np.ones(()))

    def product(self, q: float, c: npt.ArrayLike) -> Floats:
        """Is k F + (q² − k² + 2k²/(1 + q))/(2π√D), with k = qc, D = (1 + q)² − k², F = E Φ(u₁)Φ(u₂)."""
        return self._product(np.asarray(q, dtype=np.float64), np.clip(c, -1.0, 1.0))

    def slope_product(self, q: float, c: npt.ArrayLike) -> Floats:
        """F + 2k/(2π(1 + q)√D) + k/(2πD√D)."""
        return self._slope_product(np.asarray(q, dtype=np.float64), np.clip(c, -1.0, 1.0))

    @staticmethod
    def _product(q: Floats, c: Floats) -> Floats:
        k = q * c
        root = np.sqrt((1 + q) ** 2 - k * k)
        both = 0.25 + np.arcsin(k / (1 + q)) / (2 * np.pi)
        return np.asarray(k * both + (q * q - k * k + 2 * k * k / (1 + q)) / (2 * np.pi * root))

    @staticmethod
    def _slope_product(q: Floats, c: Floats) -> Floats:
        k = q * c
        square = (1 + q) ** 2 - k * k
        both = 0.25 + np.arcsin(k / (1 + q)) / (2 * np.pi)
        return np.asarray(both + k * (2 / (1 + q) + 1 / square) / (2 * np.pi * np.sqrt(square)))


def activation_named(activation: str | Function | Activation, slope: float = 0.01) -> Activation:
    """The expectations of an activation function.

    Args:
        activation: One of ``linear``, ``relu``, ``leaky_relu``, ``erf``, ``tanh``, ``gelu`` (the exact one), ``silu``;
            or a smooth, vectorised function; or an `Activation`, which is returned as it is.
        slope: β, the slope of the leaky ReLU below 0 (the default is PyTorch's); no other function has one.

    Raises:
        ValueError: The name is unknown.
        TypeError: `activation` is neither a name nor a function.
    """
    if isinstance(activation, Activation):
        return activation
    if callable(activation):
        return Activation(activation)
    if not isinstance(activation, str):
        raise TypeError(f"expected an activation's name or a function, found {activation!r}")
    named: dict[str, Callable[[], Activation]] = {
        "linear": lambda: LeakyReLU(1.0),
        "relu": lambda: LeakyReLU(0.0),
        "leaky_relu": lambda: LeakyReLU(slope),
        "erf": Erf,
        "tanh": lambda: Activation(np.tanh, lambda u: 1 - np.tanh(u) ** 2),
        "gelu": GELU,
        "silu": lambda: Activation(lambda u: u * special.expit(u), _silu_slope),
    }
    if activation not in named:
        raise ValueError(f"unknown activation {activation!r}; there are {', '.join(named)}")
    return named[activation]()


def kappa_0(c: npt.ArrayLike) -> Floats:
    """1 − arccos(c)/π: twice the probability that two Gaussians of correlation `c` are both positive."""
    return np.asarray(1 - np.arccos(np.clip(c, -1.0, 1.0)) / np.pi)


def kappa_1(c: npt.ArrayLike) -> Floats:
    """(√(1 − c²) + (π − arccos c)c)/π: correlation map of ReLU without biases."""
    c = np.clip(c, -1.0, 1.0)
    return np.asarray((np.sqrt((1 - c) * (1 + c)) + (np.pi - np.arccos(c)) * c) / np.pi)


def _silu_slope(u: Floats) -> Floats:
    s = special.expit(u)
    return np.asarray(s * (1 + u * (1 - s)))


def _values(function: Function, u: Floats) -> Floats:
    return np.asarray(function(u), dtype=np.float64)


def _numerical(function: Function, step: float = 1e-3) -> Function:
    def derivative(u: Floats) -> Floats:
        near = _values(function, u + step) - _values(function, u - step)
        far = _values(function, u + 2 * step) - _values(function, u - 2 * step)
        return (8 * near - far) / (12 * step)

    return derivative


@dataclass(frozen=True)
class _Rule:
    z: Floats
    weight: Floats


def _rule(step: float) -> _Rule:
    half = round(_REACH / step)
    z = np.linspace(-_REACH, _REACH, 2 * half + 1)
    weight = np.exp(-z * z / 2)
    return _Rule(z, weight / weight.sum())


_LINE, _GRID = _rule(_STEP), _rule(2 * _STEP)


def _expectation(function: Function, q: npt.ArrayLike) -> Floats:
    """E f(u) for each variance in `q`."""
    root = np.sqrt(np.asarray(q, dtype=np.float64))
    return np.asarray(_values(function, root[..., None] * _LINE.z) @ _LINE.weight)


def _pair_expectation(function: Function, q: float, c: npt.ArrayLike) -> Floats:
    """E f(u₁)f(u₂) for each correlation in `c`."""
    c = np.clip(c, -1.0, 1.0)
    first = _GRID.weight * _values(function, np.sqrt(q) * _GRID.z)
    result = np.empty(c.shape)
    for i, r in np.ndenumerate(c):
        rest = np.sqrt((1 - r) * (1 + r))
        second = _values(function, np.sqrt(q) * (r * _GRID.z[:, None] + rest * _GRID.z))
        result[i] = first @ second @ _GRID.weight
    return result
