"""Training curves: scalars that the user logs, kept on their device until the next flush."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch

from propkit.recording.rows import Floats, scalars_to_host
from propkit.schema import LOG, Group, Variable


class CurveRows(NamedTuple):
    """Rows of the group ``log``, their values still where they were logged."""

    steps: list[int]
    curves: list[dict[str, float | torch.Tensor]]

    def columns(self) -> dict[str, Floats]:
        """One column (R,) per name, NaN where it was not logged; one transfer per device."""
        values = iter(scalars_to_host(v for curve in self.curves for v in curve.values()))
        columns: dict[str, Floats] = {}
        for i, curve in enumerate(self.curves):
            for name in curve:
                columns.setdefault(name, np.full(len(self.curves), np.nan))[i] = next(values)
        return columns


class Curves:
    """What was logged and is not written yet.

    Args:
        first: Step at which the recording begins.
        names: Curves that the run has already.
    """

    def __init__(self, first: int = 0, names: Iterable[str] = ()) -> None:
        self._open: dict[int, dict[str, float | torch.Tensor]] = {}
        self._names: dict[str, None] = dict.fromkeys(names)
        self._logs_before_step: bool | None = None
        self._first = first
        self._written = first - 1

    def add(self, completed: int, step: int | None, scalars: Mapping[str, object]) -> None:
        """Keep `scalars` for `step`.

        Args:
            completed: Number of optimiser steps completed by now.
            step: The step they belong to; None: the one under way or the one just completed, as the first call
                shows (it comes before any step is complete, or after).
            scalars: Numbers or tensors of one element.

        Raises:
            TypeError: A value is neither.
            ValueError: The step is written already, or a name cannot name a variable.
        """
        values = {name: _scalar(name, value) for name, value in scalars.items()}
        if step is None:
            if self._logs_before_step is None:
                self._logs_before_step = completed == self._first
            step = max(completed - (not self._logs_before_step), self._first)
        if step <= self._written:
            raise ValueError(
                f"log(step={step}): the steps up to {self._written} are written already; log in the order of steps"
            )
        self._open.setdefault(step, {}).update(values)

    def __len__(self) -> int:
        return len(self._open)

    def take(self, before: int | None) -> tuple[CurveRows, Group | None]:
        """Rows of the steps below `before` (None: all), and the group if it has grown."""
        steps = sorted(s for s in self._open if before is None or s < before)
        curves = [self._open.pop(s) for s in steps]
        if steps:
            self._written = steps[-1]
        known = len(self._names)
        self._names.update(dict.fromkeys(name for curve in curves for name in curve))
        grown = len(self._names) > known
        group = Group(LOG, tuple(Variable(name) for name in self._names)) if grown else None
        return CurveRows(steps, curves), group


def _scalar(name: str, value: object) -> float | torch.Tensor:
    if "/" in name or name.startswith((".", "__")):
        raise ValueError(
            f"log({name!r}): a name is a variable of the run, so it has no '/' and no leading '.' or '__'; "
            f"write {name.strip('._').replace('/', '.')!r}"
        )
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.detach() if value.ndim == 0 else value.detach().reshape(())
        return value.clone()  # the loop may go on changing its tensor
    if isinstance(value, (int, float, np.integer, np.floating)):
        return float(value)
    shape = (
        f"a tensor of shape {tuple(value.shape)}"
        if isinstance(value, torch.Tensor)
        else repr(value)[:60]
    )
    raise TypeError(f"log({name}=...): expected a number or a tensor of one element, found {shape}")
