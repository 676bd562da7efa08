"""Mean-field theory of wide random networks: how lengths, correlations and gradients go from layer to layer.

Layers z^(l+1) = W φ(z^l) + b with W_ij ~ N(0, σ_w²/fan_in) and b_i ~ N(0, σ_b²); a convolution with circular padding
counts its taps in the fan-in. NumPy and SciPy alone: figures draw these curves beside measured ones.

Sources: Poole et al., arXiv:1606.05340 (length and correlation maps); Schoenholz et al., arXiv:1611.01232 (χ_1 and
depth scales); Xiao et al., arXiv:1806.05393 (convolutions).
"""

import math
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

from propkit.spectra.activations import Activation, Floats, Function, LeakyReLU, activation_named

_LARGEST, _SMALLEST = 1e12, 1e-12
"""Lengths beyond which the length map is taken to grow, or to shrink, for ever."""
_FAR = 1e9
"""Where an activation that is asymptotically linear has become linear."""


class MeanField:
    """A network of given activation function and variances, infinitely wide.

    Args:
        activation: A name (``linear``, ``relu``, ``leaky_relu``, ``erf``, ``tanh``, ``gelu``, ``silu``), a smooth
            vectorised function, or an `Activation`.
        sigma_w2: σ_w², the variance of a weight times its fan-in.
        sigma_b2: σ_b², the variance of a bias.
        slope: β of ``leaky_relu``.

    Raises:
        ValueError: A variance is negative or not finite, or the activation is unknown.

    >>> tanh = MeanField("tanh", sigma_w2=1.3, sigma_b2=0.05)
    >>> round(tanh.q, 6), round(tanh.chi_1, 6), round(tanh.depth_scale_c, 3)
    (0.315316, 0.880164, 7.834)
    >>> MeanField("relu", sigma_w2=2.0).chi_1  # He's initialisation is critical
    1.0
    """

    def __init__(
        self,
        activation: str | Function | Activation = "relu",
        sigma_w2: float = 2.0,
        sigma_b2: float = 0.0,
        slope: float = 0.01,
    ) -> None:
        for name, value in (("sigma_w2", sigma_w2), ("sigma_b2", sigma_b2)):
            if not 0 <= value < math.inf:
                raise ValueError(f"expected a finite variance {name} >= 0, found {value}")
        self.activation = activation_named(activation, slope)
        self.sigma_w2 = float(sigma_w2)
        self.sigma_b2 = float(sigma_b2)

    # -- lengths --------------------------------------------------------------------------------------------------

    def length_map(self, q: npt.ArrayLike) -> Floats:
        """Mean square of the next layer's pre-activations, σ_w² E φ(u)² + σ_b², for any shape of `q`."""
        return self.sigma_w2 * self.activation.second_moment(q) + self.sigma_b2

    @cached_property
    def q(self) -> float:
        """q*, the length that the length map leads to from q = 1; 0 and inf where it shrinks or grows for ever.

        1 where every length is a fixed point, as for ReLU with σ_w² = 2 and σ_b = 0.
        """
        if self._step(1.0) == 0:
            return 1.0
        upwards = self._step(1.0) > 0
        far = _LARGEST if upwards else _SMALLEST
        path = np.geomspace(1.0, far, 1000)
        change = self.length_map(path) - path
        back = np.flatnonzero(change <= 0 if upwards else change >= 0)
        if not len(back):
            return math.inf if upwards else 0.0
        first = int(back[0])
        return float(brentq(self._step, path[first - 1], path[first], xtol=1e-300, rtol=1e-14))

    def lengths(self, q: float, depth: int) -> Floats:
        """(depth,): the lengths of layers 1, 2, ..., the first of which has `q`."""
        result = [q]
        for _ in range(_positive("depth", depth) - 1):
            result.append(float(self.length_map(result[-1])))
        return np.array(result)

    @cached_property
    def depth_scale_q(self) -> float:
        """ξ_q: deviations from q* decay as exp(−l/ξ_q); inf where they do not decay exponentially."""
        if math.isinf(self.q):
            return math.inf
        return _scale(self.sigma_w2 * float(self.activation.growth(self.q)))

    # -- gradients ------------------------------------------------------------------------------------------------

    def chi(self, q: npt.ArrayLike) -> Floats:
        """σ_w² E φ'(u)²: the factor by which the mean square of an error grows through a layer of length q."""
        return self.sigma_w2 * self.activation.slope_second_moment(q)

    @cached_property
    def chi_1(self) -> float:
        """χ_1 = `chi` at q*: below 1 gradients vanish (ordered phase), above 1 they explode (chaotic phase)."""
        if math.isinf(self.q):
            return self.sigma_w2 * sum(slope**2 for slope in self._asymptotes) / 2
        return float(self.chi(self.q))

    def error_ratio(self, depth: int, q: float | None = None) -> Floats:
        """(depth,): mean square of the error at layer l over that at the last layer, for equal widths.

        Errors are gradients with respect to pre-activations; with widths N_l each factor is χ N_(l+1)/N_l instead.

        Args:
            depth: Number of layers.
            q: Length of the first layer, q* by default.

        >>> MeanField("relu", sigma_w2=4.0).error_ratio(3).tolist()
        [4.0, 2.0, 1.0]
        """
        depth = _positive("depth", depth)
        factors = np.full(depth, self.chi_1) if q is None else self.chi(self.lengths(q, depth))
        return np.append(np.cumprod(factors[-2::-1])[::-1], 1.0)

    # -- correlations ---------------------------------------------------------------------------------------------

    def correlation_map(self, c: npt.ArrayLike, q: float | None = None) -> Floats:
        """Correlation of two inputs' next pre-activations, given that both have length `q` (q* by default).

        Where q* is infinite, φ is replaced by its asymptotes; where it is 0, this is the map of a tiny length.
        """
        net, q = self._at(q)
        product = net.sigma_w2 * net.activation.product(q, c) + net.sigma_b2
        return np.asarray(product / net.length_map(q))

    @cached_property
    def c(self) -> float:
        """c*, the correlation that two inputs of any correlation 0 <= c < 1 end up with.

        1 in the ordered phase and on its edge, below 1 in the chaotic phase. (Linear maps leave every c as it is; they
        count as ordered.)
        """
        # A power series with non-negative coefficients is convex: it crosses the diagonal below 1 if its slope at 1 is
        # above 1, and only then.
        if self._slope(1.0) <= 1 + 1e-9:
            return 1.0
        if self._drift(0.0) < 1e-15:
            return 0.0
        below = 0.5
        while self._drift(1 - below) >= 0:
            below /= 2
        return float(brentq(self._drift, 0.0, 1 - below, xtol=1e-15))

    def correlations(self, c: float, depth: int, q: float | None = None) -> Floats:
        """(depth,): correlations of layers 1, 2, ..., the first of which has `c`, at length `q` (q* by default)."""
        result = [c]
        for _ in range(_positive("depth", depth) - 1):
            result.append(float(self.correlation_map(result[-1], q)))
        return np.array(result)

    @cached_property
    def depth_scale_c(self) -> float:
        """ξ_c: deviations from c* decay as exp(−l/ξ_c); inf at criticality, where the decay is a power of l.

        The map's slope at c* is σ_w² E φ'(u₁)φ'(u₂), which is χ_1 where c* = 1.
        """
        return _scale(self._slope(self.c))

    def gradient_correlation(self, depth: int, c: float = 0.0, q: float | None = None) -> Floats:
        """(depth,): correlation of the errors of two inputs at each layer, those that reach the last layer being equal.

        "Shattered gradients" (Balduzzi et al., arXiv:1702.08591): Π E φ'(u₁)φ'(u₂)/E φ'(u)² over the layers from l up,
        which for ReLU is Π κ₀(c_l); the paper's 1/2^L is the case of inputs that stay orthogonal.

        Args:
            depth: Number of layers.
            c: Correlation of the first layer's pre-activations.
            q: Their length, q* by default.
        """
        correlations = self.correlations(c, depth, q)
        net, q = self._at(q)
        factors = net.activation.slope_product(q, correlations)
        return np.asarray(np.cumprod((factors / net.activation.slope_second_moment(q))[::-1])[::-1])

    # -- inside ---------------------------------------------------------------------------------------------------

    def _step(self, q: float) -> float:
        return float(self.length_map(q)) - q

    def _drift(self, c: float) -> float:
        return float(self.correlation_map(c)) - c

    def _slope(self, c: float) -> float:
        """Derivative of the correlation map at q*."""
        net, q = self._at(None)
        slope = net.sigma_w2 * float(net.activation.slope_product(q, c))
        return slope * q / float(net.length_map(q))

    def _at(self, q: float | None) -> tuple["MeanField", float]:
        """A network and a length at which the correlation map can be evaluated."""
        if q is not None or 0 < self.q < math.inf:
            return self, self.q if q is None else q
        if self.q == 0:
            return self, _SMALLEST
        # Lengths grow for ever: biases no longer count, and of φ its two asymptotes are left.
        left, right = self._asymptotes
        limit = LeakyReLU(left / right if right else right / left)
        return MeanField(limit, 1 / float(limit.second_moment(1.0))), 1.0

    @cached_property
    def _asymptotes(self) -> tuple[float, float]:
        """Slopes of φ far to the left and far to the right."""
        far = np.array([-_FAR, _FAR])
        slopes = np.asarray(self.activation.function(far)) / far
        if not np.allclose(
            np.asarray(self.activation.function(1e3 * far)), 1e3 * far * slopes, atol=1
        ):
            raise ValueError(
                "lengths grow for ever with this activation, which is not linear far from 0: there is no limit; "
                "give the length q"
            )
        return float(slopes[0]), float(slopes[1])


