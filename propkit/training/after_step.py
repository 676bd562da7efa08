"""A change to a model's weights after each optimiser step, or some of them: what projections share."""

import math
import operator
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import nn

from propkit.hooks.steps import OptimizerSteps


class AfterStep:
    """A handle that calls a function after optimiser steps, until it is removed.

    A context manager. Optimisers that hold parameters of the model are found by themselves; their
    state is left alone, and a step that a gradient scaler skips does not count. It changes weights
    between steps and puts nothing into the model: ``state_dict``, ``deepcopy`` and pickling see
    the model as it is.

    Args:
        model: The model.
        action: Called without arguments, without gradients, in the training thread.
        every: Call after every so many steps; or, below 1, with this probability after each.
        optimizer: Listen to this optimiser only.
        seed: Of the generator that draws where ``every`` is a probability. Ranks that train
            together need the same.

    Raises:
        ValueError: ``every`` is no positive integer and no probability between 0 and 1.

    Attributes:
        steps: Optimiser steps so far.
        calls: Of the function, so far.
    """

    def __init__(
        self,
        model: nn.Module,
        action: Callable[[], object],
        every: float = 1,
        optimizer: torch.optim.Optimizer | None = None,
        seed: int = 0,
    ) -> None:
        self._every = period(every)
        self._action = action
        self._generator = torch.Generator().manual_seed(seed)
        self.steps = 0
        self.calls = 0
        self._optimizer_steps = OptimizerSteps(model, self._stepped, optimizer)

    def _stepped(self) -> None:
        self.steps += 1
        if self._every < 1:
            due = float(torch.rand((), generator=self._generator)) < self._every
        else:
            due = self.steps % self._every == 0
        if due:
            self()

    @torch.no_grad()
    def __call__(self) -> None:
        """Change the weights now, as at the start of a training."""
        self.calls += 1
        self._action()

    def remove(self) -> None:
        """Stop; any number of times."""
        self._optimizer_steps.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs to go on at the same steps."""
        return {
            "steps": self.steps,
            "calls": self.calls,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.steps, self.calls = int(state["steps"]), int(state["calls"])
        self._generator.set_state(state["generator"])


def period(every: float) -> float:
    """`every`, checked: a positive integer, or a probability between 0 and 1.

    Raises:
        ValueError: It is neither.
    """
    if not math.isfinite(every) or every <= 0 or (every >= 1 and every != int(every)):
        raise ValueError(
            f"every must be a number of steps or a probability between 0 and 1, found {every}"
        )
    return every if every < 1 else operator.index(int(every))
