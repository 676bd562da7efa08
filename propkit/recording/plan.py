"""Where the values of a flush go: a layout at one moment, for the thread that writes."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from propkit.hooks.taps import Key
from propkit.probe import Reduction
from propkit.recording.rows import AnyFloats, Floats, Ints, Spectrum
from propkit.schema import Group
from propkit.store.pauses import pause


class Target(NamedTuple):
    """Where a slot's values go in their group: a variable, and there a column or several."""

    variable: str
    where: int | slice


@dataclass(frozen=True)
class Plan:
    """A `Layout` at one moment.

    Attributes:
        keys: Of each slot.
        reductions: Of each slot.
        groups: Those that have columns.
        slots: Group -> slot -> where it goes.
        strays: Values that have no column: of a ragged variable at a site whose columns were given before it had any.
    """

    keys: tuple[Key, ...]
    reductions: tuple[Reduction, ...]
    groups: Mapping[str, Group]
    slots: Mapping[str, Mapping[int, Target]]
    strays: tuple[Key, ...]

    def length(self, slot: int) -> int | None:
        """How many values a 1-d slot has in its group; None if it has no column."""
        target = self.slots.get(self.keys[slot].probe, {}).get(slot)
        if target is None:
            return None
        if isinstance(target.where, slice):
            return int(target.where.stop - target.where.start)
        group = self.groups[self.keys[slot].probe]
        dim = next(v.dim for v in group.variables if v.name == target.variable)
        return group.sizes[dim]

    def table(
        self, group: str, combined: Floats, spectra: Sequence[Mapping[int, AnyFloats]]
    ) -> dict[str, AnyFloats]:
        """Columns of one group.

        Args:
            group: Its name.
            combined: (R, S) values by row and slot.
            spectra: Of each row, slot -> (K,).

        Returns:
            Variable -> (R, ...), NaN where there is no value.
        """
        described = self.groups[group]
        table: dict[str, AnyFloats] = {
            v.name: np.full((len(combined), *described.row(v)), np.nan, v.dtype)
            for v in described.variables
        }
        for variable, (slots, columns) in self.numbers[group].items():
            table[variable][:, columns] = combined[:, slots]
            pause()
        for i, row in enumerate(spectra):
            for slot, values in row.items():
                if slot in self.slots[group]:
                    variable, where = self.slots[group][slot]
                    table[variable][i, where] = values
            pause()
        return table

    @functools.cached_property
    def numbers(self) -> dict[str, dict[str, tuple[Ints, Ints]]]:
        """Group -> variable without a dimension of its own -> the slots that it has and their columns."""
        found: dict[str, dict[str, tuple[Ints, Ints]]] = {}
        for name, slots in self.slots.items():
            pairs: dict[str, list[tuple[int, int]]] = {
                v.name: [] for v in self.groups[name].variables if not v.dim
            }
            for slot, (variable, where) in slots.items():
                if variable in pairs and isinstance(where, int):
                    pairs[variable].append((slot, where))
            arrays = {n: np.array(p, np.int64).reshape(-1, 2).T for n, p in pairs.items()}
            found[name] = {n: (array[0], array[1]) for n, array in arrays.items()}
        return found


def fitting(
    plan: Plan, spectra: Iterable[Spectrum[AnyFloats]]
) -> tuple[list[Spectrum[AnyFloats]], list[Spectrum[AnyFloats]]]:
    """Spectra that are as long as their columns, and those of other ranks that are not."""
    fit: list[Spectrum[AnyFloats]] = []
    unfit: list[Spectrum[AnyFloats]] = []
    for s in spectra:
        expected = plan.length(s.slot)
        if expected is not None:
            (fit if expected == len(s.values) else unfit).append(s)
    return fit, unfit
