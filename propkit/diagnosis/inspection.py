"""What a module's calls look like from outside: the facts that explain why a signal is there or is not."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from propkit.hooks.signals import backward_pass, first_tensor, tensors_in, transformed
from propkit.sites import weight_of

NOTHING_ARRIVED = (
    "no gradient arrived: nothing that the model returned depends on it (unused, or detached)"
)
_NO_GRADIENT = "it ran with gradients disabled (torch.no_grad)"


@dataclass
class Facts:
    """What was seen of one module.

    Attributes:
        module: The module.
        calls: Number of its calls in the forward pass.
        recomputed: Number of its calls in the backward pass (activation checkpointing).
        transformed: Whether it ran inside a `torch.func` transform.
        without_gradient: Whether it ran with gradients disabled.
        received: The first floating-point tensor that it received needs a gradient; None if there is no such tensor.
        returned: The same of what it returned.
        kinds: Types of what it returned.
        tensors: Number of floating-point tensors that it returned.
        view: What it returned is a view of another tensor.
        view_of_input: That other tensor is its input.
        changed: What it returned was changed in place later.
    """

    module: nn.Module
    calls: int = 0
    recomputed: int = 0
    transformed: bool = False
    without_gradient: bool = False
    received: bool | None = None
    returned: bool | None = None
    kinds: str = ""
    tensors: int = 0
    view: bool = False
    view_of_input: bool = False
    changed: bool = False
    _watched: list[tuple[torch.Tensor, int]] = field(default_factory=list)


class Inspector:
    """Looks at the calls of modules; `remove` takes its hooks out.

    Args:
        modules: Name and module.
    """

    def __init__(self, modules: Iterable[tuple[str, nn.Module]]) -> None:
        self.facts = {name: Facts(module) for name, module in modules}
        self._handles = []
        for facts in self.facts.values():
            self._handles += [
                facts.module.register_forward_pre_hook(self._count(facts)),
                facts.module.register_forward_hook(self._look(facts), with_kwargs=True),
            ]

    def remove(self) -> None:
        """Take the hooks out."""
        for handle in self._handles:
            handle.remove()

    def forward_is_over(self) -> None:
        """See what was changed in place, and let go of it."""
        for facts in self.facts.values():
            facts.changed = any(t._version != version for t, version in facts._watched)
            facts._watched.clear()

    @staticmethod
    def _count(facts: Facts) -> Any:
        def count(module: nn.Module, args: Any) -> None:  # noqa: ARG001 - hook signature
            # A recomputation stops as soon as it has what it needs, often before the module returns.
            facts.recomputed += backward_pass() != -1

        return count

    @staticmethod
    def _look(facts: Facts) -> Any:
        def look(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:  # noqa: ARG001 - hook signature
            if transformed() is not None:
                facts.transformed = True
                return
            if backward_pass() != -1:
                return
            facts.calls += 1
            facts.without_gradient |= not torch.is_grad_enabled()
            received, returned = first_tensor((args, kwargs)), first_tensor(result)
            facts.received = None if received is None else received.requires_grad
            facts.kinds = _kinds(result)
            facts.tensors = sum(t.is_floating_point() or t.is_complex() for t in tensors_in(result))
            facts.returned = None if returned is None else returned.requires_grad
            if returned is not None:
                base = returned._base
                facts.view |= base is not None
                facts.view_of_input |= base is not None and any(
                    base is t or base is t._base for t in tensors_in((args, kwargs))
                )
                # A detached alias shares the counter of in-place changes.
                facts._watched.append((returned.detach(), returned._version))

        return look


def why_missing(facts: Facts, signal: str) -> str:
    """Why a signal did not arrive at the probes of a module; empty where nothing speaks against it."""
    if not facts.calls:
        return _why_never(facts)
    if signal == "weight":
        return "" if weight_of(facts.module) is not None else "it has no weight"
    at_input = signal in ("input", "grad_input")
    needs_gradient = facts.received if at_input else facts.returned
    if needs_gradient is None:
        if at_input:
            return "it received no floating-point tensor"
        return f"it returned no floating-point tensor, but {facts.kinds}"
    if not signal.startswith("grad_"):
        return ""
    if not needs_gradient:
        if facts.without_gradient:
            return _NO_GRADIENT
        if at_input:
            return "its input needs no gradient: data, or what a frozen part returned"
        return "its output needs no gradient: it is frozen, and so is everything before it"
    if facts.view_of_input and facts.changed:
        return "what it returned is a view of its input and was changed in place afterwards"
    return NOTHING_ARRIVED


def _why_never(facts: Facts) -> str:
    if isinstance(facts.module, torch.jit.ScriptModule):
        return "TorchScript runs no Python hooks; attach to the module that was scripted"
    if facts.transformed:
        return "it ran inside a torch.func transform, whose tensors cannot be read"
    if facts.recomputed:
        return "it ran in the backward pass only"
    return "it never ran: it is not used, or its weight is used without calling it"


def peculiarities(facts: Facts) -> list[str]:
    """What is special about a module's calls and handled: nothing is lost by it."""
    said = []
    if facts.calls > 1:
        said.append(f"runs {facts.calls} times: a site for each call")
    if facts.recomputed:
        said.append("checkpointed: its recomputation is not counted")
    if facts.tensors > 1:
        said.append(f"returns {facts.tensors} tensors ({facts.kinds}): the first is taken")
    if facts.view and facts.changed and not facts.view_of_input:
        said.append("returns a view that is changed in place: errors are measured at its base")
    if _is_parametrised(facts.module):
        said.append("its weight is parametrised: measured as the forward pass uses it")
    return said


def _is_parametrised(module: nn.Module) -> bool:
    if "weight" in getattr(module, "parametrizations", {}):
        return True
    weight = weight_of(module)  # the older utilities keep weight_g and weight_v, or weight_orig
    names = dict(module.named_parameters(recurse=False))
    return weight is not None and bool({"weight_g", "weight_orig"} & names.keys())


def _kinds(result: Any) -> str:
    if isinstance(result, torch.Tensor):
        return f"a tensor of {str(result.dtype).removeprefix('torch.')}"
    if isinstance(result, (tuple, list)) and len(result) <= 4:
        return f"{type(result).__name__} of {', '.join(type(item).__name__ for item in result)}"
    return type(result).__name__
