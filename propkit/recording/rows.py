"""From the values of one step to one row: stacked on the device, combined on the host."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from propkit.hooks.taps import EVALUATION, TRAINING
from propkit.probe import Reduction

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Observation(NamedTuple):
    """One value as the hooks deliver it: its slot, its 0-d tensor, its weight in a mean and its origin."""

    slot: int
    value: torch.Tensor
    weight: float
    origin: int


class Row(NamedTuple):
    """The values of one step: what is known on the host, and one vector per device that is still to be copied."""

    step: int
    slots: Ints
    weights: Floats
    vectors: tuple[torch.Tensor, ...]


class Values(NamedTuple):
    """The values of one step in host memory: (V,) slots, values and weights."""

    step: int
    slots: Ints
    values: Floats
    weights: Floats


def make_row(step: int, observations: Sequence[Observation]) -> Row:
    """Stack the values of a step, without any transfer.

    Values of forwards without gradients (an evaluation between two steps) count only where the step has no other.
    """
    if any(o.origin == TRAINING for o in observations):
        observations = [o for o in observations if o.origin != EVALUATION]
    by_device: dict[torch.device, list[int]] = {}
    for i, o in enumerate(observations):
        by_device.setdefault(o.value.device, []).append(i)
    order = [i for indices in by_device.values() for i in indices]
    return Row(
        step,
        np.array([observations[i].slot for i in order], dtype=np.int64),
        np.array([observations[i].weight for i in order], dtype=np.float64),
        tuple(_stack([observations[i].value for i in indices]) for indices in by_device.values()),
    )


def _stack(values: list[torch.Tensor]) -> torch.Tensor:
    """One vector of 0-d tensors of any real dtypes on one device."""
    exact = torch.float32 if values[0].device.type == "mps" else torch.float64
    return torch.stack([v if v.dtype == exact else v.to(exact) for v in values])


def events(rows: Sequence[Row]) -> list[torch.cuda.Event]:
    """Events that mark when the rows' values are complete; none are needed off CUDA."""
    devices = {v.device for row in rows for v in row.vectors if v.device.type == "cuda"}
    marks = []
    for device in devices:
        mark = torch.cuda.Event()
        mark.record(torch.cuda.current_stream(device))
        marks.append(mark)
    return marks


def rows_to_host(rows: Sequence[Row]) -> list[Values]:
    """The values of all rows in host memory, by one transfer per device."""
    parts = iter(to_host([vector for row in rows for vector in row.vectors]))
    return [
        Values(row.step, row.slots, np.concatenate([next(parts) for _ in row.vectors]), row.weights)
        for row in rows
    ]


def to_host(vectors: Sequence[torch.Tensor]) -> list[Floats]:
    """All vectors in host memory, by one transfer per device."""
    by_device: dict[torch.device, list[int]] = {}
    for i, v in enumerate(vectors):
        by_device.setdefault(v.device, []).append(i)
    result: list[Floats] = [np.empty(0)] * len(vectors)
    for indices in by_device.values():
        joined = torch.cat([vectors[i] for i in indices]).to("cpu", torch.float64).numpy()
        ends = np.cumsum([len(vectors[i]) for i in indices])
        for i, part in zip(indices, np.split(joined, ends[:-1]), strict=True):
            result[i] = part
    return result


def combine(
    slots: Ints, values: Floats, weights: Floats, reductions: Sequence[Reduction]
) -> Floats:
    """Combine the values of each slot by its reduction.

    Args:
        slots: (V,) slot of each value.
        values: (V,).
        weights: (V,) weight of each value in a mean.
        reductions: (S,) rule of each slot.

    Returns:
        (S,), NaN where a slot has no value. NaN and inf among the values carry through.
    """
    size = len(reductions)
    if len(np.unique(slots)) == len(slots):  # the common case: one call, one backward pass
        result = np.full(size, np.nan)
        result[slots] = values
        return result
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        weight = np.bincount(slots, weights, size)
        tables = {
            "mean": np.bincount(slots, weights * values, size) / weight,
            "sum": np.bincount(slots, values, size),
            "norm": np.sqrt(np.bincount(slots, values * values, size)),
        }
        for name, ufunc, start in (("max", np.maximum, -np.inf), ("min", np.minimum, np.inf)):
            tables[name] = np.full(size, start)
            ufunc.at(tables[name], slots, values)
    rules = np.array(reductions)
    result = np.full(size, np.nan)
    for name, table in tables.items():
        np.copyto(result, table, where=rules == name)
    result[np.bincount(slots, minlength=size) == 0] = np.nan
    return result


def scalars_to_host(scalars: Iterable[float | torch.Tensor]) -> Floats:
    """Logged scalars in host memory, by one transfer per device."""
    items = list(scalars)
    result = np.array(
        [np.nan if isinstance(s, torch.Tensor) else s for s in items], dtype=np.float64
    )
    by_device: dict[torch.device, list[int]] = {}
    for i, s in enumerate(items):
        if isinstance(s, torch.Tensor):
            by_device.setdefault(s.device, []).append(i)
    groups = list(by_device.values())
    stacked = [
        _stack([s for s in (items[i] for i in g) if isinstance(s, torch.Tensor)]) for g in groups
    ]
    for g, values in zip(groups, to_host(stacked), strict=True):
        result[g] = values
    return result
