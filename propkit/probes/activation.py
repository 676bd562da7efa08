"""Forward statistics of layers' outputs."""

import math

import torch
from torch import nn

from propkit.probe import probe
from propkit.probes._fused import can_fuse, fused_statistics
from propkit.probes._reductions import LARGEST, SMALLEST, in_memory_order, wide

_NAMES = ("mean", "mean_square", "mean_abs", "max", "zeros", "dead")
_LAST_DIM_UNITS = (2, 3)  # (samples, units) and (samples, tokens, units)
_IN_CACHE = 1 << 18
"""Elements of a piece that a CPU goes through several times while it is in its cache."""


@probe(
    sites="layer",
    units={
        "mean": "output",
        "mean_square": "output^2",
        "mean_abs": "output",
        "max": "output",
        "zeros": "1",
        "dead": "1",
    },
    reduce={
        "mean": "mean",
        "mean_square": "mean",
        "mean_abs": "mean",
        "max": "max",
        "zeros": "mean",
        "dead": "min",
    },
    reference="Oyedotun et al., ICPR 2020; Poole et al., arXiv:1606.05340 (length map)",
)
def activation(output: torch.Tensor, module: nn.Module) -> dict[str, float | torch.Tensor]:
    """Statistics of what a layer returns.

    The mean square of a parametric layer's output is the mean-field length q; the variance is
    ``mean_square − mean²``. A unit is dead when it is zero for every sample and position of the batch: channels of a
    convolution's output or of four and more dimensions, else the last dimension. Over several micro-batches or
    calls the smallest share of dead units is kept, an upper bound for the whole step.

    Args:
        output: The layer's output, any shape, floating or complex; of a complex one ``mean`` and ``max`` are NaN.
        module: The layer, which tells ``(N, channels, length)`` from ``(N, tokens, units)``.

    Returns:
        ``mean``, ``mean_square``, ``mean_abs``, ``max``, ``zeros`` (share of zeros) and ``dead`` (share of dead
        units), 0-d, float64, or numbers. All are NaN for an empty output (an expert without
        tokens). Where a map has a NaN, none of its values counts as zero.
    """
    if output.is_complex():  # there is no largest, and a mean would be complex
        nan = output.new_full((), math.nan, dtype=wide(output))
        sizes: dict[str, float | torch.Tensor] = activation(output.abs(), module)
        return sizes | {"mean": nan, "max": nan}
    n = output.numel()
    if not n:
        return dict.fromkeys(_NAMES, output.new_full((), math.nan, dtype=wide(output)))
    if not output.ndim:
        output = output.view(1)
    unit = _unit(output.ndim, module)
    if not torch.compiler.is_compiling() and can_fuse(output):
        fused = _fused(output, unit)
        if fused is not None:
            return fused
    exact = wide(output)
    parts = _pieces(output)
    signs = torch.empty_like(parts[0], dtype=_exact(output)) if len(parts) > 1 else None
    found = [_sums(part, unit, signs) for part in parts]
    norms, counts, *sums = (
        of[0] if len(parts) == 1 else torch.cat(of) for of in zip(*found, strict=True)
    )
    squares = norms.to(exact).square().sum()
    # The sign of NaN is 0 in places: a map with a NaN counts as one without zeros.
    counts = torch.where(norms.isnan(), (n / counts.numel()) ** 0.5, counts)
    nonzero = counts.to(exact).square().round().reshape(-1, counts.shape[-1]).sum(0)
    total, absolutes, largest = (x.to(exact) for x in sums)
    return {
        "mean": total.sum() / n,
        "mean_square": squares / n,
        "mean_abs": absolutes.sum() / n,
        "max": largest.amax(),
        "zeros": 1 - nonzero.sum() / n,
        "dead": (nonzero == 0).to(exact).mean(),
    }


def _unit(ndim: int, module: nn.Module) -> int:
    """Dimension of the units in an output of so many dimensions."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return max(0, ndim - 1 - len(module.kernel_size))  # also without a batch
    return ndim - 1 if ndim in (1, *_LAST_DIM_UNITS) else 1


def _fused(output: torch.Tensor, unit: int) -> dict[str, float | torch.Tensor] | None:
    """The statistics as numbers; None where the loops of Numba do not give them."""
    sums = fused_statistics(output, unit)
    if sums is None:
        return None
    if sums.nonzero and not SMALLEST < sums.squares < LARGEST:  # lost in float32, or NaN
        return None
    n = output.numel()
    return {
        "mean": sums.total / n,
        "mean_square": sums.squares / n,
        "mean_abs": sums.absolutes / n,
        "max": sums.largest,
        "zeros": 1 - sums.nonzero / n,
        "dead": sums.dead / output.shape[unit],
    }


def _pieces(output: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The output, or groups of its samples that stay in a CPU's cache."""
    n = output.numel()
    if torch.compiler.is_compiling() or output.device.type != "cpu" or n <= _IN_CACHE:
        return (output,)
    pieces: tuple[torch.Tensor, ...] = output.split(max(1, _IN_CACHE * len(output) // n))
    return pieces


def _exact(x: torch.Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def _sums(x: torch.Tensor, unit: int, signs: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """Sums over some samples.

    Args:
        x: The samples.
        unit: Dimension of the units.
        signs: Memory for the signs of as many values, or more.

    Returns:
        By sample and unit: norms, and roots of the number of values that are not zero; (1,): the sum of values, that
        of absolute values, the largest value.
    """
    x = x.to(_exact(x))
    inner = tuple(d for d in range(1, x.ndim) if d != unit)
    # A norm and a dot product count several times faster than count_nonzero and abs do on a CPU.
    sign = torch.sign(x) if signs is None else torch.sign(x, out=signs[: len(x)])
    norms, counts = x, sign
    if inner:
        norms = torch.linalg.vector_norm(x, dim=inner)
        counts = torch.linalg.vector_norm(sign, dim=inner)
    if torch.compiler.is_compiling() or sign.stride() != x.stride():
        absolutes = x.abs().sum()
    else:
        absolutes = torch.dot(in_memory_order(x), in_memory_order(sign))
    return norms, counts, x.sum().view(1), absolutes.view(1), x.amax().view(1)
