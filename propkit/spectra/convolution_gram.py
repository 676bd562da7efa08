"""Singular values of a Fourier symbol: through Gram matrices, which is fast, and again where that is not accurate."""

import copy
import functools
from typing import NamedTuple

import torch

from propkit.spectra.convolution_geometry import Geometry, count
from propkit.spectra.convolution_symbol import Kernel, angles, canonical, half_spectrum

FLOOR = 1e-4
"""Frequencies with a singular value below this part of the largest are not left to the Gram matrix."""

_CHUNK = (
    2**17
)  # numbers per batch of matrices: 2 MB in complex128, so that a batch stays in the cache


class Lags(NamedTuple):
    """Differences δ between tap positions, one of each pair ±δ, and the pairs of taps (t, t') that have each.

    Attributes:
        differences: δ, one integer per axis.
        first: For each δ the indices t.
        second: For each δ the indices t'.
        weights: 1/2 where δ = −δ on the grid, else 1: (number of δ, 1, 1, 1).
    """

    differences: tuple[tuple[int, ...], ...]
    first: list[torch.Tensor]
    second: list[torch.Tensor]
    weights: torch.Tensor


@functools.lru_cache(maxsize=64)
@torch.inference_mode(mode=False)  # what is kept may be wanted for a gradient later
def lags(
    positions: tuple[tuple[int, ...], ...], grid: tuple[int, ...], device: torch.device
) -> Lags:
    """The lags of the autocorrelation of taps at `positions` on a periodic `grid`."""
    found: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    weights = []
    for i, p in enumerate(positions):
        for j, q in enumerate(positions):
            lag = tuple((a - b) % n for a, b, n in zip(p, q, grid, strict=True))
            negative = tuple(-a % n for a, n in zip(lag, grid, strict=True))
            if lag > negative:
                continue
            if lag not in found:
                found[lag] = []
                weights.append(0.5 if lag == negative else 1.0)
            found[lag].append((i, j))
    first, second = (
        [torch.tensor([pair[k] for pair in pairs], device=device) for pairs in found.values()]
        for k in (0, 1)
    )
    weight = torch.tensor(weights, dtype=torch.float64, device=device).view(-1, 1, 1, 1)
    return Lags(tuple(found), first, second, weight)


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
        taps = kernel.taps
        self.lags = lags(kernel.positions, kernel.grid, taps.device)
        groups, m, _, _ = taps.shape
        r = torch.stack(
            [
                taps.index_select(2, i).view(groups, m, -1)
                @ taps.index_select(2, j).view(groups, m, -1).mT
                for i, j in zip(self.lags.first, self.lags.second, strict=True)
            ]
        )
        self._even = (self.lags.weights * (r + r.mT)).flatten(1)
        self._odd = (r - r.mT).flatten(1)

    def single(self) -> "Gram":
        """The same with planes in float32."""
        other = copy.copy(self)
        other._dtype = torch.float32
        if self.lags is not None:
            other._even, other._odd = self._even.float(), self._odd.float()
        return other

    def planes(self, frequencies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Real and imaginary part of G at `frequencies` (F, axes), (F, groups, m, m); None if all is real."""
        groups, m, _, _ = self.kernel.taps.shape
        if self.lags is None:
            p = self.kernel.symbol(frequencies)
            g = p @ p.mH
            return g.real.to(self._dtype), None if self.kernel.is_real else g.imag.to(self._dtype)
        angle = angles(frequencies, self.lags.differences, self.kernel.grid)
        shape = (len(frequencies), groups, m, m)
        real = (angle.cos().to(self._dtype) @ self._even).view(shape)
        if self.kernel.is_real:
            return real, None
        return real, (-angle.sin().to(self._dtype) @ self._odd).view(shape)

    def __call__(self, frequencies: torch.Tensor) -> torch.Tensor:
        """G at `frequencies` (F, axes), (F, groups, m, m), float64 or complex128."""
        real, imaginary = self.planes(frequencies)
        return real if imaginary is None else torch.complex(real, imaginary)


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
    squares = torch.cat(
        [torch.linalg.eigvalsh(gram(part)) for part in frequencies.split(chunk(kernel, m))]
    )
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
