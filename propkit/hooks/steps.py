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

from propkit.hooks.owners import Owners, take_out
from propkit.hooks.signals import backward_pass

_WATCHED = 16
"""Parameters, spread over the model and over each of its optimisers, whose gradients tell of a backward pass."""


class OptimizerSteps:
    """Calls `on_step` when a training step is complete.

    Any optimiser that holds one of the model's parameters counts. Several that step after one and the same backward
    pass (matrices by one, the rest by another) make one step, which ends with the last of them; with a backward pass
    between them (the two of a GAN) each makes its own. Which of the two it is shows in the first round, whose step
    ends with the first optimiser. Optimisers that step inside a backward pass, as soon as their gradients are there,
    make one step, which ends with that pass.

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
        self._listening = True
        self._owners = Owners(model)
        self._seen: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        self._together: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        self._round: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        self._backward = True  # one took place since the last optimiser's step
        self._counted = False  # the step of this round
        self._pass = -1  # the backward pass in which optimisers step
        self._gradients: dict[int, weakref.ref[torch.Tensor] | None] = {}  # after the last step
        self._watched: dict[int, torch.utils.hooks.RemovableHandle] = {}
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
        self._listening = False
        for handle in self._watched.values():
            handle.remove()
        self._watched.clear()
        take_out(self._handles)
        self._handles = []

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG002 - a hook
        self._entered.add(optimizer)

    def _leaves(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether a step ends: PyTorch runs the hooks twice where a subclass's ``step`` calls that of its base."""
        entered = optimizer in self._entered
        self._entered.discard(optimizer)
        return entered and self._listening

    def _after_given(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG002 - a hook
        if not self._leaves(optimizer):
            return
        self.found = type(optimizer).__name__
        if not self._inside_a_backward_pass():
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
        if not self._leaves(optimizer) or optimizer not in self._owners:
            return
        first = self.found is None
        self.found = type(optimizer).__name__
        if self._inside_a_backward_pass():
            return
        if self._backward or optimizer in self._round or self._has_new_gradients(optimizer):
            if self._round and not self._counted:  # one of those that step together stayed out
                self._on_step()
            self._round.clear()
            self._counted = False
        else:
            self._together.update(self._round)
            self._together.add(optimizer)
        self._backward = False
        self._round.add(optimizer)
        if first:
            model = self._model()
            self._watch([] if model is None else list(model.parameters()))
        if optimizer not in self._seen:
            self._seen.add(optimizer)
            self._watch([p for group in optimizer.param_groups for p in group["params"]])
        self._remember_gradients(needed=first or self._owners.several)
        alone = optimizer not in self._together
        if not self._counted and (alone or set(self._together) <= set(self._round)):
            self._counted = True
            self._on_step()

    def _inside_a_backward_pass(self) -> bool:
        """Whether an optimiser steps in one; the step of them all ends with the pass."""
        running = backward_pass()
        if running != -1 and running != self._pass:
            self._pass = running
            torch.autograd.Variable._execution_engine.queue_callback(self._pass_ends)
        return running != -1

    def _pass_ends(self) -> None:
        if self._listening:
            self._guarded(self._on_step)

    def _watch(self, parameters: list[torch.Tensor]) -> None:
        """Be told of backward passes that reach some of these."""

        def arrived(_: torch.Tensor) -> None:
            self._backward = True

        trained = [p for p in parameters if p.requires_grad and p.is_leaf]
        unwatched = [p for p in trained if id(p) not in self._watched]
        wanted = _WATCHED - (len(trained) - len(unwatched))
        if wanted > 0:
            for p in unwatched[:: max(1, len(unwatched) // wanted)]:
                self._watched[id(p)] = p.register_post_accumulate_grad_hook(arrived)

    def _remember_gradients(self, needed: bool) -> None:
        """Keep in mind which gradients are there, if another optimiser may step next."""
        model = self._model() if needed else None
        self._gradients = {
            id(p): None if p.grad is None else weakref.ref(p.grad)
            for p in (() if model is None else model.parameters())
        }

    def _has_new_gradients(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether others are there than after the last step, as of parameters that were frozen then, or set by hand."""
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None and id(p) in self._gradients:
                    known = self._gradients[id(p)]
                    if known is None or known() is not p.grad:
                        return True
        return False
