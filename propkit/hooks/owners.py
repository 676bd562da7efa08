"""Which optimisers hold a model's parameters, and taking hooks out of optimisers while they step."""

import gc
import sys
import weakref
from collections.abc import Iterable
from types import FrameType

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

_STEP = torch.optim.Optimizer.profile_hook_step(lambda _: None).__code__
"""The code around every optimiser's step, which goes through the hooks."""

_waiting: list[RemovableHandle] = []
"""Hooks that could not be taken out at once."""


class Owners:
    """The optimisers of one model.

    Args:
        model: The model; it is not kept alive.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self._known: weakref.WeakKeyDictionary[
            torch.optim.Optimizer, tuple[bool, tuple[int, ...]]
        ] = weakref.WeakKeyDictionary()
        self._found = False

    def __contains__(self, optimizer: torch.optim.Optimizer) -> bool:
        sizes = tuple(len(group["params"]) for group in getattr(optimizer, "param_groups", ()))
        known = self._known.get(optimizer)
        if known is not None and (known[0] or known[1] == sizes):  # groups may be added
            return known[0]
        model = self._model()
        ours = model is not None and _holds(optimizer, model)
        self._found |= ours
        if self._found:  # until one is found, the model's parameters may still be exchanged
            self._known[optimizer] = ours, sizes
        return ours

    @property
    def several(self) -> bool:
        """Whether more than one is alive."""
        return sum(ours for ours, _ in self._known.values()) > 1


def has_optimizer(model: nn.Module) -> bool:
    """Whether an optimiser of the process holds one of the model's parameters."""
    # By type(): isinstance would ask lazy objects for their __class__, which wakes them.
    found = [o for o in gc.get_objects() if issubclass(type(o), torch.optim.Optimizer)]
    return any(_holds(o, model) for o in found)


def take_out(handles: Iterable[RemovableHandle]) -> None:
    """Remove hooks of optimisers; in the middle of an optimiser's step, which goes through them, a little later.

    They have to do nothing from now on by themselves.
    """
    _waiting.extend(handles)
    if not _in_a_step():
        for handle in _waiting:
            handle.remove()
        _waiting.clear()


def _in_a_step() -> bool:
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not _STEP:
        frame = frame.f_back
    return frame is not None


def _holds(optimizer: torch.optim.Optimizer, model: nn.Module) -> bool:
    ours = {id(p) for p in model.parameters()}
    groups = getattr(optimizer, "param_groups", ())
    return any(id(p) in ours for group in groups for p in group["params"])
