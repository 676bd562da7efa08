"""Mean-field theory against published constants and against simulated random networks."""

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy.optimize import brentq

from propkit.spectra.mean_field import MeanField, critical_variances


@pytest.mark.parametrize(
    ("sigma_w2", "sigma_b2", "q", "chi_1", "depth_scale_c", "depth_scale_q"),
    [
        (1.3, 0.05, 0.315316, 0.880164, 7.8341, 1.7852),
        (1.76, 0.05, 0.569463, 0.999796, 4911.7, 1.5217),
        (2.5, 0.05, 1.063958, 1.133516, None, 1.1799),
        (4.0, 0.05, 2.195494, 1.342402, None, 0.8733),
    ],
)
def test_tanh_table(sigma_w2, sigma_b2, q, chi_1, depth_scale_c, depth_scale_q) -> None:
    net = MeanField("tanh", sigma_w2, sigma_b2)
    assert net.q == pytest.approx(q, abs=6e-7)
    assert net.chi_1 == pytest.approx(chi_1, abs=6e-7)
    assert net.depth_scale_q == pytest.approx(depth_scale_q, abs=6e-5)
    if depth_scale_c is None:
        assert 0 < net.c < 1
        assert 0 < net.depth_scale_c < math.inf
    else:
        assert net.c == 1
        assert net.depth_scale_c == pytest.approx(depth_scale_c, abs=6e-5 if chi_1 < 0.9 else 0.06)


@pytest.mark.parametrize(
    ("sigma_b2", "sigma_w2", "q"),
    [(0.01, 1.42421, 0.27330), (0.05, 1.76095, 0.57005), (0.1, 1.98607, 0.80580)],
)
def test_tanh_critical_line(sigma_b2: float, sigma_w2: float, q: float) -> None:
    found = brentq(lambda q: critical_variances(q)[1] - sigma_b2, 0.05, 2)
    assert found == pytest.approx(q, abs=6e-6)
    assert critical_variances(found)[0] == pytest.approx(sigma_w2, abs=6e-6)
    net = MeanField("tanh", *critical_variances(found))
    assert net.q == pytest.approx(found, rel=1e-9)
    assert net.chi_1 == pytest.approx(1, rel=1e-9)


def test_published_critical_point() -> None:
    sigma_w2, sigma_b2 = critical_variances(1 / 16)
    assert sigma_w2 == pytest.approx(1.115381, abs=6e-7)
    assert sigma_b2 == pytest.approx(2.36877e-4, abs=6e-10)
    assert critical_variances(3.0, "relu") == pytest.approx((2.0, 0.0))
    with pytest.raises(ValueError, match="positive, finite length"):
        critical_variances(0.0)
    with pytest.raises(ValueError, match="would need sigma_b2"):
        critical_variances(1.0, lambda u: 1 + u)


def test_tanh_without_biases() -> None:
    edge = MeanField("tanh", 1.0)
    assert (edge.q, edge.chi_1, edge.c) == (0, 1, 1)
    assert edge.depth_scale_q == edge.depth_scale_c == math.inf
    chaos = MeanField("tanh", 2.0)
    assert chaos.q > 0
    assert chaos.chi_1 > 1
    assert chaos.c == 0
    order = MeanField("tanh", 0.5)
    assert (order.q, order.chi_1) == (0, 0.5)
    assert order.depth_scale_q == pytest.approx(1 / math.log(2))


def test_erf() -> None:
    net = MeanField("erf", 1.7, 0.3)
    assert float(net.length_map(0.8)) == pytest.approx(1.01739759, abs=6e-9)
    assert float(net.chi(0.8)) == pytest.approx(1.05617138, abs=6e-9)


def test_linear_and_rectifiers() -> None:
    assert MeanField("linear", 0.7).chi_1 == 0.7
    assert MeanField("linear", 0.7, 0.3).q == pytest.approx(1.0)
    for beta in (0.0, 0.1, 0.5):
        net = MeanField("leaky_relu", 1.4, 0.2, slope=beta)
        chi = 1.4 * (1 + beta**2) / 2
        assert net.chi_1 == pytest.approx(chi)
        assert net.q == pytest.approx(0.2 / (1 - chi))
        assert net.depth_scale_q == pytest.approx(-1 / math.log(chi))
    he = MeanField("relu")
    assert (he.q, he.chi_1, he.c, he.depth_scale_c) == (1, 1, 1, math.inf)
    large = MeanField("relu", 3.0, 0.1)
    assert (large.q, large.chi_1, large.c) == (math.inf, 1.5, 1)
    np.testing.assert_allclose(large.correlation_map([0.0, 1.0]), [1 / np.pi, 1])


