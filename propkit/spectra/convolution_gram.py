"""Singular values of a Fourier symbol: through Gram matrices, which is fast, and again where that is not accurate."""

import copy
import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch

from propkit.spectra.convolution_geometry import Geometry, count
from propkit.spectra.convolution_symbol import Kernel, angles, canonical, half_spectrum

FLOOR = 1e-4
"""Frequencies with a singular value below this part of the largest are not left to the Gram matrix."""

_CHUNK = (
    2**17
)  # numbers per batch of matrices: 2 MB in complex128, so that a batch stays in the cache
_ROWS = 96  # below so many rows a product of matrices costs what its call costs
_KEPT = (
    2**16
)  # angles of which cos and sin are kept, 1 MB, for maps of up to 100 points or so a side


class Lags(NamedTuple):
    """Differences δ between tap positions, one of each pair ±δ, and the pairs of taps (t, t'), t >= t', that have each.

    Attributes:
        differences: δ, one integer per axis; H of them.
        pairs: Which pairs are computed, in this order, as blocks (first t' of a block, number of t').
        sums: (2 H, number of pairs): of K_t K_t'ᵀ, such that X + Xᵀ is the even and Y − Yᵀ the odd part of R_δ, X the
            first H rows and Y the others. 0 for pairs with t < t'.
    """

    differences: tuple[tuple[int, ...], ...]
    blocks: tuple[tuple[int, int], ...]
    sums: torch.Tensor


@functools.lru_cache(maxsize=64)
@torch.inference_mode(mode=False)  # what is kept may be wanted for a gradient later
def lags(
    positions: tuple[tuple[int, ...], ...], grid: tuple[int, ...], step: int, device: torch.device
) -> Lags:
    """The lags of the autocorrelation of taps at `positions` on a periodic `grid`, `step` taps t' at a time."""
    found: dict[tuple[int, ...], int] = {}
    blocks, even, odd = [], [], []
    for i in range(0, len(positions), step):
        blocks.append((i, min(step, len(positions) - i)))
        for t in range(i, len(positions)):
            for other in range(i, i + blocks[-1][1]):
                ends = zip(positions[t], positions[other], grid, strict=True)
                lag = tuple((a - b) % n for a, b, n in ends)
                negative = tuple(-a % n for a, n in zip(lag, grid, strict=True))
                h = found.setdefault(min(lag, negative), len(found))
                even.append((h, 0.0 if t < other else 0.5 if t == other else 1.0))
                odd.append((h, 0.0 if t < other else float((lag < negative) - (lag > negative))))
    sums = torch.zeros(2, len(found), len(even), dtype=torch.float64)
    for rows, entries in zip(sums, (even, odd), strict=True):
        for pair, (h, weight) in enumerate(entries):
            rows[h, pair] = weight
    return Lags(tuple(found), tuple(blocks), sums.flatten(0, 1).to(device))


