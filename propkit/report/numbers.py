"""What a figure shows, in numbers: its text alternative, and a line to read below it."""

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from propkit.figures.runs import RunLike
from propkit.schema import STEP

_MOST_QUANTITIES = 4
"""Quantities of a run that are put in words."""


def in_numbers(function: Callable[..., Any], runs: Mapping[str, RunLike]) -> tuple[str, ...]:
    """A sentence for each quantity of each run, from what the figure's ``prepare`` returns.

    Args:
        function: The figure, in whose module ``prepare`` is; without one, there are no sentences.
        runs: Label -> run.
    """
    prepare = getattr(sys.modules.get(function.__module__), "prepare", None)
    if prepare is None:
        return ()
    sentences: list[str] = []
    for label, run in runs.items():
        start = f"{label}: " if len(runs) > 1 else ""
        try:
            prepared = prepare(run)
        except Exception:  # a third party's prepare may want more than a run
            continue
        sentences += (start + s for s in _datasets(prepared))
    return tuple(sentences)


def _datasets(prepared: object) -> Iterator[str]:
    if isinstance(prepared, xr.DataArray):
        prepared = prepared.to_dataset(name=str(prepared.name or "value"))
    if not isinstance(prepared, xr.Dataset) or STEP not in prepared.coords:
        return
    shown = [v for v in prepared.data_vars if _sayable(prepared[v])]
    for name in shown[:_MOST_QUANTITIES]:
        yield describe(prepared[name])


def _sayable(array: xr.DataArray) -> bool:
    return array.dtype.kind == "f" and array.size > 0 and array.dims[0] == STEP


def describe(array: xr.DataArray) -> str:
    """A quantity over steps, or over steps and sites, in one sentence.

    >>> steps = {"step": [0, 10, 20]}
    >>> describe(xr.DataArray([1.0, 0.5, 4.0], steps, "step", name="loss"))
    'loss: 1 at iteration 0, 4 at iteration 20; between 0.5 and 4 over 3 recorded iterations.'
    >>> moments = xr.DataArray([[1.0, 2.0], [3.0, 9.0]], {"step": [0, 5]}, ("step", "site"), name="q")
    >>> describe(moments)
    'q at iteration 5: 3 at the first of 2 layers, 9 at the last; between 3 and 9.'
    """
    name = _name(array)
    steps = array[STEP].values
    values = np.asarray(array.values, dtype=np.float64)
    if values.ndim == 1:
        first, last = _number(values[0]), _number(values[-1])
        if len(steps) == 1:
            return f"{name}: {last} at iteration {int(steps[0]):,}."
        return (
            f"{name}: {first} at iteration {int(steps[0]):,}, {last} at iteration {int(steps[-1]):,}; "
            f"{_range(values)} over {len(steps):,} recorded iterations."
        )
    now = values[-1]
    at = f"{name} at iteration {int(steps[-1]):,}"
    if now.ndim > 1 or str(array.dims[1]) not in ("site", "block"):
        return f"{at}: {_range(now)} over {now.size:,} values."
    there = now[~np.isnan(now)]
    if not there.size:
        return f"{at}: no value."
    return (
        f"{at}: {_number(there[0])} at the first of {there.size:,} layers, {_number(there[-1])} at "
        f"the last; {_range(there)}."
    )


def _name(array: xr.DataArray) -> str:
    """Its long name; the part before a colon, which is the name of one of a probe's quantities."""
    text = str(array.attrs.get("long_name") or array.name)
    own, colon, _ = text.partition(": ")
    return (own if colon else text).replace("_", " ").strip()


def _range(values: npt.NDArray[np.float64]) -> str:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return "no finite value"
    lost = np.count_nonzero(np.isinf(values))
    tail = f", and {lost:,} infinite" if lost else ""
    return f"between {_number(finite.min())} and {_number(finite.max())}{tail}"


def _number(value: float) -> str:
    return "no value" if np.isnan(value) else f"{value:.3g}"
