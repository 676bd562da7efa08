"""Reductions that every probe shares: exact for any dtype and size, one pass over the data."""

import torch

_BLOCK = 1 << 15
"""Elements that one float32 accumulator may sum; its error is below 1e-6 up to 2^17."""


def square_sum(x: torch.Tensor) -> torch.Tensor:
    """Sum of squares of all elements of `x` (any shape and floating or complex dtype), 0-d, float64.

    ``vector_norm`` runs at memory speed, but accumulates naively in float32 on a CPU: so norms are taken over
    blocks and their squares are summed in float64. Half-precision values are never squared as they are.
    """
    dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else None
    blocks, rest = _blocks(x)
    result: torch.Tensor = torch.linalg.vector_norm(rest, dtype=dtype).to(wide(x)).square()
    if len(blocks):
        norms = torch.linalg.vector_norm(blocks, dim=1, dtype=dtype).to(wide(x))
        result = result + torch.dot(norms, norms)
    return result


def mean_square(x: torch.Tensor) -> torch.Tensor:
    """Mean of squares of all elements of `x`, 0-d, float64; NaN for an empty tensor."""
    return square_sum(x) / x.numel() if x.numel() else x.new_full((), float("nan"), dtype=wide(x))


def frobenius_norm(x: torch.Tensor) -> torch.Tensor:
    """Frobenius norm of `x` (any shape), 0-d, float64."""
    return square_sum(x).sqrt()


def total(x: torch.Tensor) -> torch.Tensor:
    """Sum of all elements of `x` (any shape), 0-d, float64, by blocks like `square_sum`."""
    dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    blocks, rest = _blocks(x)
    result = rest.sum(dtype=dtype).to(wide(x))
    return result + blocks.sum(1, dtype=dtype).sum(dtype=wide(x)) if len(blocks) else result


def wide(x: torch.Tensor) -> torch.dtype:
    """The dtype of a reduction's result: float64, or float32 on a device that has none (Apple's MPS)."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def _blocks(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The elements of `x` in any order: whole blocks (n, _BLOCK) and the rest, flat; no copy of a dense tensor."""
    if torch.compiler.is_compiling():  # strides are not known yet, and the compiler avoids the copy
        flat = x.reshape(-1)
    elif x.is_contiguous():
        flat = x.view(-1)
    elif _is_dense(x):  # channels_last, transposed: in the order of memory
        flat = x.as_strided((x.numel(),), (1,))
    else:
        flat = x.reshape(-1)
    whole = len(flat) // _BLOCK
    return flat[: whole * _BLOCK].view(whole, _BLOCK), flat[whole * _BLOCK :]


def _is_dense(x: torch.Tensor) -> bool:
    """Whether the elements of `x` fill one stretch of memory, each once."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True
