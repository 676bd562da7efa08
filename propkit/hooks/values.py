"""What hooks hand on: names of values, places in the network, and who takes them."""

from typing import NamedTuple, Protocol

import torch
from torch import nn

from propkit.probe import Measurement

EVALUATION, TRAINING, NEUTRAL = 0, 1, 2
"""Where a value comes from: a forward with gradients disabled, one with them enabled, or no forward (weights)."""

FORWARD = frozenset({"input", "output"})
GRADIENTS = frozenset({"grad_input", "grad_output"})
OF_A_CALL = FORWARD | GRADIENTS | {"function"}
"""Signals that belong to one call of a module."""


class Key(NamedTuple):
    """What one value is: variable of a probe at one call of a site."""

    probe: str
    variable: str
    site: str
    call: int


class Place(NamedTuple):
    """What the first observed step tells about one call of a site."""

    order: int
    depth: int
    input_shape: str
    output_shape: str


class Receiver(Protocol):
    """Takes the values (the recorder does)."""

    def receive(
        self,
        key: Key,
        measurement: Measurement,
        value: float | torch.Tensor,
        weight: float | torch.Tensor,
        origin: int,
    ) -> None:
        """One value of one call: 0-d or 1-d, on the model's device; or a number, of a model on the CPU."""

    def loss_scale(self) -> torch.Tensor | None:
        """What the loss of the running backward pass is multiplied by, 0-d on any device; None for 1."""

    def fault(self, probe: str, error: Exception) -> None:
        """A probe failed and is measured no more."""

    def broken(self, error: Exception) -> None:
        """The hooks themselves failed."""


def end_of(m: Measurement, module: nn.Module) -> str:
    """Where a function is measured in a graph: at the site's ``"input"``, at its ``"output"``, or ``""``: nowhere.

    A function of both ends runs at the output, if the module cannot have changed its input by then. One whose variables
    have dimensions of their own runs nowhere.
    """
    needed = OF_A_CALL.intersection(m.signals)
    if not needed or m.dims or "function" in needed:
        return ""
    if needed <= {"input", "grad_input"}:
        return "input"
    if needed <= {"output", "grad_output"}:
        return "output"
    changes = getattr(module, "inplace", False) or any(True for _ in module.children())
    return "output" if needed <= FORWARD | {"grad_output"} and not changes else ""
