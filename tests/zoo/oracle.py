"""What every module receives and returns, with the gradients: plain autograd, no hook, written apart from propkit."""

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Loss = Callable[[nn.Module], torch.Tensor]


@dataclass
class Call:
    """One call of one module in one backward pass; a gradient is None where there is none."""

    module: nn.Module
    output: torch.Tensor  # as it was returned, before anything changed it in place
    received: torch.Tensor | None
    returned: torch.Tensor
    grad_input: torch.Tensor | None = None
    grad_output: torch.Tensor | None = None


Calls = dict[str, list[Call]]


def observe(model: nn.Module, loss: Loss) -> Calls:
    """Name -> its calls, in a copy of `model` whose ``forward`` methods are wrapped and whose tensors are all kept.

    Every output is cloned on its way, so that no later in-place operation touches what is kept.
    """
    twin = copy.deepcopy(model)
    twin.zero_grad(set_to_none=True)
    calls: Calls = {}
    for name, module in twin.named_modules():
        if getattr(module, "inplace", False):
            module.inplace = False
        module.forward = _kept(module, module.forward, calls.setdefault(name or "(model)", []))
    loss(twin).backward()
    for entries in calls.values():
        for call in entries:
            call.grad_output = _grad(call.returned)
            call.grad_input = None if call.received is None else _grad(call.received)
    return calls


def _grad(tensor: torch.Tensor) -> torch.Tensor | None:
    return tensor.grad if tensor.requires_grad else None


def _kept(module: nn.Module, forward: Any, entries: list[Call]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        received = _first([*args, *kwargs.values()])
        _retain(received)
        result = forward(*args, **kwargs)
        returned = _first(result)
        if returned is not None:
            _retain(returned)
            entries.append(Call(module, returned.detach().clone(), received, returned))
            if returned is not received:
                result = _replaced(result, returned, returned.clone())
        return result

    return wrapped


def _retain(tensor: torch.Tensor | None) -> None:
    if tensor is not None and tensor.requires_grad and not tensor.is_leaf:
        tensor.retain_grad()


def _first(value: Any) -> torch.Tensor | None:
    if isinstance(value, torch.Tensor):
        return value if value.dtype.is_floating_point else None
    if isinstance(value, dict):
        value = list(value.values())
    elif dataclasses.is_dataclass(value):
        value = list(vars(value).values())
    if not isinstance(value, (list, tuple)):
        return None
    return next((t for t in map(_first, value) if t is not None), None)


def _replaced(value: Any, old: torch.Tensor, new: torch.Tensor) -> Any:
    """The same structure with one tensor exchanged."""
    if value is old:
        return new
    if isinstance(value, tuple):
        items = [_replaced(v, old, new) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [_replaced(v, old, new) for v in value]
    if isinstance(value, dict):
        for key in list(value):
            if value[key] is not None:
                value[key] = _replaced(value[key], old, new)
    elif dataclasses.is_dataclass(value):
        items = {k: _replaced(v, old, new) for k, v in vars(value).items()}
        return dataclasses.replace(value, **items)
    return value


# -- the definitions of the values --------------------------------------------------------------------------------


def mean_square(t: torch.Tensor) -> float:
    return float(t.detach().double().square().mean())


def norm(t: torch.Tensor) -> float:
    return float(t.detach().double().square().sum().sqrt())


def error_moment(calls: list[Call]) -> dict[str, float]:
    """Of one site in one step: the mean over all elements of all its calls."""
    return {
        "output": _pooled([c.grad_output for c in calls]),
        "input": _pooled([c.grad_input for c in calls]),
    }


def _pooled(grads: list[torch.Tensor | None]) -> float:
    there = [g.double().flatten() for g in grads if g is not None]
    return float(torch.cat(there).square().mean()) if there else float("nan")


def gradient_norm(calls: list[Call]) -> dict[str, float]:
    result = {}
    for name in ("output", "input"):
        there = [g for c in calls if (g := getattr(c, f"grad_{name}")) is not None]
        result[name] = sum(norm(g) ** 2 for g in there) ** 0.5 if there else float("nan")
    return result


def activation(calls: list[Call]) -> dict[str, float]:
    out = torch.cat([c.output.double().flatten() for c in calls])
    return {
        "mean": float(out.mean()),
        "mean_square": float(out.square().mean()),
        "mean_abs": float(out.abs().mean()),
        "max": float(out.max()),
        "zeros": float((out == 0).double().mean()),
        "dead": min(_dead(c) for c in calls),
    }


def _dead(call: Call) -> float:
    """Share of channels (convolutions, four and more dimensions) or last-dimension units that are zero everywhere."""
    out = call.output
    convolution = isinstance(call.module, nn.modules.conv._ConvNd)
    channels = out.ndim >= 4 or (out.ndim == 3 and convolution)
    units = out.movedim(1 if channels else -1, 0)
    return sum(bool((u == 0).all()) for u in units) / len(units)


def filter_correlation(w: torch.Tensor) -> dict[str, float]:
    w = w[w.norm(dim=1) > 0]  # a filter of zeros has no direction
    cosines = F.cosine_similarity(w[:, None], w[None], dim=2)
    above = cosines[torch.ones_like(cosines).triu(1).bool()]
    return {"correlation": float(above.mean()), "pairs": len(above)}


def filters(module: nn.Module) -> torch.Tensor:
    """Filters as rows."""
    own = getattr(module, "weight", None)
    w = own if _matrix(own) else next(p for p in module.parameters() if _matrix(p))
    w = w.detach().double()
    if type(module).__name__ == "Conv1D":  # transformers' linear layer, stored (in, out)
        w = w.T
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        per_group = w.chunk(module.groups)
        w = torch.cat([g.transpose(0, 1) for g in per_group])
    return w.flatten(1)


def _matrix(p: Any) -> bool:
    return isinstance(p, torch.Tensor) and p.ndim >= 2


def weight(w: torch.Tensor) -> dict[str, float]:
    n = len(w)
    return {
        "norm": float(w.norm()),
        "spectral_norm": float(torch.linalg.svdvals(w)[0]),
        "orthonormality": float((w @ w.T - torch.eye(n)).norm()),
    }
