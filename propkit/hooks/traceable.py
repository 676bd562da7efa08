"""Whether a probe's function can be part of a compiled graph, found out before it spoils one."""

import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from propkit.hooks.values import GRADIENTS, OF_A_CALL
from propkit.probe import Measurement
from propkit.sites import weight_of

_SIZE = 3
_CHECKPOINT = "tag_activation_checkpoint"
"""The only operator on functions whose inside may change a buffer."""


def check_traceable(m: Measurement, module: nn.Module, ndim: int) -> None:
    """Trace the function alone, on a small tensor of `ndim` dimensions.

    Raises:
        Exception: Whatever tracing raises; no error of a size, where several tensors would have to fit.
    """
    gradients = GRADIENTS.intersection(m.signals)
    others: dict[str, Any] = {}
    for name in m.signals:
        if name == "module":
            others[name] = module
        elif name == "weight":
            others[name] = weight_of(module)

    def run(tensor: torch.Tensor) -> None:
        given = {name: tensor for name in m.signals if name in OF_A_CALL}
        _check_values(m.function(**given, **others))

    def trial(x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        if gradients:
            y.register_hook(run)
        else:
            with torch.no_grad():
                run(y.detach())
        return y

    example = torch.ones((_SIZE,) * ndim, requires_grad=True)
    alone = len(m.signals) == 1  # else the example's sizes may just not fit together
    if alone:
        run(example.detach())  # its own errors are clearer than the compiler's
    # The compiler counts its graphs by code object, and gives up after eight.
    fresh = types.FunctionType(
        trial.__code__.replace(), trial.__globals__, "trial", None, trial.__closure__
    )
    try:
        torch.compile(fresh, backend="aot_eager", fullgraph=True, dynamic=False)(example)
    except torch._dynamo.exc.TorchRuntimeError:
        if alone:
            raise


def operator_around() -> str:
    """Name of the operator on functions, such as ``cond``, whose inside is being traced; empty outside of any."""
    tx = torch._dynamo.symbolic_convert.InstructionTranslator.current_tx()
    tracer = tx.output.current_tracer
    while tracer.parent is not None:
        target = tracer.source_target
        name = str(getattr(target, "__name__", target))
        if name != _CHECKPOINT:
            return name
        tracer = tracer.parent
    return ""


def _check_values(values: Any) -> None:
    for value in values.values() if isinstance(values, Mapping) else (values,):
        if not isinstance(value, torch.Tensor) or value.ndim:
            found = tuple(value.shape) if isinstance(value, torch.Tensor) else repr(value)
            raise TypeError(f"expected 0-d tensors as values, found {found}")
