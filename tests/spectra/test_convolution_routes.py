"""The routes to convolution spectra: their accuracy, known spectra, extreme weights."""

import numpy as np
import pytest
import torch

from propkit.spectra import (
    conv_extremes,
    conv_singular_values,
    conv_spectral_norm,
    conv_zero_padding,
    convolution_gram,
    convolution_norm,
)
from propkit.spectra.convolution_geometry import geometry
from propkit.spectra.convolution_symbol import canonical, half_spectrum


def gaussian(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(24, 16, 3, 3), (16, 16, 3, 3), (16, 24, 5)])
@pytest.mark.parametrize("condition", [1e1, 1e3, 1e5, 1e8])
def test_small_values_are_as_accurate_as_documented(shape, condition) -> None:
    """Each frequency of a kernel as large as its map is given its own condition number."""
    sizes = (4, 5)[: len(shape) - 2]
    generator = torch.Generator().manual_seed(1)
    q, r = (
        torch.linalg.qr(torch.randn(*sizes, n, n, generator=generator, dtype=torch.complex128)).Q
        for n in shape[:2]
    )
    m = min(shape[:2])
    spectrum = torch.logspace(0, -np.log10(condition), m, dtype=torch.float64)
    symbol = (q[..., :m] * spectrum) @ r[..., :m].mH
    axes = tuple(range(len(sizes)))
    # the real kernel whose symbol is the Hermitian part: its spectrum comes from an SVD in the test
    weight = torch.fft.ifftn(symbol, dim=axes).real
    exact = torch.linalg.svdvals(torch.fft.fftn(weight, dim=axes)).flatten()
    exact = exact.sort(descending=True).values
    weight = weight.movedim((-2, -1), (0, 1))
    for accurate in (False, True):
        found = conv_singular_values(weight, sizes, accurate=accurate)
        assert float((found - exact).abs().max()) <= 1e-11 * float(exact[0])
        above = exact >= 3e-2 * exact[0]
        torch.testing.assert_close(found[above], exact[above], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("shape", "size", "stride"),
    [
        ((32, 32, 3, 3), (16, 16), 1),  # square: the smallest values are near 0
        ((40, 20, 3, 3), (8, 8), 2),
        ((20, 24, 5, 5), (6, 7), 1),  # more taps than frequencies: the symbol's own Gram matrix
        ((8, 6, 2, 3, 2), (4, 3, 5), 1),
        ((17, 19, 1, 1), (5, 5), 1),  # one real matrix
    ],
)
def test_both_routes_at_the_size_of_layers(shape, size, stride) -> None:
    weight = gaussian(*shape)
    fast = conv_singular_values(weight, size, stride)
    accurate = conv_singular_values(weight, size, stride, accurate=True)
    assert float((fast - accurate).abs().max()) <= 1e-11 * float(accurate[0])
    above = accurate >= 3e-2 * accurate[0]
    torch.testing.assert_close(fast[above], accurate[above], rtol=1e-12, atol=0)
    norm = conv_spectral_norm(weight, size, stride)
    torch.testing.assert_close(norm, accurate[0], rtol=1e-12, atol=0)


def test_both_ways_to_the_gram_matrix_agree() -> None:
    weight = gaussian(6, 5, 3, 3)
    for size in (8, 4, 3, 2):  # lags that meet on small grids
        kernel = canonical(weight, geometry(weight, size))
        frequencies, _ = half_spectrum(kernel.grid, weight.device)
        by_lags = convolution_gram.Gram(kernel, 1000)
        by_symbol = convolution_gram.Gram(kernel, 0)
        assert by_lags.lags is not None
        assert by_symbol.lags is None
        torch.testing.assert_close(
            by_lags(frequencies), by_symbol(frequencies), rtol=1e-13, atol=1e-13
        )


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        (
            (4, 3, 3, 3),
            (4, 4),
        ),  # all taps at a time; lags of half the map, which are their own negatives
        ((4, 3, 5), (6,)),
        ((2, 3, 3, 3), (2, 5)),  # a kernel that wraps
        ((40, 36, 3), (8,)),  # two taps at a time, then one
        ((50, 49, 3), (7,)),  # one
    ],
)
@pytest.mark.parametrize("kept", [0, 2**16])
def test_the_autocorrelation_makes_the_gram_matrix_of_numpys_fft(shape, sizes, kept, monkeypatch):
    monkeypatch.setattr(convolution_gram, "_KEPT", kept)
    kernel = canonical(gaussian(*shape), geometry(gaussian(*shape), sizes))
    frequencies, _ = half_spectrum(kernel.grid, torch.device("cpu"))
    m, _, c = kernel.taps.shape[1:]
    space = np.zeros((m, c, *kernel.grid))
    for t, place in enumerate(kernel.positions):
        space[(slice(None), slice(None), *place)] = kernel.taps[0, :, t]
    symbol = np.fft.fftn(space, axes=range(2, space.ndim))
    gram = convolution_gram.Gram(kernel, 10**6)
    parts = torch.cat(list(gram.half(frequencies, 3))).numpy()
    for f, found in zip(frequencies.long().tolist(), parts, strict=True):
        p = symbol[(slice(None), slice(None), *f)]
        np.testing.assert_allclose(found[0], p @ p.conj().T, atol=1e-11)


