"""Spectrum of the Jacobian of batch normalisation, in closed form."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

_BLOCK = 1 << 16
"""Elements of a block on a CPU, whose float64 copy stays in the cache; an accelerator gets 256 times as many."""


class Spectrum(NamedTuple):
    """Distinct values of a spectrum and how often each occurs.

    Attributes:
        values: (..., k), float64: one spectrum per channel or per normalised set.
        multiplicities: (k,), int64; a value of multiplicity 0 does not occur.
    """

    values: torch.Tensor
    multiplicities: torch.Tensor

    def expand(self) -> torch.Tensor:
        """Every value as often as it occurs, descending; (..., sum of multiplicities)."""
        counts = self.multiplicities.to(self.values.device)
        every = self.values.repeat_interleave(counts, dim=-1)
        return every.sort(dim=-1, descending=True).values


def bn_eigenvalues(
    x: torch.Tensor,
    gamma: torch.Tensor | None = None,
    eps: float = 1e-5,
    *,
    running_var: torch.Tensor | None = None,
) -> Spectrum:
    """Eigenvalues of the Jacobian of batch normalisation at `x`, channel by channel.

    A channel of m = N·(spatial size) elements with biased variance σ² has ρ = γ/√(σ² + ε) and

        J = ρ (I − (e eᵀ + x̂ x̂ᵀ)/m),   x̂ = (x − μ)/√(σ² + ε),

    which is symmetric with the eigenvectors e (constant shifts), x̂ (rescaling) and all that is orthogonal to both.
    This is exact for every m, ε and distribution of x. Singular values are the absolute values; the whole layer has
    the union over channels. β plays no part.

    Args:
        x: (N, C, *spatial), floating, any dtype: what the layer receives.
        gamma: (C,), the layer's ``weight``; None where it has none (``affine=False``).
        eps: The layer's ε.
        running_var: (C,): given, the layer is in evaluation mode and J = γ/√(running_var + ε) I.

    Returns:
        ``values`` (C, 3): 0, ρε/(σ² + ε) and ρ, and ``multiplicities`` (3,): 1, 1 and m − 2. With m = 1, J = 0:
        multiplicities (1, 0, 0). A constant channel (σ² = 0) has ρ = γ/√ε for both. In evaluation mode all three
        are ρ and the multiplicities (0, 0, m). Where ε = 0 and σ² = 0 there is no derivative: inf and NaN.

    Raises:
        ValueError: Shapes do not fit, `x` is empty or not floating, or ε < 0.

    Source: Xie, Xiong & Pu, arXiv:1703.01827, Eqs. 6 and 12-14; the spectrum with ε is exact where the paper's
    Eqs. 17-18 approximate.

    >>> x = torch.tensor([[1.0], [3.0], [2.0], [6.0]])
    >>> values, multiplicities = bn_eigenvalues(x, torch.tensor([2.0]), eps=0.5)
    >>> values.tolist(), multiplicities.tolist()
    ([[0.0, 0.125, 1.0]], [1, 1, 2])
    """
    if x.ndim < 2 or not x.numel() or not x.is_floating_point():
        raise ValueError(
            f"expected x of shape (N, C, *spatial), floating and not empty, found {tuple(x.shape)}, {x.dtype}"
        )
    count = x.numel() // x.shape[1]
    if running_var is None:
        return bn_eigenvalues_from_variance(channel_moments(x)[1], count, gamma, eps)
    rho = _rho(_same_channels("running_var", running_var, x.shape[1]).to(wide(x)), gamma, eps)
    return Spectrum(torch.stack([rho] * 3, 1), torch.tensor([0, 0, count]))


def bn_eigenvalues_from_variance(
    variance: torch.Tensor, count: int, gamma: torch.Tensor | None = None, eps: float = 1e-5
) -> Spectrum:
    """Eigenvalues as `bn_eigenvalues` gives them, from statistics alone.

    Synchronised batch normalisation normalises over all processes: give it their pooled variance (`pool_moments`) and
    their total count.

    Args:
        variance: (C,), biased variance of each channel.
        count: m, the elements per channel that are normalised together.
        gamma: (C,) or None.
        eps: The layer's ε.

    Raises:
        ValueError: Shapes do not fit, ε < 0 or `count` < 1.
    """
    if count < 1:
        raise ValueError(f"expected count >= 1 elements per channel, found {count}")
    variance = variance.to(wide(variance))
    rho = _rho(variance, gamma, eps)
    second = rho * (eps / (variance + eps))
    multiplicities = [1, 1, count - 2] if count > 1 else [1, 0, 0]
    return Spectrum(
        torch.stack([torch.zeros_like(rho), second, rho], 1), torch.tensor(multiplicities)
    )


def channel_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of each channel of `x` (N, C, *spatial), float64.

    Each block of samples is centred by its own mean in float64, then blocks are pooled: exact where |mean| ≫ std, which
    a sum of squares in float32 is not, with one pass over `x` and no temporary of its size.
    """
    counts, means, variances = [], [], []
    for block in blocks(x):
        channels = block.transpose(0, 1).flatten(1)
        mean = channels.mean(1)
        counts.append(channels.shape[1])
        means.append(mean)
        variances.append((channels - mean[:, None]).square().mean(1))
    if len(counts) == 1:
        return means[0], variances[0]
    count = torch.tensor(counts, dtype=wide(x), device=x.device)
    return pool_moments(count, torch.stack(means), torch.stack(variances))


def pool_moments(
    count: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of the union of k samples, from those of each.

    Args:
        count: (k,) sizes of the samples.
        mean: (k, C).
        variance: (k, C), biased.

    Returns:
        Mean and biased variance, (C,) each.
    """
    share = (count / count.sum())[:, None]
    pooled = (share * mean).sum(0)
    return pooled, (share * (variance + (mean - pooled).square())).sum(0)


def blocks(x: torch.Tensor) -> Iterator[torch.Tensor]:
    """`x` in blocks along its first dimension, detached, in float64: never a float64 copy of all of it."""
    size = _BLOCK if x.device.type == "cpu" else _BLOCK << 8
    if torch.compiler.is_compiling() or x.numel() <= size:  # a compiler fuses the copy away
        yield x.detach().to(wide(x))
        return
    for block in x.detach().split(max(1, size * len(x) // x.numel())):
        yield block.to(wide(x))


def wide(x: torch.Tensor) -> torch.dtype:
    """float64, or float32 on a device that has none (Apple's MPS)."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def _rho(variance: torch.Tensor, gamma: torch.Tensor | None, eps: float) -> torch.Tensor:
    if not eps >= 0:
        raise ValueError(f"expected eps >= 0, found {eps}")
    if variance.ndim != 1:
        raise ValueError(
            f"expected a variance for each channel, shape (C,), found {tuple(variance.shape)}"
        )
    rho = (variance + eps).rsqrt()
    if gamma is None:
        return rho
    return _same_channels("gamma", gamma, len(variance)).to(rho) * rho


def _same_channels(name: str, values: torch.Tensor, channels: int) -> torch.Tensor:
    if values.shape != (channels,):
        raise ValueError(
            f"expected {name} of shape ({channels},), one per channel, found {tuple(values.shape)}"
        )
    return values.detach()
