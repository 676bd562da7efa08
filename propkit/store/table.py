"""Rows of one group in memory: the buffer that every writer fills."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from propkit.schema import ROW_SIZE, SITE, SITE_INDEX, STEP, Group, Variable

Floats = npt.NDArray[np.floating[Any]]
Steps = npt.NDArray[np.int64]

TEXT = "OUT"
"""Kinds of NumPy dtypes that hold strings: objects, fixed width, variable width."""

STEP_ATTRIBUTES = {"units": "1", "long_name": "optimiser steps completed"}
"""Attributes of the coordinate ``step``."""

_FIRST_BYTES = 1 << 20
"""What a variable takes at first, at most: rows may be wide."""


@dataclass(frozen=True)
class Rows:
    """What a reader gets to see of one group: read-only arrays that later rows do not touch.

    Attributes:
        group: The group's description.
        step: Steps of the R rows, shape (R,), increasing.
        columns: Variable name -> values, shape (R, *group.row(variable)).
    """

    group: Group
    step: Steps
    columns: Mapping[str, Floats]


class Table:
    """Rows of one group, in arrays that double when they are full: appending costs O(1) a row.

    Args:
        group: What the rows hold.
        capacity: Rows to make room for at first, if they are narrow.

    Raises:
        ValueError: A name is empty, taken twice or no file name, coordinates differ in length, or a variable lies along
            a dimension that the group has not.
    """

    def __init__(self, group: Group, capacity: int = 64) -> None:
        check_group(group)
        self.group = group
        self.rows = 0
        self.last: int | None = None
        widest = max((8 * prod(group.row(v)) for v in group.variables), default=1)
        capacity = max(1, min(capacity, _FIRST_BYTES // max(widest, 1)))
        self._step = np.zeros(capacity, np.int64)
        self._columns = {v.name: self._blank(capacity, v) for v in group.variables}

    def append(self, step: npt.ArrayLike, columns: Mapping[str, npt.ArrayLike]) -> None:
        """Copy R rows in.

        Args:
            step: Steps of the rows, shape (R,), increasing and larger than every earlier one.
            columns: Variable name -> values, shape (R, *group.row(variable)). A variable that is left out
                is not available (NaN) in these rows.

        Raises:
            TypeError: The steps are not integers.
            ValueError: The steps do not increase, a shape is wrong, or a variable is unknown.
        """
        steps = np.asarray(step).astype(np.int64, casting="same_kind")
        values = {name: np.asarray(column) for name, column in columns.items()}
        self._check(steps, values)
        if not len(steps):
            return
        stop = self.rows + len(steps)
        self._grow(stop)
        self._step[self.rows : stop] = steps
        for name, kept in self._columns.items():
            kept[self.rows : stop] = values.get(name, np.nan)
        self.last = int(steps[-1])
        self.rows = stop

    def grown(self, group: Group) -> Group:
        """The table's group with what `group` adds to it: variables, and sites after those there are.

        Raises:
            ValueError: It adds nothing although the group has sites, changes what is there, or a name cannot be used.
        """
        old, known = self.group, {v.name for v in self.group.variables}
        new = tuple(v for v in group.variables if v.name not in known)
        attributes = {**old.attributes, **group.attributes}
        grown = replace(group, variables=(*old.variables, *new), attributes=attributes)
        if (old.coords and not new and grown.width == old.width) or not _continues(old, grown):
            raise ValueError(
                f"group {group.name!r} is defined already: define it again only with more variables, or "
                "with more sites after those that it has"
            )
        check_group(grown)
        return grown

    def extend(self, group: Group) -> None:
        """Grow to a group that `grown` gave; earlier rows hold NaN in what is new."""
        # New arrays and a new dict, not changed ones: a reader's thread may be looking at the old ones.
        columns = {}
        self.group = group
        for v in group.variables:
            kept = self._columns.get(v.name)
            if kept is None or kept.shape[1:] != group.row(v):
                wider = self._blank(len(self._step), v)
                if kept is not None:
                    wider[: self.rows, : kept.shape[1]] = kept[: self.rows]
                kept = wider
            columns[v.name] = kept
        self._columns = columns

    def view(self) -> Rows:
        """The rows held now, without copying them."""
        step, columns = self._step[: self.rows], {}
        step.flags.writeable = False
        for name, kept in self._columns.items():
            columns[name] = kept[: self.rows]
            columns[name].flags.writeable = False
        return Rows(self.group, step, columns)

    def clear(self) -> None:
        """Forget the rows, keep the memory: it is written again at once, without page faults."""
        self.rows = 0

    def _blank(self, capacity: int, variable: Variable) -> Floats:
        return np.full((capacity, *self.group.row(variable)), np.nan, variable.dtype)

    def _grow(self, rows: int) -> None:
        if rows <= len(self._step):
            return
        capacity = 1 << (rows - 1).bit_length()
        step = np.zeros(capacity, np.int64)
        step[: self.rows] = self._step[: self.rows]
        columns = {v.name: self._blank(capacity, v) for v in self.group.variables}
        for name, kept in self._columns.items():
            columns[name][: self.rows] = kept[: self.rows]
        self._step, self._columns = step, columns

    def _check(self, steps: Steps, values: Mapping[str, Floats]) -> None:
        name = self.group.name
        if steps.ndim != 1:
            raise ValueError(f"group {name!r}: expected steps of shape (R,), found {steps.shape}")
        late = self.last is not None and len(steps) > 0 and int(steps[0]) <= self.last
        if late or (steps[1:] <= steps[:-1]).any():
            raise ValueError(
                f"group {name!r}: steps must increase, found {steps.tolist()} after {self.last}; "
                "each step is recorded once"
            )
        for variable, column in values.items():
            if variable not in self._columns:
                raise ValueError(
                    f"group {name!r} has no variable {variable!r}, only "
                    f"{', '.join(self._columns) or 'none'}: define it first"
                )
            shape = (len(steps), *self._columns[variable].shape[1:])
            if column.shape != shape:
                raise ValueError(f"{name}/{variable}: expected shape {shape}, found {column.shape}")


def _continues(old: Group, new: Group) -> bool:
    """Whether `new` has the sites of `old` at its beginning, and the same axes."""
    before, after = (
        {name: v.tolist() for name, v in group.axes.items() if v is not None}
        for group in (old, new)
    )
    same = old.coords.keys() == new.coords.keys() and after == {**after, **before}
    if not same or not old.coords:
        return same
    names = [SITE, ROW_SIZE] if old.ragged else [SITE]
    return old.ragged in ("", new.ragged) and all(
        np.array_equal(new.coords[n][: old.width], old.coords[n]) for n in names
    )


def defined(tables: Mapping[str, Table], group: str) -> Table:
    """The table of a group.

    Raises:
        ValueError: There is none: the message names those there are.
    """
    if group not in tables:
        raise ValueError(f"no group {group!r}, only {', '.join(tables) or 'none'}: define it first")
    return tables[group]


def check_group(group: Group) -> None:
    """Refuse a description that no store can hold.

    Raises:
        ValueError: See `Table`.
    """
    own = [*group.coords, *group.axes, *([SITE_INDEX] if group.ragged else [])]
    names = [STEP, *own, *(v.name for v in group.variables)]
    for name in (group.name, *names):
        if (
            not name
            or name.startswith((".", "__"))
            or {"/", "\\"} & set(name)
            or name == "zarr.json"
        ):
            raise ValueError(
                f"group {group.name!r}: {name!r} names a file of the store; it must not be "
                "empty, start with '.' or '__', or contain '/'"
            )
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"group {group.name!r}: {', '.join(twice)} used twice in {names}")
    lengths = {name: len(values) for name, values in group.coords.items()}
    if lengths and (
        SITE not in lengths or set(lengths.values()) != {group.width} or not group.width
    ):
        raise ValueError(
            f"group {group.name!r}: expected {SITE!r} and coordinates of one length, at "
            f"least 1, found {lengths}"
        )
    ragged = [name for name, values in group.axes.items() if values is None]
    if len(ragged) > 1 or (ragged and ROW_SIZE not in group.coords):
        raise ValueError(
            f"group {group.name!r}: expected one ragged axis at most, and the coordinate {ROW_SIZE!r} with it, found "
            f"{', '.join(ragged)} and {', '.join(group.coords) or 'no coordinate'}"
        )
    for v in group.variables:
        if v.dim and v.dim not in group.axes:
            raise ValueError(
                f"{group.name}/{v.name} lies along {v.dim!r}, which is no axis of the group, only "
                f"{', '.join(group.axes) or 'none'}"
            )
