"""The one description of a run's layout: groups, dims, coordinates, attributes and the schema version.

A run is a tree: the root carries attributes only (xarray asks children to align with the coordinates of their
parents), one group per probe carries the probe's variables over ``(step, site)`` with a ``step`` coordinate of
its own, and the group ``log`` carries the training curves over ``(step,)``.

A variable may have a dimension of its own. A *fixed* one has the same values at every site (quantiles): such a variable
lies over ``(step, site, quantile)``. A *ragged* one has a length for each site (the singular values of a layer): it is
flat, over ``(step, singular_value)``, the values of one site after those of the site before, in the manner of the
ragged arrays of the CF conventions: the coordinate ``row_size`` over ``site`` says how many each site has, and
``site_index`` over the flat dimension to which site each belongs. `Run.spectrum` hands out one site's values.

A site that first gives a value late, when rows are written, is put at the end, with NaN in the rows before.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

SCHEMA_VERSION = 1
"""Raised when a reader of the older layout could misread the newer one."""

STEP = "step"
SITE = "site"
ROW_SIZE = "row_size"
SITE_INDEX = "site_index"
SITE_ORDER = "site_order"
"""Attribute of a group whose later sites came at the end: positions along ``site``, in the order of execution."""
COORDINATES = ("depth", "type", "input_shape", "output_shape", "fan_in", "fan_out")
"""Coordinates along ``site`` that a group of a probe has beside the names."""
LOG = "log"
"""Name of the group of training curves (`Recorder.log`)."""

STATES = ("running", "complete", "interrupted", "failed")
"""What the root attribute ``state`` may say."""


@dataclass(frozen=True)
class Variable:
    """One quantity of a group, over ``(step, site)``, or ``(step,)`` where the group has no sites.

    Attributes:
        name: Its name in the dataset.
        units: Its units, ``"1"`` for a pure number.
        long_name: One line for an axis label or a table.
        reference: Paper and equation that define it.
        reduce: How values of one step are combined over micro-batches, calls and ranks.
        dim: Its own dimension, one of the group's `Group.axes`; empty for a number per site.
        dtype: ``"float64"`` or ``"float32"``.
    """

    name: str
    units: str = "1"
    long_name: str = ""
    reference: str = ""
    reduce: str = "mean"
    dim: str = ""
    dtype: str = "float64"

    def attributes(self) -> dict[str, str]:
        """The attributes that the variable carries in the store."""
        return {
            "units": self.units,
            "long_name": self.long_name or self.name.replace("_", " "),
            "reference": self.reference,
            "reduce": self.reduce,
        }


class Coordinate(NamedTuple):
    """A coordinate of a group: along which dimension, its values, its attributes."""

    dim: str
    values: npt.NDArray[np.generic]
    attributes: dict[str, str]


@dataclass(frozen=True)
class Group:
    """One table of the run: rows are steps, columns are sites.

    Attributes:
        name: Group name; the probe's name, or ``log``.
        variables: What is recorded.
        coords: Coordinates along ``site``, each of length S: ``site`` (str, unique) first, then ``depth``
            (int), ``type`` (str), shapes (str) and what the probe's formulas need; ``row_size`` (int) if
            there is a ragged axis. Empty: the group has no ``site`` dimension.
        attributes: JSON-able attributes of the group.
        axes: Dimensions of variables -> their coordinate values; None for the ragged one (one at most).
    """

    name: str
    variables: tuple[Variable, ...]
    coords: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    attributes: Mapping[str, object] = field(default_factory=dict)
    axes: Mapping[str, npt.NDArray[np.generic] | None] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Number of sites; 1 where the group has no ``site`` dimension."""
        return len(self.coords[SITE]) if self.coords else 1

    @property
    def ragged(self) -> str:
        """Name of the ragged axis; empty if there is none."""
        return next((name for name, values in self.axes.items() if values is None), "")

    @property
    def sizes(self) -> dict[str, int]:
        """Length of each dimension but ``step``."""
        sizes = {SITE: self.width} if self.coords else {}
        for name, values in self.axes.items():
            sizes[name] = int(self.coords[ROW_SIZE].sum()) if values is None else len(values)
        return sizes

    def dims(self, variable: Variable) -> tuple[str, ...]:
        """Dimensions of a variable."""
        if variable.dim and variable.dim == self.ragged:
            return (STEP, variable.dim)
        own = (variable.dim,) if variable.dim else ()
        return (STEP, SITE, *own) if self.coords else (STEP, *own)

    def row(self, variable: Variable) -> tuple[int, ...]:
        """Shape of a variable at one step."""
        sizes = self.sizes
        return tuple(sizes[dim] for dim in self.dims(variable)[1:])

    def coordinates(self) -> dict[str, Coordinate]:
        """All coordinates but ``step``."""
        found = {name: Coordinate(SITE, values, {}) for name, values in self.coords.items()}
        for name, values in self.axes.items():
            if values is not None:
                found[name] = Coordinate(name, values, {})
                continue
            row_size = self.coords[ROW_SIZE]
            index = np.repeat(np.arange(self.width, dtype=np.int32), row_size.astype(np.int64))
            found[ROW_SIZE] = Coordinate(SITE, row_size, {"sample_dimension": name})
            found[SITE_INDEX] = Coordinate(name, index, {"instance_dimension": SITE})
        return found
