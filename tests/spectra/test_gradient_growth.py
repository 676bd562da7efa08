"""Growth through batch normalisation and convolution, against simulated networks and explicit matrices."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from propkit.spectra.gradient_growth import batch_norm_growth, fourier_eigenvalues
from propkit.spectra.mean_field import MeanField


def test_published_growth() -> None:
    assert batch_norm_growth() == pytest.approx(np.pi / (np.pi - 1), rel=1e-12)
    table = {0.0: 1.467, 0.1: 1.343, 0.2: 1.244, 0.3: 1.167, 0.5: 1.068, 0.7: 1.020}
    for beta, growth in table.items():
        assert batch_norm_growth("leaky_relu", slope=beta) == pytest.approx(growth, abs=6e-4)
    assert batch_norm_growth("linear") == 1
    for m, growth in {8: 1.760, 16: 1.580, 32: 1.518, 64: 1.491}.items():
        assert batch_norm_growth(m=m) == pytest.approx(growth, abs=6e-4)
    with pytest.raises(ValueError, match="m > 3"):
        batch_norm_growth(m=3)


def _measured(phi, m: int, width: int, depth: int, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(m, width, generator=generator)
    layers = []
    for _ in range(depth):
        z = h @ (torch.randn(width, width, generator=generator) / width**0.5)
        z.retain_grad() if z.requires_grad else z.requires_grad_()
        layers.append(z)
        h = phi(F.batch_norm(z, None, None, training=True, eps=1e-8))
    h.backward(torch.randn(h.shape, generator=generator))
    q = [float(z.grad.square().mean()) for z in layers]
    return (q[1] / q[-2]) ** (1 / (depth - 3))  # the first layer's input is no activation


@pytest.mark.parametrize(("m", "tolerance"), [(8, 0.03), (16, 0.015), (32, 0.01)])
def test_a_finite_batch_grows_faster(m: int, tolerance: float) -> None:
    """The law is told from the infinite one: they differ by 20 %, 8 % and 3.5 %."""
    measured = np.mean([_measured(F.relu, m, 512, 12, seed) for seed in range(4)])
    assert measured == pytest.approx(batch_norm_growth(m=m), rel=tolerance)
    assert measured > batch_norm_growth() * (1 + 2 * tolerance)


def test_other_activations_grow_less() -> None:
    for name, phi in (("leaky_relu", lambda z: F.leaky_relu(z, 0.3)), ("gelu", F.gelu)):
        measured = np.mean([_measured(phi, 64, 384, 12, seed) for seed in range(2)])
        assert measured == pytest.approx(batch_norm_growth(name, 64, slope=0.3), rel=0.02)


@pytest.mark.parametrize(
    ("taps", "size"), [((3,), (7,)), ((5,), (4,)), ((3, 3), (4, 5)), ((2, 4), (6, 3)), ((7,), (2,))]
)
def test_eigenvalues_are_those_of_the_averaging_matrix(taps, size) -> None:
    rng = np.random.default_rng(0)
    variance = rng.random(taps)
    matrix = np.zeros(size * 2)
    for position in np.ndindex(*size):
        for tap in np.ndindex(*taps):
            source = tuple((p + t) % n for p, t, n in zip(position, tap, size, strict=True))
            matrix[position + source] += variance[tap] / variance.sum()
    n = int(np.prod(size))
    expected = np.sort(np.abs(np.linalg.eigvals(matrix.reshape(n, n))))
    found = fourier_eigenvalues(variance, size)
    assert found.shape == size
    np.testing.assert_allclose(np.sort(found.ravel()), expected, atol=1e-12)
    # and in the order of the frequencies: a pattern is multiplied by its eigenvalue
    for mode in np.ndindex(*size):
        phase = sum(
            m * g / k
            for m, g, k in zip(
                mode, np.meshgrid(*map(np.arange, size), indexing="ij"), size, strict=True
            )
        )
        pattern = np.exp(2j * np.pi * phase).ravel()
        carried = matrix.reshape(n, n) @ pattern
        assert abs(np.vdot(pattern, carried)) / n == pytest.approx(found[mode], abs=1e-12)


def test_a_centre_tap_carries_every_pattern() -> None:
    delta = np.zeros((3, 3))
    delta[1, 1] = 0.4
    np.testing.assert_allclose(fourier_eigenvalues(delta, 8), 1)
    uniform = fourier_eigenvalues(np.ones((3, 3)), 8)
    assert uniform[0, 0] == pytest.approx(1)
    assert uniform.ravel()[1:].max() < 0.81
    # Dirichlet kernel
    np.testing.assert_allclose(uniform[0], np.abs(1 + 2 * np.cos(2 * np.pi * np.arange(8) / 8)) / 3)


def test_a_wide_convolutional_network_damps_the_mode() -> None:
    """Circular padding, ReLU, σ_w² = 2, so that χ = 1: a pattern in the variance decays as λ^l."""
    generator = torch.Generator().manual_seed(0)
    size, channels, depth = 8, 768, 5
    position = torch.arange(size)
    profile = 1 + 0.8 * torch.cos(2 * torch.pi * position / size)
    z = profile.sqrt() * torch.randn(4, channels, size, generator=generator)
    amplitude = []
    for _ in range(depth):
        modes = torch.fft.fft(z.square().mean((0, 1)))
        amplitude.append(float((modes[1] / modes[0]).abs()))
        kernel = torch.randn(channels, channels, 3, generator=generator)
        z = F.conv1d(F.pad(z.relu(), (1, 1), mode="circular"), kernel * (2 / 3 / channels) ** 0.5)
    rate = (amplitude[-1] / amplitude[0]) ** (1 / (depth - 1))
    assert rate == pytest.approx(fourier_eigenvalues([1, 1, 1], size)[1], rel=0.03)


def test_delta_orthogonal_kernels_are_isometries() -> None:
    """Every singular value of the whole convolution is the gain: λ = 1 for all modes, and W orthonormal."""
    kernel = torch.zeros(8, 6, 3, 3, dtype=torch.float64)
    kernel[:, :, 1, 1] = 1.3 * torch.linalg.qr(torch.randn(8, 6, dtype=torch.float64))[0]

    def layer(x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), kernel)

    x = torch.randn(1, 6, 4, 5, dtype=torch.float64)
    j = torch.autograd.functional.jacobian(layer, x).reshape(-1, x.numel())
    torch.testing.assert_close(torch.linalg.svdvals(j), torch.full((x.numel(),), 1.3).double())
    variance = kernel.square().mean((0, 1))
    np.testing.assert_allclose(fourier_eigenvalues(variance, (4, 5)), 1)


@pytest.mark.parametrize(
    ("sigma_w2", "q", "growth"), [(1.3, 0.3153, 0.8802), (2.5, 1.0640, 1.1335)]
)
def test_a_convolutional_network_has_the_fully_connected_fixed_point(sigma_w2, q, growth) -> None:
    net = MeanField("tanh", sigma_w2, 0.05)
    assert (net.q, net.chi_1) == pytest.approx((q, growth), abs=6e-5)
    generator = torch.Generator().manual_seed(0)
    channels, depth = 384, 16
    z = q**0.5 * torch.randn(8, channels, 6, generator=generator)
    layers = [z.requires_grad_()]
    for _ in range(depth):
        kernel = torch.randn(channels, channels, 3, generator=generator)
        bias = 0.05**0.5 * torch.randn(channels, generator=generator)
        padded = F.pad(layers[-1].tanh(), (1, 1), mode="circular")
        layers.append(F.conv1d(padded, kernel * (sigma_w2 / 3 / channels) ** 0.5, bias))
        layers[-1].retain_grad()
    layers[-1].backward(torch.randn(layers[-1].shape, generator=generator))
    lengths = [float(z.detach().square().mean()) for z in layers[8:]]
    assert np.mean(lengths) == pytest.approx(net.q, rel=0.05)
    errors = [float(z.grad.square().mean()) for z in layers]
    assert (errors[0] / errors[-1]) ** (1 / depth) == pytest.approx(net.chi_1, rel=0.02)


@pytest.mark.parametrize(
    ("taps", "size", "message"),
    [
        ([1, 1], (3, 3), "positive size for each of 1"),
        ([1, 1], 0, "positive size"),
        (1.0, 3, "positive size"),
        ([1, -1, 1], 4, "not all 0"),
        ([0, 0], 4, "not all 0"),
    ],
)
def test_wrong_taps_are_named(taps, size, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fourier_eigenvalues(taps, size)