def test_chunks_of_frequencies_change_nothing(monkeypatch) -> None:
    weight = gaussian(18, 20, 3, 3)
    whole = conv_singular_values(weight, 8), conv_spectral_norm(weight, 8)
    monkeypatch.setattr(convolution_gram, "_CHUNK", 1000)
    parts = conv_singular_values(weight, 8), conv_spectral_norm(weight, 8)
    torch.testing.assert_close(whole, parts, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [(24, 40, 3, 3), (48, 48, 3, 3), (32, 24, 5, 5)])
def test_the_screening_finds_the_norm(shape, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    kernel = canonical(weight, geometry(weight, 12))
    screened, whole = (convolution_norm.largest(kernel, screen=flag) for flag in (True, False))
    torch.testing.assert_close(screened, whole, rtol=1e-10, atol=0)


def test_the_screening_where_all_frequencies_are_nearly_alike() -> None:
    """(1 + 0.001 e^{-iω}) D: far more frequencies within 1 % of the best than are looked at."""
    d = gaussian(32, 40)
    weight = torch.stack((d, 0.001 * d), 2)
    kernel = canonical(weight, geometry(weight, 100))
    screened = convolution_norm.largest(kernel)
    expected = 1.001 * torch.linalg.matrix_norm(d, 2)
    torch.testing.assert_close(screened, expected, rtol=1e-12, atol=0)


def test_known_spectra() -> None:
    # a blur passes constants and removes the highest frequency, exactly
    blur = torch.tensor([[[0.25, 0.5, 0.25]]], dtype=torch.float64)
    expected = (0.5 + 0.5 * torch.cos(2 * torch.pi * torch.arange(8.0).double() / 8)).abs()
    found = conv_singular_values(blur, 8)
    torch.testing.assert_close(found, expected.sort(descending=True).values, rtol=0, atol=1e-15)
    # delta-orthogonal: an orthogonal matrix at one tap
    delta = torch.zeros(5, 5, 3, 3, dtype=torch.float64)
    delta[:, :, 1, 1] = torch.linalg.qr(gaussian(5, 5)).Q
    torch.testing.assert_close(conv_singular_values(delta, 6), torch.ones(180).double())
    # 1x1 with stride 2 from fewer to more channels: three quarters of the input are not read
    w = gaussian(8, 4, 1, 1)
    found = conv_singular_values(w, 4, stride=2)
    expected = torch.linalg.svdvals(w[:, :, 0, 0]).repeat_interleave(4)
    torch.testing.assert_close(found[:16], expected)
    assert found.shape == (32,)
    assert not found[16:].any()


def test_a_dead_filter_gives_zeros_not_noise() -> None:
    weight = gaussian(6, 8, 3, 3)
    weight[2] = 0
    found = conv_singular_values(weight, 5)
    assert float(found[-25]) <= 1e-14 * float(found[0])
    assert float(found[-26]) > 1e-3


@pytest.mark.parametrize("scale", [0.0, 1e-300, 1e-160, 1e160, 1e300])
def test_extreme_scales(scale) -> None:
    weight = gaussian(4, 3, 3, 3)
    torch.testing.assert_close(
        conv_singular_values(scale * weight, 4),
        scale * conv_singular_values(weight, 4),
        rtol=1e-11,
        atol=0,
    )
    for padding in ("circular", "zeros"):
        torch.testing.assert_close(
            conv_spectral_norm(scale * weight, 4, padding=padding),
            scale * conv_spectral_norm(weight, 4, padding=padding),
            rtol=1e-11,
            atol=0,
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(value) -> None:
    weight = gaussian(2, 2, 3)
    weight[0, 0, 0] = value
    assert conv_singular_values(weight, 4).isnan().all()
    assert conv_spectral_norm(weight, 4).isnan()
    assert conv_extremes(weight, 4).largest.isnan()
    report = conv_zero_padding(weight, 4)
    assert all(x.isnan().all() for x in report)
    assert report.singular_values.shape == (8,)
