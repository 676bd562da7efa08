"""When the weights of a model are about to change."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

_WATCHED = 16
"""Parameters, spread over the model, whose gradients are watched."""


class BeforeStep:
    """Calls `weigh` before an optimiser of the model's parameters steps.

    Args:
        model: The model.
        weigh: What to call.
        gradients: Until such a step has been seen, as in a loop that changes the weights by itself, call it when a
            gradient arrives.
    """

    def __init__(
        self, model: nn.Module, weigh: Callable[[], None], gradients: bool = False
    ) -> None:
        self._model = model
        self._weigh = weigh
        self._gradients = gradients
        self._ours: weakref.WeakKeyDictionary[torch.optim.Optimizer, bool] = (
            weakref.WeakKeyDictionary()
        )
        self._of_steps: list[torch.utils.hooks.RemovableHandle] = []
        self._of_gradients: list[torch.utils.hooks.RemovableHandle] = []

    def listen(self) -> None:
        """Begin."""
        # A compiled training step must not compile what happens here.
        steps, arrived = map(torch.compiler.disable, (self._steps, self._arrived))
        self._of_steps = [register_optimizer_step_pre_hook(steps)]
        leaves = [
            p for p in self._model.parameters() if self._gradients and p.requires_grad and p.is_leaf
        ]
        self._of_gradients = [
            p.register_post_accumulate_grad_hook(arrived)
            for p in leaves[:: max(1, len(leaves) // _WATCHED)]
        ]

    def remove(self) -> None:
        """Listen no more."""
        for handle in (*self._of_steps, *self._of_gradients):
            handle.remove()
        self._of_steps, self._of_gradients = [], []

    def _arrived(self, _: torch.Tensor) -> None:
        self._weigh()

    def _steps(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG002 - a hook
        if optimizer not in self._ours:
            self._ours[optimizer] = _holds(optimizer, self._model)
        if self._ours[optimizer]:
            for handle in self._of_gradients:
                handle.remove()
            self._of_gradients = []
            self._weigh()


def has_optimizer(model: nn.Module) -> bool:
    """Whether an optimiser of the process holds one of the model's parameters."""
    # By type(): isinstance would ask lazy objects for their __class__, which wakes them.
    found = [o for o in gc.get_objects() if issubclass(type(o), torch.optim.Optimizer)]
    return any(_holds(o, model) for o in found)


def _holds(optimizer: torch.optim.Optimizer, model: nn.Module) -> bool:
    ours = {id(p) for p in model.parameters()}
    groups = getattr(optimizer, "param_groups", ())
    return any(id(p) in ours for group in groups for p in group["params"])