def waves(
    frequencies: torch.Tensor, differences: tuple[tuple[int, ...], ...], grid: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and −sine of 2π f·δ for `frequencies` (F, axes): (F, number of δ), float64."""
    angle = angles(frequencies, differences, grid)
    return angle.cos(), angle.sin().neg_()


@functools.lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def half_waves(
    differences: tuple[tuple[int, ...], ...], grid: tuple[int, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """`waves` of half the spectrum, kept: a training asks for the same again and again."""
    return waves(half_spectrum(grid, device)[0], differences, grid)


class Gram:
    """G(f) = P(f) P(f)ᴴ of a kernel, for any frequencies.

    With T taps and F frequencies, T(T+1) <= 8F: from the autocorrelation of the kernel, G(f) = Σ_δ R_δ e^{−2πi f·δ}
    with R_δ = Σ_t K_{t+δ} K_tᵀ, a product of real matrices. Otherwise from the symbol.
    """

    def __init__(self, kernel: Kernel, frequencies: int) -> None:
        self.kernel, self._dtype = kernel, torch.float64
        t = len(kernel.positions)
        self.lags: Lags | None = None
        if t * (t + 1) > 8 * frequencies:
            return
        groups, m, _, c = kernel.taps.shape
        step = max(1, _ROWS // m)
        self.lags = lags(kernel.positions, kernel.grid, step, kernel.taps.device)
        rows = kernel.taps.transpose(1, 2).reshape(groups, t * m, c)
        products = []
        for i, n in self.lags.blocks:
            block = rows[:, i * m :] @ rows[:, i * m : (i + n) * m].mT
            block = block.view(groups, t - i, m, n, m).permute(1, 3, 0, 2, 4)
            products.append(block.reshape((t - i) * n, -1))
        x, y = (self.lags.sums @ torch.cat(products)).view(2, -1, groups, m, m)
        self._even, self._odd = (x + x.mT).flatten(1), (y - y.mT).flatten(1)

    def single(self) -> "Gram":
        """The same with planes in float32."""
        other = copy.copy(self)
        other._dtype = torch.float32
        if self.lags is not None:
            other._even, other._odd = self._even.float(), self._odd.float()
        return other

    def planes(
        self,
        frequencies: torch.Tensor,
        known: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Real and imaginary part of G at `frequencies` (F, axes), (F, groups, m, m); None if all is real.

        Args:
            frequencies: Where to.
            known: Their `waves`, if they are.
        """
        groups, m, _, _ = self.kernel.taps.shape
        if self.lags is None:
            p = self.kernel.symbol(frequencies)
            g = p @ p.mH
            return g.real.to(self._dtype), None if self.kernel.is_real else g.imag.to(self._dtype)
        cos, sin = known or waves(frequencies, self.lags.differences, self.kernel.grid)
        shape = (len(frequencies), groups, m, m)
        real = (cos.to(self._dtype) @ self._even).view(shape)
        if self.kernel.is_real:
            return real, None
        return real, (sin.to(self._dtype) @ self._odd).view(shape)

    def __call__(
        self,
        frequencies: torch.Tensor,
        known: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """G at `frequencies` (F, axes), (F, groups, m, m), float64 or complex128."""
        real, imaginary = self.planes(frequencies, known)
        return real if imaginary is None else torch.complex(real, imaginary)

    def half(self, frequencies: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
        """G at half the spectrum, `size` frequencies at a time."""
        if self.lags is None or len(frequencies) * len(self.lags.differences) > _KEPT:
            yield from map(self, frequencies.split(size))
            return
        kept = half_waves(self.lags.differences, self.kernel.grid, frequencies.device)
        for i, part in enumerate(frequencies.split(size)):
            cos, sin = (table[i * size : (i + 1) * size] for table in kept)
            yield self(part, (cos, sin))


def chunk(kernel: Kernel, columns: int) -> int:
    """How many frequencies to take at a time, for matrices of m x `columns`."""
    groups, m, _, _ = kernel.taps.shape
    return max(1, _CHUNK // (groups * m * columns))


def symbol_values(
    kernel: Kernel, frequencies: torch.Tensor, chosen: torch.Tensor | None = None
) -> torch.Tensor:
    """Singular values of the symbol by SVD, with an absolute error of some ε·σ_max(f).

    Args:
        kernel: The kernel.
        frequencies: (F, axes).
        chosen: (F, groups), bool: where to.

    Returns:
        (F, groups, m), or (number of the chosen, m).
    """
    m, c = kernel.taps.shape[1], kernel.taps.shape[3]
    size = chunk(kernel, c)
    found = []
    for i in range(0, len(frequencies), size):
        p = kernel.symbol(frequencies[i : i + size])
        if chosen is not None:
            p = p[chosen[i : i + size]]
        found.append(torch.linalg.vector_norm(p, dim=-1) if m == 1 else torch.linalg.svdvals(p))
    return torch.cat(found)


def values(kernel: Kernel, accurate: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Singular values of `kernel` at half of its frequencies.

    Args:
        kernel: The kernel.
        accurate: SVD of the symbol at every frequency.

    Returns:
        (F, groups, m), in no order, float64; and the number of frequencies that each of the F stands for, (F,).
    """
    frequencies, multiplicity = half_spectrum(kernel.grid, kernel.taps.device)
    m = kernel.taps.shape[1]
    if accurate or m == 1:  # a single row has its norm as singular value: nothing is cheaper
        return symbol_values(kernel, frequencies), multiplicity
    gram = Gram(kernel, len(frequencies))
    parts = gram.half(frequencies, chunk(kernel, m))
    squares = torch.cat([torch.linalg.eigvalsh(part) for part in parts])
    with torch.no_grad():
        lost = squares[..., 0] <= FLOOR**2 * squares[..., -1].amax(0)
    if not lost.any():
        return squares.sqrt(), multiplicity
    rows = lost.any(1)
    again = symbol_values(kernel, frequencies[rows], lost[rows])
    found = squares.where(~lost[..., None], 1).sqrt()
    return found.index_put((lost,), again), multiplicity


def circular_values(weight: torch.Tensor, layout: Geometry, accurate: bool = False) -> torch.Tensor:
    """All singular values of a convolution that the Fourier transform diagonalises, descending, float64.

    Args:
        weight: (filters, channels / groups, *kernel), float64, finite.
        layout: Its stationary geometry.
        accurate: As in `values`.
    """
    kernel = canonical(weight, layout)
    found, multiplicity = values(kernel, accurate)
    times = (multiplicity * kernel.copies)[:, None, None].expand_as(found)
    ordered, order = found.flatten().sort(descending=True)
    every = ordered.repeat_interleave(times.flatten()[order])
    # columns that no tap reads
    return torch.cat([every, every.new_zeros(count(weight, layout) - len(every))])
