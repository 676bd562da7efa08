"""The one description of a run's layout: groups, dims, coordinates, attributes and the schema version.

A run is a tree: the root carries attributes only (xarray asks children to align with the coordinates of their
parents), one group per probe carries the probe's variables over ``(step, site)`` with a ``step`` coordinate of
its own, and the group ``log`` carries the training curves over ``(step,)``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

SCHEMA_VERSION = 1
"""Raised when a reader of the older layout could misread the newer one."""

STEP = "step"
SITE = "site"
LOG = "log"
"""Name of the group of training curves (`Recorder.log`)."""

STATES = ("running", "complete", "interrupted", "failed")
"""What the root attribute ``state`` may say."""


@dataclass(frozen=True)
class Variable:
    """One quantity of a group, float64 over ``(step, site)``, or ``(step,)`` where the group has no sites.

    Attributes:
        name: Its name in the dataset.
        units: Its units, ``"1"`` for a pure number.
        long_name: One line for an axis label or a table.
        reference: Paper and equation that define it.
        reduce: How values of one step are combined over micro-batches, calls and ranks.
    """

    name: str
    units: str = "1"
    long_name: str = ""
    reference: str = ""
    reduce: str = "mean"

    def attributes(self) -> dict[str, str]:
        """The attributes that the variable carries in the store."""
        return {
            "units": self.units,
            "long_name": self.long_name or self.name.replace("_", " "),
            "reference": self.reference,
            "reduce": self.reduce,
        }


@dataclass(frozen=True)
class Group:
    """One table of the run: rows are steps, columns are sites.

    Attributes:
        name: Group name; the probe's name, or ``log``.
        variables: What is recorded.
        coords: Coordinates along ``site``, each of length S: ``site`` (str, unique) first, then ``depth``
            (int), ``type`` (str), shapes (str) and what the probe's formulas need. Empty: the group has
            no ``site`` dimension.
        attributes: JSON-able attributes of the group.
    """

    name: str
    variables: tuple[Variable, ...]
    coords: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    attributes: Mapping[str, object] = field(default_factory=dict)

    @property
    def dims(self) -> tuple[str, ...]:
        """Dimensions of every variable of the group."""
        return (STEP, SITE) if self.coords else (STEP,)

    @property
    def width(self) -> int:
        """Number of sites; 1 where the group has no ``site`` dimension."""
        return len(self.coords[SITE]) if self.coords else 1
