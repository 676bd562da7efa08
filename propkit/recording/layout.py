"""Which column of which group each value goes to."""

from collections.abc import Iterable, Mapping

import numpy as np

from propkit.hooks.taps import Key, Place
from propkit.probe import Measurement, Probe, Reduction
from propkit.recording.plan import Plan, Target
from propkit.recording.resume import Call, call_of
from propkit.schema import ROW_SIZE, SITE, SITE_ORDER, Group, Variable
from propkit.sites import Site, fans, is_kind, type_name


class Layout:
    """Slots are numbered as values appear; columns are given when rows are written, and a group grows by later ones.

    Attributes:
        slots: The number of each slot that there is.
        reductions: (S,) rule by which the values of a slot are combined.
    """

    def __init__(self, probes: Iterable[Probe], sites: Iterable[Site]) -> None:
        self._probes = {p.name: p for p in probes}
        self._sites = {s.name: s for s in sites}
        self._index = {name: i for i, name in enumerate(self._sites)}
        self.slots: dict[Key, int] = {}
        self._measurements: dict[tuple[str, str], Measurement] = {}
        self._lengths: dict[tuple[str, Call], int] = {}  # of the ragged variables
        self._fresh: dict[str, list[Key]] = {}  # without a column
        self._restored: dict[Call, Place] = {}
        self._columns: dict[str, dict[Call, int]] = {}
        self._groups: dict[str, Group] = {}
        self._plan: Plan | None = None
        self.reductions: list[Reduction] = []

    def restore(self, groups: Iterable[Group]) -> None:
        """Give the columns that the groups of a run have, to continue it; `check_same` has found that they fit."""
        for group in groups:
            calls = [call_of(str(name), self._sites) for name in group.coords[SITE]]
            order = {c: i for i, c in enumerate(group.attributes.get(SITE_ORDER) or [])}  # type: ignore[arg-type, var-annotated]  # JSON
            self._groups[group.name] = group
            self._columns[group.name] = {call: i for i, call in enumerate(calls)}
            for i, call in enumerate(calls):
                depth, *shapes = (
                    group.coords[c][i].item() for c in ("depth", "input_shape", "output_shape")
                )
                self._restored.setdefault(call, Place(order.get(i, i), depth, *shapes))
                if group.ragged and group.coords[ROW_SIZE][i]:
                    self._lengths[group.name, call] = int(group.coords[ROW_SIZE][i])

    def slot(self, key: Key, measurement: Measurement, length: int | None = None) -> int:
        """Number of the slot of `key`, a value that is 0-d, or 1-d and that long.

        Raises:
            ValueError: It is longer or shorter than it may be.
        """
        if length is not None:
            self._check_length(key, measurement, length)
        number = self.slots.get(key)
        if number is None:
            number = self.slots[key] = len(self.slots)
            self._plan = None
            self._fresh.setdefault(key.probe, []).append(key)
            self._measurements.setdefault((key.probe, key.variable), measurement)
            self.reductions.append(measurement.describe(key.variable)[1])
        return number

    def _check_length(self, key: Key, m: Measurement, length: int) -> None:
        dim = m.dims[key.variable]
        if m.is_ragged(key.variable):
            expected = self._lengths.setdefault((key.probe, key[2:]), length)
            why = f"the number of values along {dim!r} must not change at a site within a run"
        else:
            expected, why = len(m.coords[dim]), f"as many as {dim!r} has coords"
        if length != expected:
            raise ValueError(
                f"expected {expected} values of {key.variable!r} at {key.site}, found {length}: {why}"
            )

    def new_groups(self, places: Mapping[Call, Place]) -> list[Group]:
        """Give columns to the values that have none; the groups that are new, and those that have grown."""
        fresh, self._fresh = self._fresh, {}
        self._plan = self._plan if not fresh else None
        changed = []
        for name, p in self._probes.items():
            before = self._groups.get(name)
            if name in fresh and self._fix(p, fresh[name], places) is not before:
                changed.append(self._groups[name])
        return changed

    def _fix(self, p: Probe, keys: list[Key], places: Mapping[Call, Place]) -> Group:
        old = self._groups.get(p.name)
        columns = dict(self._columns.get(p.name, {}))
        known = [v.name for v in old.variables] if old else []
        here = {call: self._place(call, places) for call in {*columns, *(k[2:] for k in keys)}}

        def turn(call: Call) -> tuple[int, int, int, int]:
            place = here[call]
            return place.depth, place.order, self._index[call[0]], call[1]

        for call in sorted(here.keys() - columns.keys(), key=turn):
            columns[call] = len(columns)
        new = [v for v in dict.fromkeys(k.variable for k in keys) if v not in known]
        if old is not None and not old.ragged:  # it would have to go between what is there
            new = [v for v in new if not self._measurements[p.name, v].is_ragged(v)]
        if old is not None and not new and len(columns) == old.width:
            return old
        # The order of the functions in the probe's file, not the order in which signals arrive.
        new.sort(key=lambda v: p.measurements.index(self._measurements[p.name, v]))
        variables = (*(old.variables if old else ()), *(self._variable(p, v) for v in new))
        axes = {v.dim: p.axes[v.dim] for v in variables if v.dim}
        ragged = any(values is None for values in axes.values())
        calls, at = list(columns), [here[c] for c in columns]
        fan = [fans(self._sites[site].module) for site, _ in calls]
        coords = {
            SITE: np.array([f"{s}#{c}" if c else s for s, c in calls], dtype=object).astype(str),
            "depth": np.array([place.depth for place in at], dtype=np.int64),
            "type": np.array([type_name(self._sites[s].module) for s, _ in calls]),
            "input_shape": np.array([place.input_shape for place in at]),
            "output_shape": np.array([place.output_shape for place in at]),
            "fan_in": np.array([f[0] for f in fan], dtype=np.int64),
            "fan_out": np.array([f[1] for f in fan], dtype=np.int64),
        }
        attributes: dict[str, object] = {"reference": p.reference}
        if ragged:
            sizes = [] if old is None else old.coords[ROW_SIZE].tolist()
            sizes += [self._lengths.get((p.name, call), 0) for call in calls[len(sizes) :]]
            coords[ROW_SIZE] = np.array(sizes, dtype=np.int64)
        else:  # the values of a ragged variable would have to change places with their sites
            order = sorted(range(len(calls)), key=lambda i: turn(calls[i]))
            if order != list(range(len(calls))):
                attributes[SITE_ORDER] = order
        group = Group(
            p.name,
            variables,
            coords,
            attributes,
            {d: None if values is None else np.array(values) for d, values in axes.items()},
        )
        self._columns[p.name], self._groups[p.name] = columns, group
        return group

    def _variable(self, p: Probe, name: str) -> Variable:
        m = self._measurements[p.name, name]
        units, reduce, summary = m.describe(name)
        dim, dtype = m.dims.get(name, ""), m.dtype_of(name)
        return Variable(name, units, summary, p.reference, reduce, dim, dtype)

    def _place(self, call: Call, places: Mapping[Call, Place]) -> Place:
        """Where a call is; if nobody noted it, after the one before it in the order of the modules."""
        if call in places:
            return places[call]
        if call in self._restored:
            return self._restored[call]
        site, number = call
        above = list(self._sites)[: self._index[site]]
        for earlier in (
            *((site, n) for n in reversed(range(number))),
            *((name, n) for n in {number: 0, 0: 0} for name in reversed(above)),
        ):
            if earlier in places:
                before = places[earlier]
                deeper = is_kind(self._sites[site].module, "parametric")
                return Place(before.order, before.depth + deeper, "", "")
        return Place(-1, 0, "", "")

    def plan(self) -> Plan:
        """Where each slot goes, as it stands now: safe to use in another thread."""
        if self._plan is None:
            self._plan = self._make_plan()
        return self._plan

    def _make_plan(self) -> Plan:
        starts = {
            name: np.cumsum([0, *group.coords[ROW_SIZE]]).tolist()
            for name, group in self._groups.items()
            if group.ragged
        }
        known = {(name, v.name) for name, group in self._groups.items() for v in group.variables}
        slots: dict[str, dict[int, Target]] = {name: {} for name in self._groups}
        strays = []
        for key, slot in self.slots.items():
            if key.probe not in self._groups:
                continue
            column = self._columns[key.probe].get(key[2:])
            where: int | slice | None = column if key[:2] in known else None
            if column is not None and self._measurements[key[:2]].is_ragged(key.variable):
                start, stop = starts.get(key.probe, [0] * (column + 2))[column : column + 2]
                fits = stop - start == self._lengths[key.probe, key[2:]]
                where = slice(start, stop) if fits else None
            if where is None:
                strays.append(key)
            else:
                slots[key.probe][slot] = Target(key.variable, where)
        keys, rules = tuple(self.slots), tuple(self.reductions)
        return Plan(keys, rules, dict(self._groups), slots, tuple(strays))

    def wide_probes(self) -> frozenset[str]:
        """Probes with a ragged variable, whose rows are wide."""
        return frozenset(name for name, p in self._probes.items() if None in p.axes.values())

    def silent(self) -> list[str]:
        """Sites that gave no value at all."""
        heard = {key.site for key in self.slots} | {site for site, _ in self._restored}
        return [name for name in self._sites if name not in heard]