def test_relu_correlations() -> None:
    net = MeanField("relu")
    published = [
        0, 0.31830989, 0.49373109, 0.60482572, 0.68095353, 0.73594635, 0.77722870, 0.80914805, 0.83441630,
    ]  # fmt: skip
    np.testing.assert_allclose(net.correlations(0, 9), published, atol=6e-9)
    # The published numbers do not say where they start; a layer more or less is 0.64 and 0.086.
    scaled = (1 - net.correlations(0, 20_001)) * np.arange(20_001.0) ** 2
    assert scaled[100] == pytest.approx(35.2, abs=0.65)
    assert scaled[1000] == pytest.approx(43.05, abs=0.09)
    limit = 9 * math.pi**2 / 2
    assert limit * 0.997 < scaled[20_000] < limit


def test_shattered_gradients_of_relu() -> None:
    published = [0.05002, 0.10004, 0.16587, 0.24966, 0.35325, 0.47838, 0.62676, 0.80007]
    np.testing.assert_allclose(MeanField("relu").gradient_correlation(8), published, atol=6e-6)


@pytest.mark.parametrize("name", ["gelu", "silu"])
def test_lengths_that_grow_for_ever_leave_the_asymptotes(name: str) -> None:
    """Far from 0 both are ReLU."""
    net = MeanField(name, 5.0, 0.1)
    assert (net.q, net.chi_1, net.c) == (math.inf, 2.5, 1)
    assert net.depth_scale_q == math.inf
    c = np.linspace(-1, 1, 9)
    np.testing.assert_allclose(
        net.correlation_map(c), MeanField("relu").correlation_map(c), rtol=1e-12, atol=1e-12
    )
    np.testing.assert_allclose(
        net.gradient_correlation(4), MeanField("relu").gradient_correlation(4), rtol=1e-12
    )


def test_growth_without_a_limit_needs_a_length() -> None:
    cubic = MeanField(lambda u: u**3, 2.0)
    assert cubic.q == math.inf
    with pytest.raises(ValueError, match="give the length q"):
        cubic.correlation_map(0.5)
    assert 0 < cubic.correlation_map(0.5, q=1.0) < 0.5


@pytest.mark.parametrize("name", ["tanh", "erf", "gelu", "silu"])
@pytest.mark.parametrize(("sigma_w2", "sigma_b2"), [(1.2, 0.1), (2.2, 0.05), (3.0, 0.2)])
def test_fixed_points_are_those_of_the_maps(name: str, sigma_w2: float, sigma_b2: float) -> None:
    """By iteration, which shares nothing with the root finding but the maps; rates from the iterates."""
    net = MeanField(name, sigma_w2, sigma_b2)
    if math.isinf(net.q):
        assert net.lengths(1.0, 60)[-1] > 1e3
        return
    lengths = net.lengths(1.0, 400)
    assert net.q == pytest.approx(lengths[-1], rel=1e-9)
    decay = np.abs(lengths - net.q)
    last = np.flatnonzero(decay > 1e-8)[-1]
    assert np.log(decay[last] / decay[last - 1]) == pytest.approx(-1 / net.depth_scale_q, rel=0.02)
    near = 0.999 if net.c < 1 else 0.5  # the other side of c*
    correlations = net.correlations(near, 500)
    assert net.c == pytest.approx(correlations[-1], abs=1e-6)
    drift = np.abs(correlations - net.c)
    last = np.flatnonzero(drift > 1e-8)[-1]
    rate = np.log(drift[last] / drift[last - 1])
    assert rate == pytest.approx(-1 / net.depth_scale_c, rel=0.02)


