"""Reductions that every probe shares: exact for any dtype and size, one pass over the data."""

import math
import weakref

import torch

from propkit.probes._fused import fused_square_sum, is_dense

SMALLEST, LARGEST = 1e-28, 1e32
"""Sums of squares beyond which squares may have been lost in float32."""
_BLOCK = 1 << 15
"""Elements that one float32 accumulator of a reduction may sum; its error is below 1e-6 up to 2^17."""
_DOT = 1 << 17
"""The same for a dot product, which has several accumulators: it errs less than a reduction over `_BLOCK`."""


_last: tuple[weakref.ref[torch.Tensor], int, float | torch.Tensor] | None = None
"""The tensor that was summed last, its version, and what came out: several probes ask for that of one signal."""


def frobenius_norm(x: torch.Tensor) -> torch.Tensor:
    """Frobenius norm of `x` (any shape and floating or complex dtype), 0-d, float64.

    Both dot products and norms run at memory speed, but accumulate naively in float32 on a CPU: so they are taken over
    blocks, and summed in float64. Half-precision values are never squared as they are. Squares that float32 does
    not hold (of values below 1e-19 or above 1e19) are taken in float64 on a CPU, where looking at the result costs
    little; on other devices they are lost.
    """
    if torch.compiler.is_compiling():
        return _square_sum_in_a_graph(x).sqrt()
    if x.is_cpu:
        return torch.scalar_tensor(math.sqrt(_squares_on_cpu(x)), dtype=torch.float64)
    return _remembered_norm(x)


def frobenius_norm_at_once(x: torch.Tensor) -> float | torch.Tensor:
    """The same; a number if `x` is on the CPU, as `mean_square_at_once`."""
    if not x.is_cpu or torch.compiler.is_compiling():
        return frobenius_norm(x)
    return math.sqrt(_squares_on_cpu(x))


def square_sum(x: torch.Tensor) -> torch.Tensor:
    """Sum of squares of all elements of `x`, 0-d, float64; see `frobenius_norm`."""
    if torch.compiler.is_compiling():
        return _square_sum_in_a_graph(x)
    return frobenius_norm(x).square()


def mean_square(x: torch.Tensor) -> torch.Tensor:
    """Mean of squares of all elements of `x`, 0-d, float64; NaN for an empty tensor."""
    value = mean_square_at_once(x)
    if isinstance(value, torch.Tensor):
        return value
    return torch.scalar_tensor(value, dtype=torch.float64)


def mean_square_at_once(x: torch.Tensor) -> float | torch.Tensor:
    """The same; a number if `x` is on the CPU, where one more tensor takes longer than a small layer's product."""
    if not x.is_cpu or torch.compiler.is_compiling():
        n = x.numel()
        return square_sum(x) / n if n else x.new_full((), math.nan, dtype=wide(x))
    n = x.numel()
    return _squares_on_cpu(x) / n if n else math.nan


def _squares_on_cpu(x: torch.Tensor) -> float:
    """Sum of squares, as a number; remembered of the last tensor, for which several probes ask."""
    global _last
    known = _last
    if known is not None and known[0]() is x and known[1] == x._version:
        return known[2]  # type: ignore[return-value]  # of a tensor on a CPU it is a number
    total = fused_square_sum(x)
    if total is None:
        total = _square_sum_by_pytorch(x)
    if not SMALLEST < total < LARGEST and x.dtype not in (torch.float64, torch.complex128):
        exact = x.to(torch.complex128 if x.is_complex() else torch.float64)
        total = _norm(exact).item() ** 2
    if not x.is_inference():  # which has no version
        _last = weakref.ref(x), x._version, total
    return total


def _square_sum_by_pytorch(x: torch.Tensor) -> float:
    if x.dtype != torch.float32 and x.dtype != torch.float64:
        # of half precision, which a dot product would accumulate as it is, or complex
        return float(_norm(x).item() ** 2)
    total, flat = 0.0, in_memory_order(x)
    for part in (flat,) if len(flat) <= _DOT else flat.split(_DOT):
        total += torch.dot(part, part).item()
    return total


def _remembered_norm(x: torch.Tensor) -> torch.Tensor:
    """The norm, on a device; remembered likewise."""
    global _last
    known = _last
    if known is not None and known[0]() is x and known[1] == x._version:
        return known[2]  # type: ignore[return-value]  # of a tensor on a device it is a tensor
    norm = _norm(x)
    if not x.is_inference():
        _last = weakref.ref(x), x._version, norm
    return norm


def _norm(x: torch.Tensor) -> torch.Tensor:
    dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else None
    n = x.numel()
    norm: torch.Tensor
    if n <= _BLOCK:
        norm = torch.linalg.vector_norm(x, dtype=dtype)
        return norm.to(wide(x))
    if n % _BLOCK == 0 and x.is_contiguous():
        norms = torch.linalg.vector_norm(x.view(-1, _BLOCK), dim=1, dtype=dtype)
    else:
        blocks, rest = _blocks(x)
        norms = torch.linalg.vector_norm(blocks, dim=1, dtype=dtype)
        norms = torch.cat([norms, torch.linalg.vector_norm(rest, dtype=dtype).reshape(1)])
    norm = torch.linalg.vector_norm(norms, dtype=wide(x))
    return norm


def _square_sum_in_a_graph(x: torch.Tensor) -> torch.Tensor:
    """The same for the compiler, whose loops are fast along the inner dimensions, over all but samples and channels."""
    inner = tuple(range(min(2, max(x.ndim - 1, 0)), x.ndim))
    exact = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else None
    norms = torch.linalg.vector_norm(x, dim=inner, dtype=exact) if inner else x.abs()
    return norms.to(wide(x)).square().sum()


def number(x: torch.Tensor) -> float | torch.Tensor:
    """The value of a 0-d tensor on the CPU, where arithmetic with tensors takes longer than with numbers; else `x`."""
    return x.item() if x.is_cpu and not torch.compiler.is_compiling() else x


def in_memory_order(x: torch.Tensor) -> torch.Tensor:
    """The elements of `x`, flat, in any order; no copy of a dense tensor."""
    if x.is_contiguous():
        return x.view(-1)
    if is_dense(x):  # channels_last, transposed
        return x.as_strided((x.numel(),), (1,))
    return x.reshape(-1)


def wide(x: torch.Tensor) -> torch.dtype:
    """The dtype of a reduction's result: float64, or float32 on a device that has none (Apple's MPS)."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def _blocks(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The elements of `x` in any order: whole blocks (n, _BLOCK) and the rest, flat; no copy of a dense tensor."""
    # In a graph strides are not known yet, and the compiler avoids the copy.
    flat = x.reshape(-1) if torch.compiler.is_compiling() else in_memory_order(x)
    whole = len(flat) // _BLOCK
    return flat[: whole * _BLOCK].view(whole, _BLOCK), flat[whole * _BLOCK :]
