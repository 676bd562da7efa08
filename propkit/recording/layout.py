"""Which column of which group each value goes to."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from propkit.hooks.taps import Key, Place
from propkit.probe import Measurement, Probe, Reduction
from propkit.recording.rows import Floats
from propkit.schema import Group, Variable
from propkit.sites import Site, fans, type_name


class Layout:
    """Slots are numbered as values appear; a group's columns are fixed when its first rows are written."""

    def __init__(self, probes: Iterable[Probe], sites: Iterable[Site]) -> None:
        self._probes = {p.name: p for p in probes}
        self._sites = {s.name: s for s in sites}
        self._slots: dict[Key, int] = {}
        self._measurements: dict[tuple[str, str], Measurement] = {}
        self._columns: dict[str, dict[tuple[str, int], int]] = {}
        self._variables: dict[str, tuple[str, ...]] = {}
        self.reductions: list[Reduction] = []

    def slot(self, key: Key, measurement: Measurement) -> int:
        """Number of the slot of `key`."""
        number = self._slots.get(key)
        if number is None:
            number = self._slots[key] = len(self._slots)
            self._measurements.setdefault((key.probe, key.variable), measurement)
            self.reductions.append(measurement.describe(key.variable)[1])
        return number

    def new_groups(self, places: Mapping[tuple[str, int], Place]) -> list[Group]:
        """Fix the groups that have values by now and were not fixed yet."""
        keys: dict[str, list[Key]] = {
            name: [] for name in self._probes if name not in self._columns
        }
        for key in self._slots:
            if key.probe in keys:
                keys[key.probe].append(key)
        return [
            self._fix(self._probes[name], found, places) for name, found in keys.items() if found
        ]

    def _fix(self, p: Probe, keys: list[Key], places: Mapping[tuple[str, int], Place]) -> Group:
        unknown = Place(len(places), 0, "", "")
        calls = sorted(
            {(k.site, k.call) for k in keys}, key=lambda c: (*places.get(c, unknown)[1::-1], c)
        )
        names = list(dict.fromkeys(k.variable for k in keys))
        # The order of the functions in the probe's file, not the order in which signals arrive.
        order = p.measurements
        names.sort(key=lambda n: order.index(self._measurements[p.name, n]))
        self._columns[p.name] = {call: i for i, call in enumerate(calls)}
        self._variables[p.name] = tuple(names)
        at = [places.get(c, unknown) for c in calls]
        fan = [fans(self._sites[site].module) for site, _ in calls]
        variables = []
        for name in names:
            units, reduce, summary = self._measurements[p.name, name].describe(name)
            variables.append(Variable(name, units, summary, p.reference, reduce))
        return Group(
            p.name,
            tuple(variables),
            {
                "site": np.array([f"{s}#{c}" if c else s for s, c in calls], dtype=object).astype(
                    str
                ),
                "depth": np.array([place.depth for place in at], dtype=np.int64),
                "type": np.array([type_name(self._sites[s].module) for s, _ in calls]),
                "input_shape": np.array([place.input_shape for place in at]),
                "output_shape": np.array([place.output_shape for place in at]),
                "fan_in": np.array([f[0] for f in fan], dtype=np.int64),
                "fan_out": np.array([f[1] for f in fan], dtype=np.int64),
            },
            {"reference": p.reference},
        )

    def plan(self) -> "Plan":
        """Where each slot goes, as it stands now: safe to use in another thread."""
        targets = []
        for key in self._slots:
            column = self._columns.get(key.probe, {}).get((key.site, key.call))
            known = column is not None and key.variable in self._variables[key.probe]
            targets.append((key.probe, key.variable, column) if known else None)
        shapes = {
            group: (len(columns), self._variables[group])
            for group, columns in self._columns.items()
        }
        return Plan(tuple(self._slots), tuple(self.reductions), tuple(targets), shapes)

    def silent(self) -> list[str]:
        """Sites that gave no value at all."""
        heard = {key.site for key in self._slots}
        return [name for name in self._sites if name not in heard]

    def strays(self) -> list[Key]:
        """Values that came too late to have a column."""
        return [
            key
            for key in self._slots
            if key.probe in self._columns
            and (
                (key.site, key.call) not in self._columns[key.probe]
                or key.variable not in self._variables[key.probe]
            )
        ]


class Plan(NamedTuple):
    """A `Layout` at one moment: key, rule and column of each slot, width and variables of each group."""

    keys: tuple[Key, ...]
    reductions: tuple[Reduction, ...]
    targets: tuple[tuple[str, str, int | None] | None, ...]
    groups: Mapping[str, tuple[int, tuple[str, ...]]]

    def tables(self, combined: Floats) -> dict[str, dict[str, Floats]]:
        """Tables of the groups from combined rows.

        Args:
            combined: (R, S) values by row and slot.

        Returns:
            Group -> variable -> (R, sites), NaN where there is no value.
        """
        tables = {
            group: {name: np.full((len(combined), width), np.nan) for name in variables}
            for group, (width, variables) in self.groups.items()
        }
        for slot, target in enumerate(self.targets):
            if target is not None:
                group, variable, column = target
                tables[group][variable][:, column] = combined[:, slot]
        return tables
