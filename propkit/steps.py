"""When a training step ends: found through the step hooks of `torch.optim`."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook


class OptimizerSteps:
    """Calls `on_step` after each step of an optimiser that holds parameters of the model.

    Args:
        model: The model.
        on_step: Called after the step, in the training thread.
        optimizer: Listen to this optimiser only; by default to any that holds one of the model's parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        on_step: Callable[[], None],
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.found: str | None = None
        self._model = weakref.ref(model)
        self._on_step = on_step
        self._ours: weakref.WeakKeyDictionary[torch.optim.Optimizer, bool] = (
            weakref.WeakKeyDictionary()
        )
        if optimizer is None:
            self._handle = register_optimizer_step_post_hook(self._after_any)
        else:
            self._handle = optimizer.register_step_post_hook(self._after)

    def remove(self) -> None:
        """Listen no more."""
        self._handle.remove()

    def _after_any(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        ours = self._ours.get(optimizer)
        if ours is None:
            ours = self._holds_ours(optimizer)
            if (
                ours or self.found is not None
            ):  # until one is found, the parameters may still be exchanged
                self._ours[optimizer] = ours
        if ours:
            self._after(optimizer, args, kwargs)

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG002 - hook signature
        self.found = type(optimizer).__name__
        self._on_step()

    def _holds_ours(self, optimizer: torch.optim.Optimizer) -> bool:
        model = self._model()
        if model is None:
            return False
        ours = {id(p) for p in model.parameters()}
        return any(id(p) in ours for group in optimizer.param_groups for p in group["params"])
