"""When a training step ends: found through the step hooks of `torch.optim`."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

_WATCHED = 16
"""Parameters, spread over the model, whose gradients tell that a backward pass took place."""


class OptimizerSteps:
    """Calls `on_step` when a training step is complete.

    Any optimiser that holds one of the model's parameters counts. Several that step after one and the same backward
    pass (matrices by one, the rest by another) make one step, which ends with the last of them; with a backward pass
    between them (the two of a GAN) each makes its own. Which of the two it is shows in the first round, whose step
    ends with the first optimiser.

    Args:
        model: The model.
        on_step: Called after the step, in the training thread.
        optimizer: Listen to this optimiser only.
        on_error: Told of any exception, which then goes no further: the optimiser's step must not fail.
    """

    def __init__(
        self,
        model: nn.Module,
        on_step: Callable[[], None],
        optimizer: torch.optim.Optimizer | None = None,
        on_error: Callable[[Exception], None] | None = None,
    ) -> None:
        self._on_error = on_error
        self.found: str | None = None
        self._model = weakref.ref(model)
        self._on_step = on_step
        self._ours: weakref.WeakKeyDictionary[torch.optim.Optimizer, bool] = (
            weakref.WeakKeyDictionary()
        )
        self._together: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        self._round: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        self._backward = True  # one took place since the last optimiser's step
        self._counted = False  # the step of this round
        self._entered: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        # A compiled training step must not compile what happens here.
        before = torch.compiler.disable(self._before)
        after_any, after_given = map(torch.compiler.disable, (self._after_any, self._after_given))
        if optimizer is None:
            self._handles: list[Any] = [
                register_optimizer_step_pre_hook(before),
                register_optimizer_step_post_hook(after_any),
            ]
        else:
            self._handles = [
                optimizer.register_step_pre_hook(before),
                optimizer.register_step_post_hook(after_given),
            ]

    def remove(self) -> None:
        """Listen no more."""
        for handle in self._handles:
            handle.remove()

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG002 - a hook
        self._entered.add(optimizer)

    def _leaves(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether a step ends: PyTorch runs the hooks twice where a subclass's ``step`` calls that of its base."""
        entered = optimizer in self._entered
        self._entered.discard(optimizer)
        return entered

    def _after_given(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG002 - a hook
        if not self._leaves(optimizer):
            return
        self.found = type(optimizer).__name__
        self._guarded(self._on_step)

    def _after_any(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG002 - a hook
        self._guarded(lambda: self._stepped(optimizer))

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            if self._on_error is None:
                raise
            self._on_error(error)

    def _stepped(self, optimizer: torch.optim.Optimizer) -> None:
        if not self._leaves(optimizer):
            return
        ours = self._ours.get(optimizer)
        if ours is None:
            ours = self._holds_ours(optimizer)
            if (
                ours or self.found is not None
            ):  # until one is found, the parameters may still be exchanged
                self._ours[optimizer] = ours
            if ours and self.found is None:
                self._watch()
        if not ours:
            return
        self.found = type(optimizer).__name__
        if self._backward or optimizer in self._round:
            if self._round and not self._counted:  # one of those that step together stayed out
                self._on_step()
            self._round.clear()
            self._counted = False
        else:
            self._together.update(self._round)
            self._together.add(optimizer)
        self._backward = False
        self._round.add(optimizer)
        alone = optimizer not in self._together
        if not self._counted and (alone or set(self._together) <= set(self._round)):
            self._counted = True
            self._on_step()

    def _watch(self) -> None:
        def arrived(_: torch.Tensor) -> None:
            self._backward = True

        model = self._model()
        trained = [p for p in model.parameters() if p.requires_grad and p.is_leaf] if model else []
        for parameter in trained[:: max(1, len(trained) // _WATCHED)]:
            self._handles.append(parameter.register_post_accumulate_grad_hook(arrived))

    def _holds_ours(self, optimizer: torch.optim.Optimizer) -> bool:
        model = self._model()
        if model is None:
            return False
        ours = {id(p) for p in model.parameters()}
        return any(id(p) in ours for group in optimizer.param_groups for p in group["params"])
