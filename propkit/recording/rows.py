"""From the values of one step to one row: stacked on the device, combined on the host."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from propkit.hooks.taps import EVALUATION, TRAINING
from propkit.probe import Reduction
from propkit.store.pauses import pause

Floats = npt.NDArray[np.float64]
AnyFloats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]
T = TypeVar("T")


Observation = tuple[int, float | torch.Tensor, float | torch.Tensor, int]
"""One value as the hooks deliver it: its slot, its tensor (0-d or 1-d) or number, its weight and its origin."""


class Spectrum(NamedTuple, Generic[T]):
    """One value that is 1-d: its slot, its values and its weight in a mean."""

    slot: int
    values: T
    weight: float


class Row(NamedTuple):
    """The values of one step: what is known on the host, and what is still to be copied.

    Those that are 0-d are one vector per device.
    """

    step: int
    slots: Ints
    weights: Floats
    vectors: tuple[torch.Tensor, ...]
    spectra: tuple[Spectrum[torch.Tensor], ...] = ()
    counted: tuple[torch.Tensor, ...] = ()
    """Weights that only a device knows, where `weights` has NaN: one vector per device."""

    @property
    def nbytes(self) -> int:
        """Bytes that its spectra hold."""
        return sum(s.values.nbytes for s in self.spectra)


class Values(NamedTuple):
    """The values of one step in host memory: (V,) slots, values and weights; and the spectra."""

    step: int
    slots: Ints
    values: Floats
    weights: Floats
    spectra: tuple[Spectrum[AnyFloats], ...] = ()


def own_copy(value: torch.Tensor, dtype: str) -> torch.Tensor:
    """A 1-d value as it is kept until the flush: the function may have returned what the training goes on changing."""
    exact = torch.float64 if dtype == "float64" and value.device.type != "mps" else torch.float32
    return value.detach().to(exact, copy=True)


def make_row(step: int, observations: Sequence[Observation]) -> Row:
    """Stack the values of a step, without any transfer.

    Values of forwards without gradients (an evaluation between two steps) count only where the step has no other.
    """
    if any(origin == TRAINING for *_, origin in observations):
        observations = [o for o in observations if o[3] != EVALUATION]
    spectra = []
    by_device: dict[torch.device, list[Observation]] = {}
    for o in observations:
        slot, value, weight, _ = o
        if not isinstance(value, torch.Tensor):
            by_device.setdefault(_CPU, []).append(o)
        elif value.ndim:
            spectra.append(Spectrum(slot, value, float(weight)))
        else:
            by_device.setdefault(value.device, []).append(o)
    scalars = [o for here in by_device.values() for o in here]
    counted: dict[torch.device, list[torch.Tensor]] = {}
    weights = []
    for _, _, weight, _ in scalars:
        if isinstance(weight, torch.Tensor):
            counted.setdefault(weight.device, []).append(weight)
            weight = math.nan
        weights.append(weight)
    return Row(
        step,
        np.array([slot for slot, *_ in scalars], dtype=np.int64),
        np.array(weights, dtype=np.float64),
        tuple(_stack([value for _, value, *_ in here]) for here in by_device.values()),
        tuple(spectra),
        tuple(_stack(here) for here in counted.values()),
    )


def _stack(values: Sequence[float | torch.Tensor]) -> torch.Tensor:
    """One vector of 0-d tensors of any real dtypes on one device, and of numbers."""
    tensors = [v for v in values if isinstance(v, torch.Tensor)]
    if not tensors:
        return torch.tensor(values, dtype=torch.float64)
    exact = torch.float32 if tensors[0].device.type == "mps" else torch.float64
    stacked = torch.stack([v if v.dtype == exact else v.to(exact) for v in tensors])
    if len(tensors) == len(values):
        return stacked
    mixed = stacked.new_empty(len(values))
    known = torch.tensor([isinstance(v, torch.Tensor) for v in values], device=mixed.device)
    mixed[known] = stacked
    mixed[~known] = mixed.new_tensor([v for v in values if not isinstance(v, torch.Tensor)])
    return mixed


_CPU = torch.device("cpu")


def events(rows: Sequence[Row]) -> list[torch.cuda.Event]:
    """Events that mark when the rows' values are complete; none are needed off CUDA."""
    held = (v for row in rows for v in (*row.vectors, *(s.values for s in row.spectra)))
    devices = {v.device for v in held if v.device.type == "cuda"}
    marks = []
    for device in devices:
        mark = torch.cuda.Event()
        mark.record(torch.cuda.current_stream(device))
        marks.append(mark)
    return marks


def rows_to_host(rows: Sequence[Row]) -> list[Values]:
    """The values of all rows in host memory, by one transfer per device and dtype."""
    parts = iter(to_host([v for row in rows for v in (*row.vectors, *row.counted)]))
    pause()
    spectra = iter(_spectra_to_host([s for row in rows for s in row.spectra]))
    values = []
    for row in rows:
        here = [next(parts) for _ in row.vectors]
        numbers = here[0] if len(here) == 1 else np.concatenate([np.empty(0), *here])
        weights = _complete(row.weights, [next(parts) for _ in row.counted])
        own = tuple(next(spectra) for _ in row.spectra)
        values.append(Values(row.step, row.slots, numbers, weights, own))
        pause()
    return values


