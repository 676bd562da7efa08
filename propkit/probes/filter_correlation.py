"""Average cosine correlation of a layer's filters (Xie, Xiong & Pu, CVPR 2017, Eq. 8)."""

import math

import torch
from torch import nn

from propkit.probe import probe
from propkit.probes._filters import filter_matrix
from propkit.probes._fused import fused_directions
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
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    known = None if transposed or torch.compiler.is_compiling() else fused_directions(weight)
    squares, m = known or _directions(filter_matrix(weight, module))
    ordered = m * (m - 1)  # pairs in both orders
    if isinstance(ordered, torch.Tensor):
        none = torch.full_like(ordered, math.nan)
        mean = torch.where(ordered > 0, (squares - m) / ordered, none)
        return {"correlation": mean, "pairs": ordered / 2}
    return {"correlation": (squares - m) / ordered if ordered else math.nan, "pairs": ordered / 2}


def _directions(filters: torch.Tensor) -> tuple[float | torch.Tensor, float | torch.Tensor]:
    """The squared norm of the sum of the directions of filters (rows), and the number of those that are not 0."""
    if filters.is_complex():
        # the cosine of complex vectors is that of their real and imaginary parts together
        filters = torch.view_as_real(filters).flatten(1)
    norms = torch.linalg.vector_norm(filters, dim=1)
    # A filter with NaN keeps its NaN, so that a diverged layer shows as NaN.
    scales = torch.where(norms > 0, norms.reciprocal(), norms)
    total = scales @ filters
    return number(torch.dot(total, total)), number(torch.count_nonzero(norms).to(filters.dtype))
