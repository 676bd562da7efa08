"""A heat strip: layers by recent steps, one character each, that can be read with and without colour."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from rich.text import Text

RAMP = ".:-=+*#%@"
"""Characters from the least to the largest value: the more ink, the larger."""

MISSING, ZERO, NOT_FINITE = " ", "0", "!"
"""No value; exactly zero on a log scale; infinite or NaN."""

# Nine colours of viridis: their lightness grows as the ink of the characters does.
_COLORS = (
    *("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30"),
    "#fde725",
)
_WIDE = 30.0
"""Positive values that differ by more than this factor are shown on a log scale."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scale:
    """What the characters stand for.

    Attributes:
        low: The value of the first one.
        high: The value of the last one.
        log: Whether they are spaced by factors.
    """

    low: float
    high: float
    log: bool

    @classmethod
    def of(cls, values: Floats) -> "Scale":
        """The scale that shows these values; NaN, inf and, where the others are positive, zeros do not count.

        >>> Scale.of(np.array([1e-6, 0.0, 1.0, np.inf]))
        Scale(low=1e-06, high=1.0, log=True)
        >>> Scale.of(np.array([-1.0, 0.5]))
        Scale(low=-1.0, high=0.5, log=False)
        """
        finite = values[np.isfinite(values)]
        if not finite.size:
            return cls(0.0, 0.0, False)
        positive = finite[finite > 0]
        if positive.size and finite.min() >= 0 and positive.max() > _WIDE * positive.min():
            return cls(float(positive.min()), float(positive.max()), True)
        return cls(float(finite.min()), float(finite.max()), False)

    def characters(self, values: Floats, spoilt: bool = False) -> npt.NDArray[np.str_]:
        """A character per value.

        Args:
            values: Of any shape.
            spoilt: Whether NaN is a value that is not finite, rather than no value.

        >>> scale = Scale(1e-8, 1.0, True)
        >>> "".join(scale.characters(np.array([1e-8, 1e-4, 1.0, 0.0, np.inf, np.nan])))
        '.+@0! '
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            low, high, shown = (
                (np.log(self.low), np.log(self.high), np.log(values))
                if self.log
                else (self.low, self.high, values)
            )
            share = (shown - low) / (high - low) if high > low else np.zeros_like(shown)
        share = np.clip(np.nan_to_num(share), 0.0, 1.0)
        level = np.minimum(share * len(RAMP), len(RAMP) - 1).astype(int)
        found: npt.NDArray[np.str_] = np.array(list(RAMP))[level]
        if self.log:
            found[values == 0] = ZERO
        found[np.isinf(values)] = NOT_FINITE
        found[np.isnan(values)] = NOT_FINITE if spoilt else MISSING
        return found


def pooled(values: Floats, names: Sequence[str], rows: int) -> tuple[Floats, list[str]]:
    """No more than `rows` lines: neighbouring layers share one, which shows their median.

    A value that is not finite among them is what the line shows.

    Args:
        values: (T, S), a column per layer.
        names: (S,) of the layers.
        rows: Lines there is room for.

    Returns:
        (T, R), and the name of the first layer of each line with the number of the others.

    >>> pooled(np.array([[1.0, 2.0, 4.0, 8.0]]), ["a", "b", "c", "d"], 2)
    (array([[1.5, 6. ]]), ['a +1', 'c +1'])
    """
    count = values.shape[1]
    if count <= rows:
        return values, list(names)
    parts = np.array_split(np.arange(count), max(1, rows))
    lines = np.full((len(values), len(parts)), np.nan)
    for i, part in enumerate(parts):
        here = values[:, part]
        known = ~np.isnan(here).all(1)
        lines[known, i] = np.nanmedian(here[known], axis=1)
        infinite = np.isinf(here).any(1)
        lines[infinite, i] = np.inf
    labels = [f"{names[p[0]]} +{len(p) - 1}" if len(p) > 1 else names[p[0]] for p in parts]
    return lines, labels


def line(characters: Sequence[str]) -> "Text":
    """Characters on grounds of their colours; runs of the same one are styled at once."""
    from rich.text import Text

    text = Text()
    begin = 0
    for i in range(1, len(characters) + 1):
        if i == len(characters) or characters[i] != characters[begin]:
            character = characters[begin]
            text.append(character * (i - begin), style_of(character))
            begin = i
    return text


def style_of(character: str) -> str:
    """Colours of a character of the strip."""
    if character == NOT_FINITE:
        return "bold white on red"
    if character == ZERO:
        return "white on black"
    level = RAMP.find(character)
    if level < 0:
        return ""
    return f"{'black' if level >= len(RAMP) // 2 else 'white'} on {_COLORS[level]}"
