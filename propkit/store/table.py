"""Rows of one group in memory: the buffer that every writer fills."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from propkit.schema import SITE, STEP, Group

Floats = npt.NDArray[np.float64]
Steps = npt.NDArray[np.int64]

TEXT = "OUT"
"""Kinds of NumPy dtypes that hold strings: objects, fixed width, variable width."""

STEP_ATTRIBUTES = {"units": "1", "long_name": "optimiser steps completed"}
"""Attributes of the coordinate ``step``."""


@dataclass(frozen=True)
class Rows:
    """What a reader gets to see of one group: read-only arrays that later rows do not touch.

    Attributes:
        group: The group's description.
        step: Steps of the R rows, shape (R,), increasing.
        columns: Variable name -> values, shape (R, S), or (R,) where the group has no sites.
    """

    group: Group
    step: Steps
    columns: Mapping[str, Floats]


class Table:
    """Rows of one group, in arrays that double when they are full: appending costs O(1) a row.

    Args:
        group: What the rows hold.
        capacity: Rows to make room for at first.

    Raises:
        ValueError: A name is empty, taken twice or no file name, or coordinates differ in length.
    """

    def __init__(self, group: Group, capacity: int = 64) -> None:
        check_group(group)
        self.group = group
        self.rows = 0
        self.last: int | None = None
        self._step = np.zeros(capacity, np.int64)
        self._columns = {v.name: self._blank(capacity) for v in group.variables}

    def append(self, step: npt.ArrayLike, columns: Mapping[str, npt.ArrayLike]) -> None:
        """Copy R rows in.

        Args:
            step: Steps of the rows, shape (R,), increasing and larger than every earlier one.
            columns: Variable name -> values, shape (R, S), or (R,) where the group has no sites. A
                variable that is left out is not available (NaN) in these rows.

        Raises:
            TypeError: The steps are not integers.
            ValueError: The steps do not increase, a shape is wrong, or a variable is unknown.
        """
        steps = np.asarray(step).astype(np.int64, casting="same_kind")
        values = {name: np.asarray(column, np.float64) for name, column in columns.items()}
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

    def missing(self, group: Group) -> Group:
        """The group with only those of its variables that the table lacks.

        Raises:
            ValueError: The group has sites, so that its variables were settled when it was
                defined, or a name cannot be used.
        """
        if self.group.coords or group.coords:
            raise ValueError(
                f"group {group.name!r} is defined already: define a group with sites once, "
                "with all its variables"
            )
        new = replace(
            group, variables=tuple(v for v in group.variables if v.name not in self._columns)
        )
        check_group(new)
        return new

    def extend(self, group: Group) -> None:
        """Add the variables of a group without sites that are `missing`; earlier rows hold NaN."""
        new = self.missing(group).variables
        # A new dict, not a changed one: a reader's thread may be iterating over the old one.
        blanks = {v.name: self._blank(len(self._step)) for v in new}
        self._columns = {**self._columns, **blanks}
        self.group = replace(self.group, variables=(*self.group.variables, *new))

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

    def _blank(self, capacity: int) -> Floats:
        width = (self.group.width,) if self.group.coords else ()
        return np.full((capacity, *width), np.nan)

    def _grow(self, rows: int) -> None:
        if rows <= len(self._step):
            return
        capacity = 1 << (rows - 1).bit_length()
        step = np.zeros(capacity, np.int64)
        step[: self.rows] = self._step[: self.rows]
        columns = {name: self._blank(capacity) for name in self._columns}
        for name, kept in self._columns.items():
            columns[name][: self.rows] = kept[: self.rows]
        self._step, self._columns = step, columns

    def _check(self, steps: Steps, values: Mapping[str, Floats]) -> None:
        name, width = self.group.name, (self.group.width,) if self.group.coords else ()
        if steps.ndim != 1:
            raise ValueError(f"group {name!r}: expected steps of shape (R,), found {steps.shape}")
        late = self.last is not None and len(steps) > 0 and int(steps[0]) <= self.last
        if late or (np.diff(steps) <= 0).any():
            raise ValueError(
                f"group {name!r}: steps must increase, found {steps.tolist()} after {self.last}; "
                "each step is recorded once"
            )
        shape = (len(steps), *width)
        for variable, column in values.items():
            if variable not in self._columns:
                raise ValueError(
                    f"group {name!r} has no variable {variable!r}, only "
                    f"{', '.join(self._columns) or 'none'}: define it first"
                )
            if column.shape != shape:
                raise ValueError(f"{name}/{variable}: expected shape {shape}, found {column.shape}")


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
    names = [STEP, *group.coords, *(v.name for v in group.variables)]
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
