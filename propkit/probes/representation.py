"""How near to singular a layer's representation is (Oyedotun, Shabayek, Aouada & Ottersten, ICPR 2020)."""

import torch

from propkit.probe import probe
from propkit.probes._reductions import wide
from propkit.schedules import log_spaced

_DENSE = 512
"""Largest smaller side of the matrix that is decomposed without squaring it."""


@probe(
    sites="layer",
    units={"condition_number": "1", "top_share": "1", "effective_rank": "1", "mean_cosine": "1"},
    reduce={
        "condition_number": "max",
        "top_share": "mean",
        "effective_rank": "mean",
        "mean_cosine": "mean",
    },
    every=log_spaced(10),
    reference="Oyedotun et al., ICPR 2020; Roy & Vetterli, EUSIPCO 2007 (effective rank)",
)
def representation(output: torch.Tensor) -> dict[str, torch.Tensor]:
    """Spectrum of a layer's representation: the matrix H of what it returns, a row per sample.

    In a deep network without normalisation the representations of all samples become one direction: H nears rank
    one, the mean cosine and the top share near 1, the effective rank 1, and the condition number diverges.

    Singular values σ come from H itself (QR, then SVD of the triangular factor) where the smaller side of H is at most
    512, so that condition numbers are resolved up to 1/ε ≈ 1e15 in float64. Beyond that they are roots of the
    eigenvalues of the smaller Gram matrix, several times faster, but with half of the digits: condition numbers above
    1e6 to 1e7 are then recorded as inf. The cost is that of an SVD per layer, so
    it runs about ten times in each factor of ten of the steps, unless `propkit.attach` is told otherwise.

    Args:
        output: The layer's output, samples first, any floating or complex dtype; flattened to (samples, units).

    Returns:
        0-d, float64: ``condition_number`` σ_1/σ_min over the min(samples, units) singular values, inf where H has not
        full rank numerically (σ_min <= ε·max(samples, units)·σ_1); ``top_share`` σ_1²/Σσ²; ``effective_rank`` e^H(p),
        the exponential of Shannon's entropy of p = σ²/Σσ², between 1 and the rank; ``mean_cosine``, the mean signed
        cosine over pairs i < j of samples, those of zero norm left out. NaN where H is zero or not finite, or where
        there is no pair.

    >>> found = representation(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    >>> {name: round(float(value), 4) for name, value in found.items()}
    {'condition_number': 3.0, 'top_share': 0.9, 'effective_rank': 1.3841, 'mean_cosine': 0.0}
    """
    samples = output.flatten(1) if output.ndim > 1 else output.reshape(-1, 1)
    samples = samples.to(torch.complex128) if output.is_complex() else samples.to(wide(output))
    finite = torch.isfinite(samples).all()
    samples = torch.where(finite, samples, torch.zeros_like(samples))
    peak = samples.abs().amax() if samples.numel() else samples.new_zeros(()).real
    known = finite & (peak > 0)
    samples = samples / torch.where(known, peak, torch.ones_like(peak))  # squares stay in range
    sigma, tolerance = _singular_values(samples)
    least = sigma[-1] if len(sigma) else peak
    top = sigma[0] if len(sigma) else peak
    energy = sigma.square()
    share = energy / energy.sum()
    values = {
        "condition_number": torch.where(
            least > tolerance * top, top / least, torch.full_like(top, float("inf"))
        ),
        "top_share": share[0] if len(share) else torch.zeros_like(top),
        "effective_rank": torch.special.entr(share).sum().exp(),
        "mean_cosine": _mean_cosine(samples),
    }
    unknown = torch.full_like(top, float("nan"))
    return {name: torch.where(known, value, unknown) for name, value in values.items()}


def _singular_values(matrix: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Singular values, descending, and the share of the first below which one counts as zero."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT
    epsilon = torch.finfo(matrix.dtype).eps * max(tall.shape)
    if tall.shape[1] <= _DENSE:
        triangle = torch.linalg.qr(tall, mode="r")[1]
        return torch.linalg.svdvals(triangle), epsilon
    values = torch.linalg.eigvalsh(tall.mH @ tall).flip(0)
    return values.clamp_min(0).sqrt(), epsilon**0.5


def _mean_cosine(samples: torch.Tensor) -> torch.Tensor:
    """Mean of Re cos over pairs of rows that are not zero: ½(‖Σ_i h_i/‖h_i‖‖² − M) over M(M − 1)/2 pairs."""
    norms = torch.linalg.vector_norm(samples, dim=1, keepdim=True)
    directions = samples / torch.where(norms > 0, norms, torch.ones_like(norms))
    m = (norms > 0).sum().to(norms.dtype)
    twice_the_sum = directions.sum(0).abs().square().sum() - m
    nothing = torch.full_like(m, float("nan"))
    return torch.where(m > 1, twice_the_sum / (m * (m - 1)), nothing)