def test_slope_of_the_correlation_map() -> None:
    for net in (MeanField("tanh", 2.5, 0.05), MeanField("gelu", 1.5, 0.2)):
        h = 1e-5
        slope = float(np.diff(net.correlation_map([net.c - 2 * h, net.c - h]))[0]) / h
        assert -1 / math.log(slope) == pytest.approx(net.depth_scale_c, rel=1e-3)


def _simulate(phi, dphi, sigma_w2, sigma_b2, q, c, width=1200, depth=7, seed=0):
    """Lengths and correlation of two inputs' pre-activations, and their errors' mean squares and correlation."""
    rng = np.random.default_rng(seed)
    z = np.linalg.qr(rng.standard_normal((width, 2)))[0].T * math.sqrt(width)  # exactly q and c
    z = np.sqrt(q) * np.stack([z[0], c * z[0] + math.sqrt(1 - c * c) * z[1]])
    layers, weights = [z], []
    for _ in range(depth - 1):
        w = rng.standard_normal((width, width)) * math.sqrt(sigma_w2 / width)
        z = phi(z) @ w + rng.standard_normal(width) * math.sqrt(sigma_b2)
        weights.append(w)
        layers.append(z)
    delta = np.tile(rng.standard_normal(width), (2, 1)) * dphi(z)
    errors = [delta]
    for w, z in zip(reversed(weights), reversed(layers[:-1]), strict=True):
        delta = (delta @ w.T) * dphi(z)
        errors.append(delta)
    errors = errors[::-1]

    def moments(a):
        return np.mean(a**2), np.mean(a[0] * a[1]) / np.sqrt(np.prod(np.mean(a**2, 1)))

    return np.array([(*moments(z), *moments(d)) for z, d in zip(layers, errors, strict=True)]).T


@pytest.mark.parametrize(
    ("name", "sigma_w2", "sigma_b2", "phi", "dphi"),
    [
        ("tanh", 1.3, 0.05, np.tanh, lambda u: 1 - np.tanh(u) ** 2),
        ("tanh", 4.0, 0.05, np.tanh, lambda u: 1 - np.tanh(u) ** 2),
        ("relu", 2.0, 0.0, lambda u: np.maximum(u, 0), lambda u: (u > 0) * 1.0),
    ],
)
def test_a_wide_network_follows_the_theory(name, sigma_w2, sigma_b2, phi, dphi) -> None:
    net = MeanField(name, sigma_w2, sigma_b2)
    runs = [_simulate(phi, dphi, sigma_w2, sigma_b2, 0.8, 0.2, seed=s) for s in range(6)]
    lengths, correlations, errors, gradient = np.mean(runs, 0)
    theory = net.lengths(0.8, 7)
    np.testing.assert_allclose(lengths, theory, rtol=0.1)
    # both inputs start at 0.8, so the map is taken at each layer's own length
    c = [0.2]
    for q in theory[:-1]:
        c.append(float(net.correlation_map(c[-1], q)))
    np.testing.assert_allclose(correlations, c, atol=0.04)
    ratio = errors / errors[-1]
    np.testing.assert_allclose(ratio, net.error_ratio(7, q=0.8), rtol=0.12)
    if name == "relu":  # the length does not matter
        np.testing.assert_allclose(gradient, net.gradient_correlation(7, c=0.2), atol=0.06)


def test_error_ratio() -> None:
    net = MeanField("tanh", 4.0, 0.05)
    chi = net.chi_1
    np.testing.assert_allclose(net.error_ratio(4), [chi**3, chi**2, chi, 1])
    np.testing.assert_allclose(net.error_ratio(4, q=net.q), net.error_ratio(4), rtol=1e-9)
    assert net.error_ratio(1).tolist() == [1]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sigma_w2": -1.0}, "sigma_w2 >= 0"),
        ({"sigma_b2": math.inf}, "sigma_b2 >= 0"),
        ({"sigma_w2": math.nan}, "sigma_w2 >= 0"),
        ({"activation": "swish"}, "unknown activation"),
    ],
)
def test_wrong_arguments_are_named(kwargs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeanField(**kwargs)
    with pytest.raises(ValueError, match="depth >= 1"):
        MeanField().error_ratio(0)


def test_torch_is_not_needed() -> None:
    code = (
        "import sys; import propkit.spectra.mean_field, propkit.spectra.gradient_growth, "
        "propkit.spectra.shattered_gradients; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
