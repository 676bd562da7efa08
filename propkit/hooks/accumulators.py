"""Statistics that add up in a buffer over calls, micro-batches and backward passes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

_START = {"max": float("-inf"), "min": float("inf")}
_MEAN, _NORM, _PLAIN = range(3)


def empty_buffer(rules: Sequence[str], device: torch.device) -> torch.Tensor:
    """A buffer for values of these reductions, (len(rules) + 1,): the last entry is the sum of weights."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.tensor([_START.get(r, 0.0) for r in rules] + [0.0], dtype=dtype, device=device)


def fold(
    buffer: torch.Tensor,
    rules: Sequence[str],
    values: Sequence[float | torch.Tensor],
    elements: int,
) -> torch.Tensor:
    """What the buffer holds with one more value of each variable, 0-d, which stands for so many elements.

    Where a traced hook runs in eager PyTorch after all, a value may be a number.
    """
    result = []
    for i, rule in enumerate(rules):
        number, held = values[i], buffer[i]
        known = number if isinstance(number, torch.Tensor) else buffer.new_tensor(number)
        value = known.to(buffer.device, buffer.dtype)
        if rule == "max":
            result.append(torch.maximum(held, value))
        elif rule == "min":
            result.append(torch.minimum(held, value))
        elif rule == "norm":
            result.append(held + value * value)
        else:
            result.append(held + (value * elements if rule == "mean" else value))
    result.append(buffer[-1] + elements)
    return torch.stack(result)


class Reading(NamedTuple):
    """How to read several buffers on one device at once.

    Attributes:
        start: What the buffers hold before anything is added, one after the other.
        sizes: Their lengths.
        values: Positions of the values among the entries of all buffers.
        weights: Position of each value's weight.
        ends: Position of each buffer's weight.
        kinds: Whether a value is a mean, a norm or neither.
        degrees: Power of the loss scale that is divided out.
    """

    start: torch.Tensor
    sizes: tuple[int, ...]
    values: torch.Tensor
    weights: torch.Tensor
    ends: torch.Tensor
    kinds: torch.Tensor
    degrees: torch.Tensor


def make_reading(
    rules: Sequence[Sequence[str]], degrees: Sequence[int], device: torch.device
) -> Reading:
    """Prepare to read buffers with these reductions, whose values grow with this power of the loss."""
    values: list[int] = []
    weights: list[int] = []
    ends: list[int] = []
    kinds: list[int] = []
    powers: list[int] = []
    position = 0
    for here, degree in zip(rules, degrees, strict=True):
        values += range(position, position + len(here))
        position += len(here) + 1
        weights += [position - 1] * len(here)
        ends.append(position - 1)
        kinds += [{"mean": _MEAN, "norm": _NORM}.get(r, _PLAIN) for r in here]
        powers += [degree] * len(here)
    start = torch.cat([empty_buffer(here, device) for here in rules])
    return Reading(
        start,
        tuple(len(here) + 1 for here in rules),
        torch.tensor(values, device=device),
        torch.tensor(weights, device=device),
        torch.tensor(ends, device=device),
        torch.tensor(kinds, device=device),
        torch.tensor(powers, device=device),
    )


def read(
    buffers: list[torch.Tensor], reading: Reading, scale: torch.Tensor | None
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """The values of all buffers, 0-d, NaN where nothing was added, and each buffer's sum of weights, 0-d.

    The buffers are emptied. No device is waited for.
    """
    held = torch.cat(buffers)
    # A backward pass that is still to come may use the buffers: for autograd they are as they were.
    with torch.autograd.grad_mode._unsafe_preserve_version_counter(tuple(buffers)):
        torch._foreach_copy_(buffers, list(reading.start.split(reading.sizes)))
    values, weights = held[reading.values], held[reading.weights]
    values = torch.where(reading.kinds == _MEAN, values / weights, values)
    values = torch.where(reading.kinds == _NORM, values.sqrt(), values)
    if scale is not None:
        values = values / scale.to(values.device, values.dtype) ** reading.degrees
    values = torch.where(weights == 0, torch.nan, values)
    return values.unbind(), held[reading.ends].unbind()
