"""Forward statistics of layers' outputs."""

import torch
from torch import nn

from propkit.probe import probe
from propkit.probes._reductions import total, wide

_LAST_DIM_UNITS = (2, 3)  # (samples, units) and (samples, tokens, units)


@probe(
    sites="layer",
    units={"mean": "output", "mean_square": "output^2", "max": "output", "zeros": "1", "dead": "1"},
    reduce={"mean": "mean", "mean_square": "mean", "max": "max", "zeros": "mean", "dead": "min"},
    reference="Oyedotun et al., ICPR 2020; Poole et al., arXiv:1606.05340 (length map)",
)
def activation(output: torch.Tensor, module: nn.Module) -> dict[str, torch.Tensor]:
    """Statistics of what a layer returns.

    The mean square of a parametric layer's output is the mean-field length q; the variance is
    ``mean_square − mean²``. A unit is dead when it is zero for every sample and position of the batch: channels of a
    convolution's output or of four and more dimensions, else the last dimension. Over several micro-batches or
    calls the smallest share of dead units is kept, an upper bound for the whole step.

    Args:
        output: The layer's output, any shape and floating dtype.
        module: The layer, which tells ``(N, channels, length)`` from ``(N, tokens, units)``.

    Returns:
        ``mean``, ``mean_square``, ``max``, ``zeros`` (share of zeros) and ``dead`` (share of dead units), 0-d,
        float64.
    """
    exact = torch.float32 if output.dtype in (torch.float16, torch.bfloat16) else output.dtype
    n = output.numel()
    channels_first = (
        isinstance(module, nn.modules.conv._ConvNd) or output.ndim not in _LAST_DIM_UNITS
    )
    unit = 1 if channels_first and output.ndim > 1 else output.ndim - 1
    inner = tuple(d for d in range(1, output.ndim) if d != unit)
    # One norm per sample and unit serves two ends: the mean square, and units that are zero everywhere.
    squares = (
        torch.linalg.vector_norm(output, dim=inner, dtype=exact) if inner else output.to(exact)
    )
    squares = squares.to(wide(output)).square()
    per_unit = squares.reshape(-1, squares.shape[-1]).sum(0)
    nonzero = total(torch.sign(output).abs_())  # several times faster than count_nonzero on a CPU
    return {
        "mean": total(output) / n,
        "mean_square": per_unit.sum() / n,
        "max": output.amax().to(wide(output)),
        "zeros": 1 - nonzero / n,
        "dead": (per_unit == 0).to(wide(output)).mean(),
    }
