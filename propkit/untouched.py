"""Running a model without leaving a trace: what it was before is what it is afterwards, bit for bit."""

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

_TABLES = ("_parameters", "_buffers", "_modules")
_HOOK_TABLES = ("_forward_pre_hooks", "_forward_hooks")


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Whatever runs inside, `model` and the random states are left as they were, also after an exception.

    That is: buffers (the model works on copies meanwhile, as of parameters made in inference mode), every attribute of
    its modules (training mode, cached tensors), ``requires_grad`` and hooks of its parameters, weights that their own
    forward rescales (an embedding's ``max_norm``), and the random states of torch on the CPU and on CUDA, of Python and
    of NumPy. Recorders that are attached to the model do not notice. Not covered: the contents of lists, dicts and
    other objects that a module holds, generators of its own, and gradients, which `differentiate` keeps.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_random_states())
        stack.enter_context(_parameters(model))
        for module in model.modules():
            if isinstance(module, torch.jit.ScriptModule):
                stack.enter_context(_values(module))
            else:
                stack.enter_context(_attributes(module))
                stack.enter_context(_without_recorders(module))
        stack.enter_context(_copied_tensors(model))
        stack.enter_context(_eagerly())
        yield


def differentiate(value: torch.Tensor, model: nn.Module) -> None:
    """Run the backward pass from `value`, for the sake of its hooks: no ``.grad`` changes and no optimiser fires.

    Args:
        value: 0-d, requires a gradient.
        model: Its parameters are kept too where the graph hides them (reentrant checkpointing).
    """
    leaves: dict[int, torch.Tensor] = {id(p): p for p in model.parameters()}
    leaves |= {id(t): t for t in _leaves(value)}
    grads = [(leaf, leaf.grad) for leaf in leaves.values()]
    # Hooks that run once a gradient is complete may hold an optimiser that steps in the backward pass. Autograd keeps
    # the dict itself, so it is emptied for a while.
    tables = [leaf._post_accumulate_grad_hooks for leaf in leaves.values()]
    hooks = [(table, dict(table)) for table in tables if table]
    try:
        for leaf, _ in grads:
            leaf.grad = None
        for table, _ in hooks:
            table.clear()
        value.backward()
    finally:
        for leaf, grad in grads:
            leaf.grad = grad
        for table, entries in hooks:
            table.update(entries)


def _leaves(value: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors whose gradients a backward pass from `value` would accumulate."""
    todo: list[Any] = [value.grad_fn]
    seen = set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad":
            yield node.variable
        todo.extend(following for following, _ in node.next_functions)


@contextlib.contextmanager
def _random_states() -> Iterator[None]:
    # NumPy's global state is the one that models and data pipelines draw from.
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


@contextlib.contextmanager
def _parameters(model: nn.Module) -> Iterator[None]:
    kept = [(p, p.requires_grad, p._backward_hooks) for p in model.parameters()]
    keys = {id(p): set(hooks) for p, _, hooks in kept if hooks is not None}
    rescaled = [
        (m.weight, m.weight.detach().clone())
        for m in model.modules()
        if isinstance(m, (nn.Embedding, nn.EmbeddingBag))
        and m.max_norm is not None
        and not m.weight.is_inference()  # then the copy is rescaled
    ]
    try:
        yield
    finally:
        for p, requires_grad, hooks in kept:
            # parameters made in inference mode refuse to be asked
            if p.requires_grad != requires_grad:
                p.requires_grad_(requires_grad)
            if hooks is None and p._backward_hooks is not None:
                p._backward_hooks = None
            elif hooks is not None:
                for key in [k for k in hooks if k not in keys[id(p)]]:
                    del hooks[key]
        for weight, value in rescaled:
            weight.data.copy_(value)


@contextlib.contextmanager
def _attributes(module: nn.Module) -> Iterator[None]:
    """Attributes are bound again to what they were bound to."""
    kept = dict(module.__dict__)
    tables = [(module.__dict__[t], dict(module.__dict__[t])) for t in _TABLES]
    try:
        yield
    finally:
        module.__dict__.clear()
        module.__dict__.update(kept)
        for table, entries in tables:
            table.clear()
            table.update(entries)


@contextlib.contextmanager
def _copied_tensors(model: nn.Module) -> Iterator[None]:
    """The modules work on copies of their buffers; `_attributes` puts the originals back.

    So they do with parameters that were made in inference mode, which cannot take part in a backward pass.
    """
    copies: dict[int, torch.Tensor] = {}  # a tensor that two modules share stays shared
    parameters: dict[int, nn.Parameter] = {}
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for name, buffer in module._buffers.items():
            if buffer is not None:
                if id(buffer) not in copies:
                    copy = buffer.detach().clone()
                    copies[id(buffer)] = copy.requires_grad_(buffer.requires_grad)
                module._buffers[name] = copies[id(buffer)]
        for name, p in module._parameters.items():
            if p is not None and p.is_inference():
                if id(p) not in parameters:
                    parameters[id(p)] = nn.Parameter(p.detach().clone(), p.requires_grad)
                module._parameters[name] = parameters[id(p)]
    yield


@contextlib.contextmanager
def _values(module: torch.jit.ScriptModule) -> Iterator[None]:
    """TorchScript's buffers cannot be exchanged: their values are put back."""
    kept = {name: b.detach().clone() for name, b in module.named_buffers(recurse=False)}
    try:
        yield
    finally:
        for name, value in kept.items():
            getattr(module, name).data.copy_(value)


@contextlib.contextmanager
def _without_recorders(module: nn.Module) -> Iterator[None]:
    """Hooks of recorders that are attached already are set aside."""
    kept = []
    for name in _HOOK_TABLES:
        hooks = module.__dict__[name]
        ours = [k for k, hook in hooks.items() if _observes(hook)]
        if ours:
            kept.append((hooks, list(hooks.items())))
            for key in ours:
                del hooks[key]
    try:
        yield
    finally:
        for hooks, entries in kept:
            hooks.clear()
            hooks.update(entries)


def _observes(hook: Any) -> bool:
    """Whether a hook is a recorder's, or one by which `propkit.diagnosis` looks at calls."""
    defined = getattr(hook, "__module__", None) or ""
    return type(hook).__module__.startswith("propkit.") or defined.startswith("propkit.diagnosis.")


def _eagerly() -> Any:
    """Compiled parts run as they were written, so that hooks run."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes a second
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")
