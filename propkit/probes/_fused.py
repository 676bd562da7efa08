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
        dead: Number of units all of whose values are 0.
    """

    total: float
    squares: float
    absolutes: float
    largest: float
    nonzero: float
    dead: float


_OF_MEMORY = (torch.Tensor, torch.nn.Parameter)
"""Types whose values are what their memory holds; a subclass may keep them elsewhere, or in another way."""


def can_fuse(x: torch.Tensor) -> bool:
    """Whether `fused_statistics` takes `x`, and is faster than PyTorch."""
    return (
        type(x) in _OF_MEMORY
        and x.dtype == torch.float32
        and x.is_cpu
        and not x.is_neg()  # its memory holds the values with the other sign
        and _kernels_for(x.numel()) is not None
    )


def fused_square_sum(x: torch.Tensor) -> float | None:
    """Sum of squares of `x`, which is on a CPU; None where it takes PyTorch.

    Squares that float32 does not hold (of values below 1e-19 or above 1e19) are lost.
    """
    if type(x) not in _OF_MEMORY or x.dtype != torch.float32:
        return None
    n = x.numel()
    kernels = _kernels_for(n)
    if kernels is None or not (x.is_contiguous() or is_dense(x)):
        return None
    total: float = kernels.square_sum(x.data_ptr(), n)
    return total


def fused_statistics(x: torch.Tensor, unit: int) -> Statistics | None:
    """Statistics of `x`, one that `can_fuse`, with units along dimension `unit`; the sums are NaN where a value is.

    Returns:
        None if the memory of `x` is neither contiguous nor so with the units last.
    """
    shape = x.shape
    units, n = shape[unit], x.numel()
    if x.is_contiguous():
        inner = math.prod(shape[unit + 1 :])
    elif x.stride(unit) == 1 and x.movedim(unit, -1).is_contiguous():  # channels_last
        inner = 1
    else:
        return None
    found, address = (ctypes.c_double * 6)(), x.data_ptr()
    outer = n // (units * inner)
    _kernels().statistics(address, address, found, outer, units, inner)  # type: ignore[union-attr]
    return Statistics(*found)


def fused_directions(x: torch.Tensor) -> tuple[float, float] | None:
    """The squared norm of the sum of the directions of the filters x[i], and the number of those that are not 0.

    Returns:
        None where it takes PyTorch.
    """
    if not x.numel() or not can_fuse(x) or not x.is_contiguous():
        return None
    found, filters = (ctypes.c_double * 2)(), len(x)
    # can_fuse() knows that there are kernels
    _kernels().directions(x.data_ptr(), found, filters, x.numel() // filters)  # type: ignore[union-attr]
    return found[0], found[1]


def is_dense(x: torch.Tensor) -> bool:
    """Whether the elements of `x` fill one stretch of memory, each once."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _kernels_for(n: int) -> ModuleType | None:
    """The loops, if they are there and the fastest for so many elements."""
    few = n <= _SMALL or torch.get_num_threads() <= _FEW_THREADS
    return _kernels() if few else None


@functools.cache
def _kernels() -> ModuleType | None:
    try:
        from propkit.probes import _kernels
    except ImportError:  # no Numba
        return None
    return _kernels
