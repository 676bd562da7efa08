"""Training curves: scalars that the user logs, kept on their device until the next flush."""

import operator
from collections.abc import Iterable
from typing import NamedTuple, SupportsIndex

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
        self._checked = set(self._names)
        self._behind: int | None = None  # how many steps are completed when a step's values come
        self._first = first
        self._written = first - 1

    def add(
        self,
        completed: int,
        step: SupportsIndex | None,
        scalars: dict[str, float | torch.Tensor],
    ) -> None:
        """Keep `scalars` for `step`, with the values that they have now; the dict is kept too.

        The caches are cold when a training step has ended, and each line counts: about 20 us for one 0-d tensor.

        Args:
            completed: Number of optimiser steps completed by now.
            step: The step they belong to; None: the one under way or the one just completed, as the first call
                shows (it comes before any step is complete, or after).
            scalars: Numbers or tensors of one element.

        Raises:
            TypeError: A value is neither, or the step is no integer.
            ValueError: The step is written already, or a name cannot name a variable.
        """
        checked = self._checked
        for name, value in scalars.items():
            number: object = value
            if type(value) is torch.Tensor and value.is_cpu:
                # Unlike `item` and `clone` it keeps the interpreter's lock, which the writing thread may wait for.
                number = value.tolist()
            if type(number) is float and name in checked:
                scalars[name] = number
            else:
                scalars[name] = _scalar(name, value)
                checked.add(name)
        if step is None:
            if self._behind is None:
                self._behind = int(completed != self._first)
            step = max(completed - self._behind, self._first)
        elif type(step) is not int or step > _LAST:
            step = _integer(step)
        row = self._open.get(step)
        if row is not None:
            row.update(scalars)
        elif step > self._written:
            self._open[step] = scalars
        else:
            raise ValueError(
                f"log(step={step}): the steps up to {self._written} are written already; log in the order of steps"
            )

    def __len__(self) -> int:
        return len(self._open)

    def take(self, before: int | None) -> tuple[CurveRows, Group | None]:
        """Rows of the steps below `before` (None: all), and the group if it has grown."""
        # Copies, of the steps and of each row: other threads may be logging.
        taken = sorted(s for s in list(self._open) if before is None or s < before)
        rows = {s: self._open.pop(s).copy() for s in taken}
        steps = [s for s in taken if s > self._written]
        curves = [rows[s] for s in steps]
        if steps:
            self._written = steps[-1]
        known = len(self._names)
        self._names.update(dict.fromkeys(name for curve in curves for name in curve))
        grown = len(self._names) > known
        group = Group(LOG, tuple(Variable(name) for name in self._names)) if grown else None
        return CurveRows(steps, curves), group


_LAST = 2**63 - 1
"""The largest number that a step can have in the store."""

_LONGEST = 200
"""Bytes of a name: it names a folder, and file systems have 255."""


def _integer(step: SupportsIndex) -> int:
    """A step that was given as something else than an `int`, or is too large."""
    try:
        number = int(operator.index(step))
    except TypeError:
        raise TypeError(
            f"log(step=...): expected the number of a step, an integer, found {type(step).__name__} {step!r:.60}"
        ) from None
    if number > _LAST:
        raise ValueError(f"log(step={number}): expected a step below 2**63")
    return number


def _check_name(name: str) -> None:
    if not _names_a_folder(name):
        better = name.strip("._").replace("/", ".").replace("\\", ".")
        raise ValueError(
            f"log({name!r:.60}): a name is a variable of the run, so it is not empty, has no '/' and no leading '.' or "
            f"'__', and can be printed in {_LONGEST} bytes; write {better if _names_a_folder(better) else 'loss'!r}"
        )


def _names_a_folder(name: str) -> bool:
    return (
        0 < len(name.encode(errors="replace")) <= _LONGEST
        and name.isprintable()
        and not {"/", "\\"} & set(name)
        and not name.startswith((".", "__"))
        and name != "zarr.json"
    )


def _scalar(name: str, value: object) -> float | torch.Tensor:
    _check_name(name)
    if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex():
        value = value.detach().reshape(())
        if type(value) is torch.Tensor and value.is_cpu:
            return float(value.item())
        return value.clone()  # the loop may go on changing its tensor
    if isinstance(value, (int, float, np.integer, np.floating)):
        return float(value)
    shape = (
        f"a tensor of shape {tuple(value.shape)}, {value.dtype}"
        if isinstance(value, torch.Tensor)
        else repr(value)[:60]
    )
    raise TypeError(f"log({name}=...): expected a number or a tensor of one element, found {shape}")
