"""What back-propagated errors were multiplied by in this step, by layer: modulation writes it, a probe reads it."""

import weakref
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class Factors:
    """The factors of one layer, one per call and backward pass since the step began."""

    total: torch.Tensor
    fired: torch.Tensor
    count: int


_factors: weakref.WeakKeyDictionary[nn.Module, Factors] = weakref.WeakKeyDictionary()


def note_factor(module: nn.Module, factor: torch.Tensor) -> None:
    """Note that an error at the module was multiplied by `factor` (0-d)."""
    fired = (factor != 1).to(factor.dtype)
    known = _factors.get(module)
    if known is None:
        _factors[module] = Factors(factor, fired, 1)
    else:
        known.total = known.total + factor
        known.fired = known.fired + fired
        known.count += 1


def forget_factors(module: nn.Module) -> None:
    """A new step begins."""
    _factors.pop(module, None)


def mean_factor(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean factor of this step, and the share of the factors that were not 1; (1, 0) where nothing was noted."""
    known = _factors.get(module)
    if known is None:
        return torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    return known.total / known.count, known.fired / known.count