def critical_variances(
    q: float, activation: str | Function | Activation = "tanh", slope: float = 0.01
) -> tuple[float, float]:
    """The (σ_w², σ_b²) on the edge of chaos, χ_1 = 1, whose fixed point is q* = `q`.

    σ_w² = 1/E φ'(u)², σ_b² = q − σ_w² E φ(u)². For ReLU that is (2, 0) whatever q.

    Raises:
        ValueError: `q` is not positive, or there is no such point: σ_b² would be negative.

    >>> [round(v, 6) for v in critical_variances(1 / 16)]
    [1.115381, 0.000237]
    """
    if not 0 < q < math.inf:
        raise ValueError(f"expected a positive, finite length q, found {q}")
    expectations = activation_named(activation, slope)
    sigma_w2 = 1 / float(expectations.slope_second_moment(q))
    sigma_b2 = q - sigma_w2 * float(expectations.second_moment(q))
    if sigma_b2 < -1e-12 * q:
        raise ValueError(f"no critical point has q* = {q}: it would need sigma_b2 = {sigma_b2:.3g}")
    return sigma_w2, max(sigma_b2, 0.0)


def _scale(slope: float) -> float:
    """−1/log of a factor per layer; a factor is 1 up to rounding."""
    if slope <= 0:
        return 0.0
    return math.inf if slope >= 1 - 1e-12 else -1 / math.log(slope)


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"expected {name} >= 1, found {value}")
    return value
