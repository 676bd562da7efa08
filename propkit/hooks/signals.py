"""How a module's tensors and their gradients are found, whatever the module returns."""

import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch

from propkit.hooks.hook import compiler_callback


class Receiver(Protocol):
    """Takes gradients (a call of a site does)."""

    def offer(self, signal: str, tensor: torch.Tensor) -> None:
        """The gradient that was asked for as `signal` has come."""


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
    """The first floating-point (or complex) tensor of a nested structure, None if there is none.

    A sparse or nested one has no shape, or no values, as a probe expects them: it counts as none.
    """
    # No generator: `torch.compile` traces this function.
    if isinstance(value, torch.Tensor):
        plain = value.layout == torch.strided and not value.is_nested
        return value if plain and (value.is_floating_point() or value.is_complex()) else None
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


backward_pass: Callable[[], int] = torch._C._current_graph_task_id
"""Number of the backward pass that runs in this thread, -1 outside one."""

transformed: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack
"""The `torch.func` transform (grad, vmap, ...) that is tracing, whose tensors cannot be read; None if none is."""


_MODES = (torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY)


def is_traced() -> bool:
    """Whether a program is recorded (`torch.jit.trace`, `make_fx`), or tensors have no values (`FakeTensorMode`)."""
    if torch._C._get_tracing_state() is not None:
        return True
    return any(torch._C._get_dispatch_mode(mode) is not None for mode in _MODES)


class _TensorHook(functools.partial[None]):
    """A hook on a tensor, which a copy of the tensor on a disk or in another process does without."""

    __torch_unserializable__ = True  # no warning when the tensor is saved


def on_gradient(
    tensor: torch.Tensor, receiver: Receiver, signal: str, inputs: Any = ()
) -> torch.utils.hooks.RemovableHandle | None:
    """Hand `receiver` the gradient with respect to `tensor` in every backward pass that reaches it.

    A tensor hook sees the whole gradient, summed over all consumers, also where a later operation changes the tensor in
    place. One case loses it: an output that is a view (a linear layer's on 3-D input) and is changed in place.
    Autograd then rebuilds the view's history and the gradient arrives at the base alone, so the base is
    hooked as well, unless the base is one of `inputs`, whose gradient is another one.

    A node of several outputs (a recurrent layer's) calls the hooks of those that get no gradient with None.

    Returns:
        The handle of the hook on a leaf (a parameter that is a layer's input), which lives on after the graph is gone
        and has to be taken out; None for other tensors.
    """
    node = tensor.grad_fn  # a stale view rebuilds its history here; hooking it first would crash
    if node is None and not tensor.requires_grad:
        return None
    at_tensor = _TensorHook(hand_on, receiver, signal)
    if node is None:
        handle: torch.utils.hooks.RemovableHandle = tensor.register_hook(at_tensor)
        return handle
    base = tensor._base
    if (
        base is None
        or base.is_leaf  # PyTorch lets nobody change a view of a leaf in place
        or not base.requires_grad
        or base.numel() != tensor.numel()
        or any(base is t or base is t._base for t in tensors_in(inputs))
    ):
        _register(tensor, node, at_tensor)
        return None
    view = _View(receiver, signal, tensor, base)
    tensor.register_hook(_TensorHook(_at_view, view))
    base.register_hook(_TensorHook(_at_base, view))
    return None


def _register(tensor: torch.Tensor, node: Any, hook: Callable[[torch.Tensor | None], None]) -> None:
    """``tensor.register_hook(hook)`` without a handle, whose import and making are most of what that takes."""
    if type(tensor) is torch.Tensor and tensor._backward_hooks is None:
        hooks: Any = OrderedDict()
        tensor._backward_hooks = hooks
        node._register_hook_dict(tensor)
        hooks[hook] = hook
    else:
        tensor.register_hook(hook)


class _View:
    """A tensor that is a view of all elements of its base: its gradient, wherever it arrives."""

    def __init__(
        self, receiver: Receiver, signal: str, tensor: torch.Tensor, base: torch.Tensor
    ) -> None:
        self.deliver = functools.partial(receiver.offer, signal)
        self.seen: set[int] = set()  # backward passes in which it arrived at the view
        self.size, self.stride = tensor.size(), tensor.stride()
        self.offset = tensor.storage_offset() - base.storage_offset()
        self.base_stride = base.stride()

    def of_base(self, grad: torch.Tensor) -> torch.Tensor:
        """The gradient of the view from that of the base: the same elements, perhaps in another order."""
        if grad.stride() != self.base_stride:
            grad = torch.empty_strided(
                grad.size(), self.base_stride, dtype=grad.dtype, device=grad.device
            ).copy_(grad)
        return grad.as_strided(self.size, self.stride, grad.storage_offset() + self.offset)


# Not compiled where a compiled training step calls them; one wrapper for all tensors, since making one takes time.


def hand_on(receiver: Receiver, signal: str, grad: torch.Tensor | None) -> None:
    """Tell the receiver: what a hook on a tensor does."""
    if grad is None:
        return
    if compiler_callback() is None:
        receiver.offer(signal, grad)
    else:
        _offer_uncompiled(receiver, signal, grad)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _offer_uncompiled(receiver: Receiver, signal: str, grad: torch.Tensor) -> None:
    receiver.offer(signal, grad)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _at_view(view: _View, grad: torch.Tensor | None) -> None:
    view.seen.add(backward_pass())
    if grad is not None:
        view.deliver(grad)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _at_base(view: _View, grad: torch.Tensor | None) -> None:
    if grad is not None and backward_pass() not in view.seen:
        view.deliver(view.of_base(grad.detach()))
