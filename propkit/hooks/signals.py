"""How a module's tensors and their gradients are found, whatever the module returns."""

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
    # No generator: `torch.compile` traces this function.
    if isinstance(value, torch.Tensor):
        return value if value.is_floating_point() or value.is_complex() else None
    items: Any = ()
    if isinstance(value, Mapping):
        items = list(value.values())
    elif isinstance(value, (tuple, list)):
        items = value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = [getattr(value, f.name, None) for f in dataclasses.fields(value)]
    for item in items:
        found = first_tensor(item)
        if found is not None:
            return found
    return None


def backward_pass() -> int:
    """Number of the backward pass that runs in this thread, -1 outside one."""
    return torch._C._current_graph_task_id()


def transformed() -> bool:
    """Whether a `torch.func` transform (grad, vmap, ...) is tracing: its tensors cannot be read."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def on_gradient(
    tensor: torch.Tensor, deliver: Deliver, inputs: Any = ()
) -> torch.utils.hooks.RemovableHandle | None:
    """Call `deliver` with the gradient with respect to `tensor` in every backward pass that reaches it.

    A tensor hook sees the whole gradient, summed over all consumers, also where a later operation changes the tensor in
    place. One case loses it: an output that is a view (a linear layer's on 3-D input) and is changed in place.
    Autograd then rebuilds the view's history and the gradient arrives at the base alone, so the base is
    hooked as well, unless the base is one of `inputs`, whose gradient is another one.

    A node of several outputs (a recurrent layer's) calls the hooks of those that get no gradient with None.

    Returns:
        The handle of the hook on a leaf (a parameter that is a layer's input), which lives on after the graph is gone
        and has to be taken out; None for other tensors.
    """
    if not tensor.requires_grad:
        return None

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a compiled training step may call it
    def at_tensor(grad: torch.Tensor | None) -> None:
        if grad is not None:
            deliver(grad)

    if tensor.is_leaf:
        handle: torch.utils.hooks.RemovableHandle = tensor.register_hook(at_tensor)
        return handle
    _ = tensor.grad_fn  # a stale view rebuilds its history here; hooking it first would crash
    base = tensor._base
    if (
        base is None
        or base.is_leaf  # PyTorch lets nobody change a view of a leaf in place
        or not base.requires_grad
        or base.numel() != tensor.numel()
        or any(base is t or base is t._base for t in tensors_in(inputs))
    ):
        tensor.register_hook(at_tensor)
        return None
    seen: set[int] = set()
    shape = tensor.shape

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def at_view(grad: torch.Tensor | None) -> None:
        seen.add(backward_pass())
        at_tensor(grad)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def at_base(grad: torch.Tensor | None) -> None:
        if grad is not None and backward_pass() not in seen:
            deliver(grad.reshape(shape))

    tensor.register_hook(at_view)
    base.register_hook(at_base)
    return None
