"""What is written: rows like those of a training."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

QUANTITIES = 10


class Block(NamedTuple):
    """The rows of one flush, in both shapes, so that no writer pays for turning them.

    Attributes:
        step: (R,).
        columns: Quantity -> (R, layers).
        wide: (R, quantities * layers), quantity by quantity.
    """

    step: Array
    columns: Mapping[str, Array]
    wide: Array


class Shape(NamedTuple):
    """What a row holds."""

    quantities: tuple[str, ...]
    layers: int
    dtype: str

    @property
    def names(self) -> list[str]:
        """Names of the wide columns."""
        return [f"{q}_{layer}" for q in self.quantities for layer in range(self.layers)]

    def column(self, quantity: str, layer: int) -> int:
        """Number of a wide column."""
        return self.quantities.index(quantity) * self.layers + layer


class Diagnostics:
    """Numbers like those of a training: each wanders over the steps, around a level of its own."""

    def __init__(self, steps: int, layers: int, dtype: str) -> None:
        self.shape = Shape(tuple(f"q{i}" for i in range(QUANTITIES)), layers, dtype)
        generator = np.random.default_rng(0)
        walk = generator.normal(0, 0.03, (steps, QUANTITIES * layers)).cumsum(axis=0)
        walk += generator.normal(-6, 3, QUANTITIES * layers)
        self.wide = np.exp(walk, out=walk).astype(dtype, copy=False)

    def block(self, start: int, rows: int) -> Block:
        """The rows from `start` on."""
        wide = np.ascontiguousarray(self.wide[start : start + rows])
        parts = np.split(wide, QUANTITIES, axis=1)
        columns = dict(zip(self.shape.quantities, map(np.ascontiguousarray, parts), strict=True))
        return Block(np.arange(start, start + len(wide)), columns, wide)

    def series(self, quantity: str, layer: int) -> Array:
        """One quantity of one layer over all steps."""
        series: Array = self.wide[:, self.shape.column(quantity, layer)]
        return series
