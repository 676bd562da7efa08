"""The largest singular value of a Fourier symbol, without the others."""

import torch

from propkit.spectra.convolution_gram import Gram, chunk, symbol_values
from propkit.spectra.convolution_symbol import Kernel, half_spectrum

_SMALL = 24  # rows up to which all eigenvalues are cheaper than a screening
_CANDIDATES = 16
# steps, and the part of the largest λ seen that a frequency must reach to be kept
_SCREENING = ((8, 0.9), (20, 0.99))


def largest(kernel: Kernel, screen: bool = True) -> torch.Tensor:
    """Largest singular value of `kernel`, 0-d, float64.

    Args:
        kernel: The kernel.
        screen: Ask for eigenvalues at the 16 most promising frequencies only: all frequencies take 8 steps of Lanczos'
            method on G(f), those within 10 % of the best 20 steps, those within 1 % of the best are kept. No proof, but
            the result is never above the true value by more than rounding. Otherwise all frequencies are looked at.
    """
    frequencies, _ = half_spectrum(kernel.grid, kernel.taps.device)
    m = kernel.taps.shape[1]
    if m == 1:
        return symbol_values(kernel, frequencies).amax()
    gram = Gram(kernel, len(frequencies))
    if screen and m > _SMALL and len(frequencies) > _CANDIDATES:
        frequencies = _screen(gram, frequencies)
    parts = frequencies.split(chunk(kernel, m))
    square = torch.stack([torch.linalg.eigvalsh(gram(f))[..., -1].amax() for f in parts]).amax()
    if square > 0:
        return square.sqrt()
    return symbol_values(kernel, frequencies).amax()


@torch.no_grad()
def _screen(gram: Gram, frequencies: torch.Tensor) -> torch.Tensor:
    gram = gram.single()
    size = 2 * chunk(gram.kernel, gram.kernel.taps.shape[1])
    for steps, share in _SCREENING:
        top = torch.cat([_lanczos_top(gram, f, steps) for f in frequencies.split(size)])
        kept = top >= share * top.max()
        frequencies, top = frequencies[kept], top[kept]
    return frequencies[top.topk(min(len(top), _CANDIDATES)).indices]


def _lanczos_top(gram: Gram, frequencies: torch.Tensor, steps: int) -> torch.Tensor:
    """Largest Ritz value over all groups of G at each of the `frequencies`, (F,), from a fixed vector.

    In real arithmetic: batched products of complex matrices with single vectors are slow.
    """
    real, imaginary = gram.planes(frequencies)
    real, imaginary = real.flatten(0, 1), None if imaginary is None else imaginary.flatten(0, 1)
    batch, m, _ = real.shape

    def product(v: torch.Tensor) -> torch.Tensor:
        if imaginary is None:
            return real @ v
        b = imaginary @ v
        return real @ v + torch.stack((-b[..., 1], b[..., 0]), -1)

    index = torch.arange(2 * m, device=real.device, dtype=torch.float64)
    start = torch.sin(1.0 + index * index * 0.7390851332151607).view(m, 2)  # without structure
    v = (start / torch.linalg.vector_norm(start)).to(real).expand(batch, m, 2)
    before, beta = torch.zeros_like(v), real.new_zeros(batch, 1, 1)
    small = real.new_zeros(batch, steps, steps)
    for k in range(steps):
        w = product(v) - beta * before
        alpha = (v * w).sum((1, 2), keepdim=True)
        w = w - alpha * v
        small[:, k, k] = alpha[:, 0, 0]
        if k + 1 < steps:
            beta = (w * w).sum((1, 2), keepdim=True).sqrt()
            small[:, k + 1, k] = beta[:, 0, 0]
            before, v = v, w / beta.clamp_min(torch.finfo(w.dtype).tiny)
    top: torch.Tensor = torch.linalg.eigvalsh(small)[:, -1]
    return top.view(len(frequencies), -1).amax(1)
