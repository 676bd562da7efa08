"""The polar factor, the nearest matrix or convolution whose singular values are all 1.

A = (A Aᴴ)^{1/2} U: U = (A Aᴴ)^{-1/2} A. The Gram matrix is always that of the smaller side. For a
circular convolution each frequency has a matrix of its own (arXiv:1805.07477, Eq. 8).
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from propkit.spectra.convolution_symbol import Kernel, angles, half_spectrum
from propkit.training.inverse_root import (
    CENTRE,
    POLYNOMIAL,
    STEP,
    InverseRoots,
    inverse_root,
    polynomial_limit,
)

_NEAR = 0.6
"""Up to this Σ e⁴ to the fourth root, e the eigenvalues of I − A Aᵀ, a power series takes few steps."""
_CHUNK = 2**17
"""Numbers per batch of matrices, so that a batch stays in the cache."""
_ROWS = 96
"""Below so many rows a product of matrices costs what its call costs."""


def matrix_polar_factor(a: Tensor) -> Tensor:
    """Polar factor of real matrices ``(groups, m, c)``, m <= c, of float32 or float64.

    A matrix that is a multiple of an orthonormal one up to an error of `_NEAR`, as after an
    optimiser step from one, takes steps A ← (I − E)^{-1/2} A, of E = I − A Aᵀ and to its fourth power,
    until the error is rounding. Well-conditioned ones come as near by `POLYNOMIAL` and `STEP`, others
    by the eigenvalues of A Aᵀ in float64. Directions in which a matrix is zero stay so.
    """
    m, c = a.shape[1:]
    info = torch.finfo(a.dtype)
    norm = torch.linalg.vector_norm(a, dim=(1, 2), keepdim=True)
    a = a * (m**0.5 / norm.clamp_min(info.tiny))
    error, square, size = _distance(a)
    if size > _NEAR and _largest(error) <= polynomial_limit(m, c) * m**0.5:
        brought = _step(a, POLYNOMIAL, 1 + size)
        brought = _step(brought, STEP, 1.0) / CENTRE**0.5
        found = _distance(brought)
        if found[2] <= _NEAR:
            a, (error, square, size) = brought, found
    if not size <= _NEAR:
        wide = a.double()
        gram = wide @ wide.mT
        a = (inverse_root(gram, _trace(gram)) @ wide).to(a.dtype)
        if a.dtype == torch.float32:
            return a
        error, square, size = _distance(a)
    while size <= _NEAR:  # not of a singular matrix
        change = error / 2
        if size**2 > info.eps:
            change.add_(square, alpha=3 / 8)
            change.baddbmm_(square, error * (5 / 16) + square * (35 / 128))
        a = torch.baddbmm(a, change, a)
        if size**5 <= info.eps:
            break
        error, square, size = _distance(a)
    return a


def _distance(a: Tensor) -> tuple[Tensor, Tensor, float]:
    """E = I − A Aᵀ, its square, and a bound on its eigenvalues."""
    error = torch.bmm(a, a.mT).neg_()
    error.diagonal(dim1=1, dim2=2).add_(1)
    square = torch.bmm(error, error)
    return error, square, _largest(square) ** 0.5


def _step(a: Tensor, coefficients: tuple[float, float, float], bound: float) -> Tensor:
    """T A, T a polynomial of M = A Aᵀ / bound, and by its root what M is to A Aᵀ."""
    gram = torch.bmm(a, a.mT)
    t = gram * (coefficients[1] / bound**1.5)
    t.baddbmm_(gram, gram, alpha=coefficients[2] / bound**2.5)
    t.diagonal(dim1=1, dim2=2).add_(coefficients[0] / bound**0.5)
    return torch.bmm(t, a)


def _largest(a: Tensor) -> float:
    return float(torch.linalg.vector_norm(a, dim=(1, 2)).max())


def _trace(gram: Tensor) -> Tensor:
    return gram.diagonal(dim1=-2, dim2=-1).sum(-1).real


class Lags(NamedTuple):
    """The differences δ between a kernel's tap positions, one of each pair ±δ, and their phases e^{−iωδ}.

    Attributes:
        table: (T, T): which of the H differences ``positions[i] − positions[j]`` is, modulo the grid;
            H more where it is the negative of one. The first is 0.
        share: (H,): 1/2 where δ = −δ, else 1.
        waves: (F, 2 H): cos(ωδ) and sin(ωδ), at each frequency of half the spectrum.
        weight: (F,): share of the whole spectrum that the frequency stands for.
    """

    table: Tensor
    share: Tensor
    waves: Tensor
    weight: Tensor


@functools.lru_cache(maxsize=64)
def lags(
    positions: tuple[tuple[int, ...], ...],
    grid: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Lags:
    """The lags of an autocorrelation; they are kept, because a training projects again and again."""
    found: dict[tuple[int, ...], int] = {}
    table = []
    for p in positions:
        for q in positions:
            lag = tuple((a - b) % n for a, b, n in zip(p, q, grid, strict=True))
            negative = tuple(-a % n for a, n in zip(lag, grid, strict=True))
            # H is added to the negatives when it is known.
            table.append((found.setdefault(min(lag, negative), len(found)), lag > negative))
    half = len(found)
    frequencies, times = half_spectrum(grid, device)
    angle = angles(frequencies, tuple(found), grid)
    own = [all(2 * a % n == 0 for a, n in zip(lag, grid, strict=True)) for lag in found]
    index = torch.tensor([h + half * other for h, other in table], device=device)
    return Lags(
        index.view(len(positions), -1),
        torch.where(torch.tensor(own, device=device), 0.5, 1.0).to(dtype)[:, None, None, None],
        torch.cat([angle.cos(), angle.sin()], 1).to(dtype),
        times.to(dtype) / int(times.sum()),
    )


def kernel_lags(kernel: Kernel) -> Lags:
    """The lags of a kernel."""
    return lags(kernel.positions, kernel.grid, kernel.taps.dtype, kernel.taps.device)


def autocorrelation(taps: Tensor, lags: Lags) -> Tensor:
    """R_δ = Σ_t K_{t+δ} K_tᵀ for each lag: ``(H, groups, m, m)``; taps are ``(groups, m, T, c)``."""
    groups, m, t, c = taps.shape
    rows = taps.transpose(1, 2).reshape(groups, t * m, c)
    both = taps.new_zeros(2 * len(lags.share), groups, m, m)
    step = max(1, _ROWS // m)
    for i in range(0, t, step):  # pairs of a tap and one that does not come before it
        n = min(step, t - i)
        pairs = rows[:, i * m :] @ rows[:, i * m : (i + n) * m].mT
        blocks = pairs.view(groups, t - i, m, n, m).permute(1, 3, 0, 2, 4).contiguous()
        blocks[:n] /= 2  # pairs that are there in both orders, or come back transposed below
        both.index_add_(0, lags.table[i:, i : i + n].flatten(), blocks.flatten(0, 1))
    first, second = both.chunk(2)
    # The other order of each pair has the lag −δ, which is δ itself where the share is 1/2.
    return first + second.mT + (first.mT + second) * (2 - 2 * lags.share)


def convolve(filters: Tensor, taps: Tensor, lags: Lags) -> Tensor:
    """K'_t = Σ_s Z_{t−s} K_s at the kernel's own taps, Z_{−δ} = Z_δᵀ; Z ``(H, groups, m, m)``."""
    groups, m, t, c = taps.shape
    both = torch.cat([filters, filters.mT])
    toeplitz = both[lags.table].permute(2, 0, 3, 1, 4).reshape(groups, t * m, t * m)
    rows = toeplitz @ taps.transpose(1, 2).reshape(groups, t * m, c)
    return rows.view(groups, t, m, c).transpose(1, 2)


def newton_schulz_step(taps: Tensor, lags: Lags) -> Tensor:
    """K ← (3 K − K ⋆ Kᵀ ⋆ K) / 2 at the kernel's own taps, for a kernel near a polar factor."""
    filters = autocorrelation(taps, lags).div_(-2)
    filters[0].diagonal(dim1=-2, dim2=-1).add_(1.5)
    return convolve(filters, taps, lags)


