"""How a module's tensors and their gradients are found in eager PyTorch, whatever the module returns."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

Deliver = Callable[[torch.Tensor], None]


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Tensors of a nested structure of tuples, lists, mappings and dataclasses, in its order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for f in dataclasses.fields(value):
            yield from tensors_in(getattr(value, f.name, None))


def first_tensor(value: Any) -> torch.Tensor | None:
    """The first floating-point (or complex) tensor of a nested structure, None if there is none."""
    for tensor in tensors_in(value):
        if tensor.is_floating_point() or tensor.is_complex():
            return tensor
    return None


def backward_pass() -> int:
    """Number of the backward pass that runs in this thread, -1 outside one."""
    return torch._C._current_graph_task_id()


def transformed() -> bool:
    """Whether a `torch.func` transform (grad, vmap, ...) is tracing: its tensors cannot be read."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def on_gradient(tensor: torch.Tensor, deliver: Deliver, inputs: Any = ()) -> None:
    """Call `deliver` with the gradient with respect to `tensor` in every backward pass that reaches it.

    A tensor hook sees the whole gradient, summed over all consumers, also where a later operation changes the tensor in
    place. One case loses it: an output that is a view (a linear layer's on 3-D input) and is changed in place.
    Autograd then rebuilds the view's history and the gradient arrives at the base alone, so the base is
    hooked as well, unless the base is one of `inputs`, whose gradient is another one.
    """
    if not tensor.requires_grad:
        return
    _ = (
        tensor.grad_fn
    )  # a stale view rebuilds its history here; registering a hook on it first would crash
    base = tensor._base
    if (
        base is None
        or not base.requires_grad
        or base.numel() != tensor.numel()
        or any(base is t or base is t._base for t in tensors_in(inputs))
    ):
        tensor.register_hook(deliver)
        return
    seen: set[int] = set()
    shape = tensor.shape

    def at_view(grad: torch.Tensor) -> None:
        seen.add(backward_pass())
        deliver(grad)

    def at_base(grad: torch.Tensor) -> None:
        if backward_pass() not in seen:
            deliver(grad.reshape(shape))

    tensor.register_hook(at_view)
    base.register_hook(at_base)
