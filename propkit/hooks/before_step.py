"""When the weights of a model are about to change."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from propkit.hooks.owners import Owners, take_out

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
        self._owners = Owners(model)
        self._listening = False
        self.found = False
        """Whether such an optimiser has stepped."""
        self._of_steps: list[torch.utils.hooks.RemovableHandle] = []
        self._of_gradients: list[torch.utils.hooks.RemovableHandle] = []

    def listen(self) -> None:
        """Begin."""
        self._listening = True
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
        self._listening = False
        self._ignore_gradients()
        take_out(self._of_steps)
        self._of_steps = []

    def _ignore_gradients(self) -> None:
        for handle in self._of_gradients:
            handle.remove()
        self._of_gradients = []

    def _arrived(self, _: torch.Tensor) -> None:
        self._weigh()

    def _steps(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG002 - a hook
        if self._listening and optimizer in self._owners:
            self.found = True
            self._ignore_gradients()
            self._weigh()
