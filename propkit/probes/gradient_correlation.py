"""Correlation of the errors of different samples: shattered gradients (Balduzzi et al., ICML 2017)."""

import torch

from propkit.probe import probe
from propkit.probes._reductions import wide
from propkit.schedules import log_spaced


@probe(
    sites="parametric",
    degree=0,
    every=log_spaced(10),
    reference="Balduzzi et al., arXiv:1702.08591",
)
def gradient_correlation(grad_output: torch.Tensor) -> dict[str, torch.Tensor]:
    """Cosine of the errors of two samples at a layer's output, averaged over the pairs i < j of the batch.

    In deep networks without skip connections the gradients at different inputs resemble white noise: their
    correlation falls exponentially with the distance from the output. The errors are the gradients δ_i with
    respect to what the layer returns, the sites of `error_moment`; ``mean`` is
    Σ_{i<j} cos(δ_i, δ_j) = ½(‖Σ_i δ_i/‖δ_i‖‖² − M) over M(M − 1)/2 pairs.

    Under a training loss the errors begin with the loss's own directions: those of a classifier's samples point
    apart where the labels differ, and sum to about zero, so that ``mean`` is near zero at all depths. For the
    paper's quantity give a fixed linear functional of the output as loss, ``propkit.measure(model, x, loss=lambda
    output: (output @ v).sum())``. Under any loss ``mean_square`` shows how much of the alignment at the last layer is
    left: from there it falls to 1/(dimension of δ) where directions are random, and its root can be compared with
    ``mean`` where all signs are alike. Batch normalisation in training mode mixes samples: δ_i is then the gradient
    of the whole batch's loss with respect to sample i.

    Args:
        grad_output: Gradient with respect to the layer's output, samples first, any floating or complex dtype;
            its scale does not matter.

    Returns:
        ``mean`` (real part of the cosine) in [−1/(M−1), 1] and ``mean_square`` in [0, 1], 0-d, float64. Samples
        whose error is zero have no direction and are left out; NaN where there is no pair, or where a gradient is
        not finite. Micro-batches are averaged, each over its own pairs.

    >>> found = gradient_correlation(torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 5.0], [0.0, 0.0]]))
    >>> {name: round(float(value), 4) for name, value in found.items()}
    {'mean': 0.3333, 'mean_square': 0.3333}
    """
    errors = grad_output.flatten(1) if grad_output.ndim > 1 else grad_output.reshape(-1, 1)
    errors = errors.to(torch.complex128 if errors.is_complex() else wide(errors))
    if not errors.shape[1]:
        errors = errors.new_zeros(len(errors), 1)
    peaks = errors.abs().amax(1, keepdim=True)  # squares of tiny gradients stay in range
    errors = errors / torch.where(peaks == 0, 1.0, peaks)
    norms = torch.linalg.vector_norm(errors, dim=1, keepdim=True)
    directions = errors / torch.where(norms == 0, 1.0, norms)
    m = (norms != 0).sum().to(norms.dtype)
    wide_matrix = directions.shape[0] <= directions.shape[1]
    gram = directions @ directions.mH if wide_matrix else directions.mH @ directions
    pairs = m * (m - 1)
    nothing = torch.full_like(pairs, torch.nan)

    def over_pairs(total: torch.Tensor) -> torch.Tensor:
        return torch.where(pairs > 0, (total - m) / pairs, nothing)

    return {
        "mean": over_pairs(directions.sum(0).abs().square().sum()),
        "mean_square": over_pairs(gram.abs().square().sum()),
    }