def convolution_polar_factor(kernel: Kernel, conjugate: bool = False) -> Tensor:
    """Polar factor of a circular convolution, at the kernel's own taps: ``(groups, m, T, c)``.

    With T taps on a map of N points, T(T+1) <= 4N: G from the autocorrelation, and of Z = G^{-1/2} only
    the Fourier coefficients between taps. Otherwise from the symbol itself.

    Args:
        kernel: Its taps are float32 or float64, which is the precision of it all.
        conjugate: Read the spectrum conjugated (see `propkit.training.procrustes_`).
    """
    t = len(kernel.positions)
    if conjugate or t * (t + 1) > 4 * math.prod(kernel.grid):
        return _by_symbol(kernel, -1 if conjugate else 1)
    lags = kernel_lags(kernel)
    groups, m, _, _ = kernel.taps.shape
    planes = autocorrelation(kernel.taps, lags)
    # G(ω) = Σ_δ cos(ωδ) even_δ − i sin(ωδ) odd_δ, its root Z alike: each as real + imaginary part.
    even = (planes + planes.mT) * lags.share
    traces = (lags.waves[:, : len(even)] @ _trace(even)).amax(0)
    both = torch.cat([even, planes.mT - planes]).flatten(1)
    filters = torch.zeros_like(both)
    number = len(lags.waves)
    size = -(-number // -(-number * even[0].numel() // _CHUNK))  # of about equal chunks
    inverse_roots = InverseRoots(size * groups, planes[0, 0], kernel.taps.shape[3])
    for i in range(0, number, size):
        waves, weight = lags.waves[i : i + size], lags.weight[i : i + size]
        gram = (waves @ both).view(-1, groups, m, m)
        root = inverse_roots(gram, traces)
        filters.addmm_(waves.mT * weight, root.flatten(1))
    cos, sin = filters.view(2, *planes.shape) / 2
    return convolve(cos + cos.mT - sin + sin.mT, kernel.taps, lags)


def _by_symbol(kernel: Kernel, sign: int) -> Tensor:
    groups, m, t, c = kernel.taps.shape
    frequencies, times = half_spectrum(kernel.grid, kernel.taps.device)
    symbol = kernel._replace(taps=kernel.taps.double()).symbol(frequencies)
    gram = symbol @ symbol.mH
    factor = (inverse_root(gram, _trace(gram).amax(0)) @ symbol).flatten(1)
    angle = sign * angles(frequencies, kernel.positions, kernel.grid)
    share = times.double() / int(times.sum())
    taps = (angle.cos().mT * share) @ factor.real
    if factor.is_complex():
        taps -= (angle.sin().mT * share) @ factor.imag
    return taps.view(t, groups, m, c).permute(1, 2, 0, 3).to(kernel.taps.dtype)
