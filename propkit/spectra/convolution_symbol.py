"""A circular convolution in canonical form: stride 1, no dilation, all taps on the map; and its Fourier symbol.

Per axis, tap t of y[i] = Σ_t K_t x[(s·i + d·t) mod n] sits at q = d·t mod n (taps that meet are added: a kernel larger
than the map wraps), which is phase r = q mod s of the input, at position a = (q − r) / s on a grid of n / s points.
Each phase is an input channel of a convolution of stride 1. Shifting a phase changes no singular value; where all
positions have a divisor g in common with the grid, the operator is g copies of one on a grid g times coarser: dilation,
and axes with one tap, are cases of g > 1.
"""

import functools
import itertools
import math
from typing import NamedTuple

import torch

from propkit.spectra.convolution_geometry import Axis, Geometry


class Kernel(NamedTuple):
    """A circular convolution of stride 1 between `groups` pairs of m and c channels, m <= c.

    Attributes:
        taps: (groups, m, T, c).
        positions: Where the T taps sit, each a tuple of one integer per axis.
        grid: Number of points per axis.
        copies: How often each singular value of it occurs in the operator.
    """

    taps: torch.Tensor
    positions: tuple[tuple[int, ...], ...]
    grid: tuple[int, ...]
    copies: int

    def symbol(self, frequencies: torch.Tensor) -> torch.Tensor:
        """P(f) = Σ_t K_t e^{−2πi f·t}, for `frequencies` (F, axes): (F, groups, m, c); real if the grid makes it so."""
        groups, m, t, c = self.taps.shape
        taps = self.taps.transpose(1, 2).transpose(0, 1).reshape(t, groups * m * c)
        angle = angles(frequencies, self.positions, self.grid)
        real = angle.cos() @ taps
        flat = real if self.is_real else torch.complex(real, -(angle.sin() @ taps))
        return flat.view(len(frequencies), groups, m, c)

    @property
    def is_real(self) -> bool:
        """Whether every frequency is its own negative."""
        return max(self.grid) <= 2


def canonical(weight: torch.Tensor, layout: Geometry) -> Kernel:
    """The canonical form of a convolution that the Fourier transform diagonalises.

    Args:
        weight: (filters, channels / groups, *kernel), of the operator or of its adjoint.
        layout: Its stationary geometry.
    """
    filters, channels, *kernel = weight.shape
    taps = weight.reshape(layout.groups, filters // layout.groups, channels, *kernel)
    grid, copies, phases, places = [], 1, [], []
    for j, axis in enumerate(layout.axes):
        folded = _fold(axis)
        if folded.plain:  # nothing to fold: the kernel itself
            taps = taps.unsqueeze(3 + 2 * j)
        else:
            table = taps.new_zeros(axis.taps, len(folded.phases), len(folded.positions))
            for t, (r, a) in enumerate(folded.targets):
                table[t, r, a] = 1
            moved = torch.tensordot(taps, table, dims=([3 + 2 * j], [0]))
            taps = moved.movedim((-2, -1), (3 + 2 * j, 4 + 2 * j))
        grid.append(folded.grid)
        copies *= folded.copies
        phases.append(len(folded.phases))
        places.append(folded.positions)
    axes = len(grid)
    # (groups, filters, channels, phase, position, phase, position, ...) -> (groups, filters, positions, columns)
    order = [0, 1, *range(4, 4 + 2 * axes, 2), 2, *range(3, 3 + 2 * axes, 2)]
    positions = tuple(itertools.product(*places))
    columns = channels * math.prod(phases)
    taps = taps.permute(order).reshape(
        layout.groups, filters // layout.groups, len(positions), columns
    )
    if taps.shape[1] > columns:
        taps = taps.transpose(1, 3)
    return Kernel(taps.contiguous(), positions, tuple(grid), copies)


class _Folded(NamedTuple):
    """Where the taps of one axis go: ``targets[t] = (index into phases, index into positions)``."""

    phases: list[int]
    positions: list[int]
    targets: list[tuple[int, int]]
    grid: int
    copies: int

    @property
    def plain(self) -> bool:
        """Whether tap t is position t."""
        return self.targets == [(0, t) for t in range(len(self.targets))]


@functools.lru_cache(maxsize=256)
def _fold(axis: Axis) -> _Folded:
    taps = [axis.dilation * t % axis.size for t in range(axis.taps)]
    phases = sorted({q % axis.stride for q in taps})
    first = {r: min(q // axis.stride for q in taps if q % axis.stride == r) for r in phases}
    places = [q // axis.stride - first[q % axis.stride] for q in taps]
    points = axis.size // axis.stride
    copies = math.gcd(points, *places)
    positions = sorted(set(places))
    targets = [
        (phases.index(q % axis.stride), positions.index(a))
        for q, a in zip(taps, places, strict=True)
    ]
    return _Folded(phases, [a // copies for a in positions], targets, points // copies, copies)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(mode=False)  # what is kept may be wanted for a gradient later
def half_spectrum(grid: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Frequencies of `grid`, one of each pair ±f: (F, axes), float64; and how many each stands for, 1 or 2: (F,).

    The symbol of a real kernel at −f is the conjugate of that at f, with the same singular values.
    """
    index = torch.arange(math.prod(grid), device=device)
    frequency = torch.stack(torch.unravel_index(index, grid), 1)
    negative = torch.zeros_like(index)
    for axis, n in enumerate(grid):
        negative = negative * n + (-frequency[:, axis]) % n
    kept = index <= negative
    return frequency[kept].double(), 2 - (index == negative)[kept].long()


def angles(
    frequencies: torch.Tensor, positions: tuple[tuple[int, ...], ...], grid: tuple[int, ...]
) -> torch.Tensor:
    """2π f·t for `frequencies` (F, axes) and T `positions`: (F, T), float64.

    In units of 1 / lcm(grid) all terms are integers, and float64 takes whole turns off without an error.
    """
    turn = math.lcm(*grid)
    rows = [
        [p * (turn // n) % turn for p, n in zip(place, grid, strict=True)] for place in positions
    ]
    where = torch.tensor(rows, dtype=torch.float64, device=frequencies.device)
    return (frequencies @ where.mT).remainder_(turn).mul_(2 * math.pi / turn)