def _complete(weights: Floats, counted: Sequence[Floats]) -> Floats:
    if counted:
        weights = weights.copy()
        weights[np.isnan(weights)] = np.concatenate(counted)
    return weights


def _spectra_to_host(spectra: Sequence[Spectrum[torch.Tensor]]) -> list[Spectrum[AnyFloats]]:
    """Spectra in host memory, in their own dtype, by one transfer per device and dtype."""
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, s in enumerate(spectra):
        kinds.setdefault((s.values.device, s.values.dtype), []).append(i)
    found: dict[int, AnyFloats] = {}
    for indices in kinds.values():
        joined = torch.cat([spectra[i].values for i in indices]).cpu().numpy()
        ends = np.cumsum([len(spectra[i].values) for i in indices])
        found.update(zip(indices, np.split(joined, ends[:-1]), strict=True))
    return [Spectrum(s.slot, found[i], s.weight) for i, s in enumerate(spectra)]


def to_host(vectors: Sequence[torch.Tensor]) -> list[Floats]:
    """All vectors in host memory, by one transfer per device."""
    by_device: dict[torch.device, list[int]] = {}
    for i, v in enumerate(vectors):
        by_device.setdefault(v.device, []).append(i)
    result: list[Floats] = [np.empty(0)] * len(vectors)
    for indices in by_device.values():
        joined = torch.cat([vectors[i] for i in indices]).to("cpu", torch.float64).numpy()
        start = 0
        for i in indices:
            stop = start + len(vectors[i])
            result[i] = joined[start:stop]
            start = stop
    return result


def combine(rows: Sequence[Values], reductions: Sequence[Reduction]) -> Floats:
    """Combine the values of each slot in each row by the slot's reduction.

    Args:
        rows: R rows.
        reductions: (S,) rule of each slot.

    Returns:
        (R, S), NaN where a slot has no value. NaN and inf among the values carry through, unless their weight is 0.
    """
    shape = len(rows), len(reductions)
    size = shape[0] * shape[1]
    values = np.concatenate([np.empty(0), *(row.values for row in rows)])
    at = np.concatenate(
        [np.empty(0, np.int64), *(row.slots + i * shape[1] for i, row in enumerate(rows))]
    )
    counts = np.bincount(at, minlength=size)
    result = np.full(size, np.nan)
    if not (counts > 1).any():  # the common case: one call, one backward pass
        result[at] = values
        return result.reshape(shape)
    rules = np.array(reductions)
    weights = np.concatenate([row.weights for row in rows])
    empty = weights == 0  # signals, as an expert's without tokens: others count instead
    if empty.any():
        full = np.bincount(at, ~empty, size)[at] > 0
        kept = ~(full & empty)
        values, at, weights = values[kept], at[kept], weights[kept]
        counts = np.bincount(at, minlength=size)

    def extreme(ufunc: np.ufunc, start: float) -> Floats:
        table = np.full(size, start)
        ufunc.at(table, at, values)
        return table

    tables: dict[Reduction, Callable[[], Floats]] = {
        "mean": lambda: np.bincount(at, weights * values, size) / np.bincount(at, weights, size),
        "sum": lambda: np.bincount(at, values, size).astype(np.float64, copy=False),
        "norm": lambda: np.sqrt(np.bincount(at, values * values, size)),
        "max": lambda: extreme(np.maximum, -np.inf),
        "min": lambda: extreme(np.minimum, np.inf),
    }
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        for rule in set(reductions):
            np.copyto(result.reshape(shape), tables[rule]().reshape(shape), where=rules == rule)
    result[counts == 0] = np.nan
    single = counts[at] == 1  # as it is
    result[at[single]] = values[single]
    return result.reshape(shape)


def combine_spectra(
    spectra: Sequence[Spectrum[AnyFloats]], reductions: Sequence[Reduction]
) -> dict[int, AnyFloats]:
    """Combine the spectra of each slot, element by element, by its reduction; in float64 where there are several.

    Args:
        spectra: Those of one slot have one length.
        reductions: (S,) rule of each slot.

    Returns:
        Slot -> (K,).
    """
    by_slot: dict[int, list[Spectrum[AnyFloats]]] = {}
    for s in spectra:
        by_slot.setdefault(s.slot, []).append(s)
    combined = {}
    for slot, here in by_slot.items():
        if len(here) == 1:
            combined[slot] = here[0].values
            continue
        values = np.array([s.values for s in here], dtype=np.float64)
        weights = np.array([s.weight for s in here])
        with np.errstate(invalid="ignore", over="ignore"):
            combined[slot] = _COMBINED[reductions[slot]](values, weights)
    return combined


_COMBINED: dict[Reduction, Callable[[Floats, Floats], Floats]] = {
    "mean": lambda values, weights: weights @ values / weights.sum(),
    "sum": lambda values, _: values.sum(0),
    "norm": lambda values, _: np.sqrt((values * values).sum(0)),
    "max": lambda values, _: values.max(0),
    "min": lambda values, _: values.min(0),
}


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
