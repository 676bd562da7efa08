"""Average cosine correlation of a layer's filters (Xie, Xiong & Pu, CVPR 2017, Eq. 8)."""

import math

import torch
from torch import nn

from propkit.probe import probe
from propkit.probes._filters import filter_matrix
from propkit.probes._reductions import number


@probe(
    sites="filters",
    units={"correlation": "1", "pairs": "1"},
    reduce={"correlation": "mean", "pairs": "max"},
    reference="arXiv:1703.01827, Eq. 8",
)
def filter_correlation(weight: torch.Tensor, module: nn.Module) -> dict[str, float | torch.Tensor]:
    """Signed cosine of a layer's filters, averaged over its pairs i < j.

    Uses Σ_{i<j} cos(v_i, v_j) = ½(‖Σ_i v_i/‖v_i‖‖² − M): linear in the number of filters. Filters of zero norm have no
    direction and are left out; the paper's pooled value is Σ pairs·correlation / Σ pairs over the convolutions.

    Args:
        weight: The layer's weight, filters first (see `torch.nn.Conv2d.weight`).
        module: The layer, which tells a transposed convolution from an ordinary one.

    Returns:
        ``correlation`` in [−1/(M−1), 1], NaN where there is no pair; ``pairs``, the number of pairs. 0-d, float64.
    """
    filters = filter_matrix(weight, module)
    if filters.is_complex():
        # the cosine of complex vectors is that of their real and imaginary parts together
        filters = torch.view_as_real(filters).flatten(1)
    norms = torch.linalg.vector_norm(filters, dim=1)
    # A filter with NaN keeps its NaN, so that a diverged layer shows as NaN.
    scales = torch.where(norms > 0, norms.reciprocal(), norms)
    sum_of_directions = scales @ filters
    m = number(torch.count_nonzero(norms).to(filters.dtype))
    ordered = m * (m - 1)  # pairs in both orders
    sum_of_cosines = number(torch.dot(sum_of_directions, sum_of_directions)) - m
    if isinstance(ordered, torch.Tensor):
        none = torch.full_like(ordered, math.nan)
        return {
            "correlation": torch.where(ordered > 0, sum_of_cosines / ordered, none),
            "pairs": ordered / 2,
        }
    return {
        "correlation": sum_of_cosines / ordered if ordered else math.nan,
        "pairs": ordered / 2,
    }
