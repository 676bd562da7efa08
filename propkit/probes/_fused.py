"""Reductions of float32 tensors on a CPU in one pass over memory, by loops that Numba compiled.

PyTorch goes over the data once for each statistic, and in a training step, where a convolution has emptied the caches,
each of its calls takes some ten microseconds. Without Numba the probes use PyTorch, which gives the same numbers: what
is here is faster, no more.
"""

import ctypes
import functools
import math
from types import ModuleType
from typing import NamedTuple

import torch

_FEW_THREADS = 4
"""With more, PyTorch shares out a large tensor, and its passes are faster than one loop in one thread."""
_SMALL = 1 << 18
"""Elements up to which more threads do not help."""


class Statistics(NamedTuple):
    """Statistics of a tensor's elements, as numbers.

    Attributes:
        total: Sum.
        squares: Sum of squares.
        absolutes: Sum of absolute values.
        largest: Largest value.
        nonzero: Number of values that are not 0.
    """

    total: float
    squares: float
    absolutes: float
    largest: float
    nonzero: float


def can_fuse(x: torch.Tensor) -> bool:
    """Whether the functions here take `x`, and are faster than PyTorch."""
    return (
        x.dtype == torch.float32
        and x.is_cpu
        and (x.numel() <= _SMALL or torch.get_num_threads() <= _FEW_THREADS)
        and _kernels() is not None
    )


def fused_square_sum(flat: torch.Tensor) -> float:
    """Sum of squares of `flat`: (n,), contiguous, one that `can_fuse`.

    Squares that float32 does not hold (of values below 1e-19 or above 1e19) are lost.
    """
    total: float = _kernels().square_sum(flat.data_ptr(), flat.numel())  # type: ignore[union-attr]
    return total


def fused_statistics(flat: torch.Tensor) -> Statistics:
    """Statistics of `flat`: (n,), contiguous, one that `can_fuse`. The sums are NaN where a value is."""
    found, address = (ctypes.c_double * 5)(), flat.data_ptr()
    _kernels().statistics(address, address, found, flat.numel())  # type: ignore[union-attr]
    return Statistics(*found)


def fused_zero_units(x: torch.Tensor, unit: int) -> int | None:
    """Number of units, along dimension `unit` of `x`, all of whose values are 0; `x` is one that `can_fuse`.

    Returns:
        None if the memory of `x` is neither contiguous nor so with the units last.
    """
    units = x.shape[unit]
    if x.is_contiguous():
        outer = math.prod(x.shape[:unit])
    elif x.stride(unit) == 1 and x.movedim(unit, -1).is_contiguous():  # channels_last
        outer = x.numel() // units
    else:
        return None
    inner = x.numel() // (outer * units)
    zero: int = _kernels().zero_units(x.data_ptr(), outer, units, inner)  # type: ignore[union-attr]
    return zero


@functools.cache
def _kernels() -> ModuleType | None:
    try:
        from propkit.probes import _kernels
    except ImportError:  # no Numba
        return None
    return _kernels
