"""What is wrong with a batch before any layer sees it: it is empty, holds no values, or is not finite."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from propkit.hooks.signals import tensors_in


def check_batch(inputs: Sequence[Any], keywords: Mapping[str, Any]) -> None:
    """Refuse a batch on which nothing can be measured.

    Args:
        inputs: What the model takes, nested as it may be.
        keywords: And by name.

    Raises:
        ValueError: No tensor has any element, or one is on the meta device.
    """
    named = [pair for name, value in _named(inputs, keywords) for pair in _tensors(name, value)]
    for name, tensor in named:
        if tensor.is_meta:
            raise ValueError(
                f"measure: {name} is on the meta device, so it has no values; give the model a batch of data"
            )
    # Some of many may be empty: no past yet, no boxes in these images.
    arrays = [(name, tensor) for name, tensor in named if not tensor.is_nested and tensor.ndim]
    if arrays and all(tensor.numel() == 0 for _, tensor in arrays):
        name, tensor = arrays[0]
        raise ValueError(
            f"measure: the batch is empty: {name} has the shape {tuple(tensor.shape)}; give at least one sample"
        )


def not_finite(inputs: Sequence[Any], target: Sequence[Any], keywords: Mapping[str, Any]) -> str:
    """Which of the inputs and targets hold NaN or infinite values, and how many; empty if none does.

    >>> not_finite([torch.tensor([1.0, float("nan")])], [], {"mask": [torch.ones(3)]})
    'input 0: 1 of 2 values'
    """
    named = [*_named(inputs, keywords), *(("the target", value) for value in target)]
    found = []
    for name, value in named:
        tensors = [tensor for _, tensor in _tensors(name, value) if _can_be_asked(tensor)]
        strange = sum(int((~torch.isfinite(tensor)).sum()) for tensor in tensors)
        if strange:
            found.append(f"{name}: {strange} of {sum(t.numel() for t in tensors)} values")
    return ", ".join(found)


def _named(inputs: Sequence[Any], keywords: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for i, value in enumerate(inputs):
        yield f"input {i}", value
    for name, value in keywords.items():
        yield f"input {name!r}", value


def _tensors(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for tensor in tensors_in(value):
        yield name, tensor


def _can_be_asked(tensor: torch.Tensor) -> bool:
    """Whether torch can say which elements are finite: not of sparse and nested tensors, nor of 8 bits."""
    if tensor.layout != torch.strided or tensor.is_nested:
        return False
    numbers = tensor.is_floating_point() or tensor.is_complex()
    return numbers and torch.finfo(tensor.dtype).bits >= 16
