"""Judging the layers of a network by columns of numbers: what is compared with what, and what follows for each layer.

A column is site -> value, of the sites where the quantity was measured. Shared by `propkit.measure` and by what reads
recorded runs, so it loads neither torch nor a store.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from propkit.diagnosis.verdict import NAN, Evidence, Finding, Thresholds, judge

Column = Mapping[str, float]


class Judged(Protocol):
    """What is to be known of a layer beside its numbers."""

    @property
    def depth(self) -> int:
        """Number of parametric layers that ran by then."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of its output; () where it is not known."""

    @property
    def observations(self) -> int:
        """Samples times positions that are seen of one unit: see `observations`."""


def observations(shape: tuple[int, ...], convolution: bool) -> int:
    """Samples times positions that are seen of one unit of an output; 0 where its shape is not known.

    >>> observations((8, 4, 6, 6), True), observations((8, 5, 16), False)
    (288, 40)

    Args:
        shape: Of the output.
        convolution: Whether its units are in the second dimension whatever the number of dimensions. Elsewhere
            they are in the last one of two or three (features, tokens by features), else in the second.
    """
    if not shape:
        return 0
    channels_first = convolution or len(shape) not in (2, 3)
    units = shape[1 if channels_first and len(shape) > 1 else -1]
    return math.prod(shape) // units if units else 0


def families(column: Column, layers: Mapping[str, Judged]) -> list[list[str]]:
    """Sites with a value, by the number of dimensions of their outputs, which is what may be compared.

    Args:
        column: The values.
        layers: Site -> layer, in the order of execution, which is kept.
    """
    found: dict[int, list[str]] = {}
    for site, layer in layers.items():
        if site in column:
            found.setdefault(len(layer.shape), []).append(site)
    return list(found.values())


def relative_to_last(column: Column, layers: Mapping[str, Judged]) -> dict[str, float]:
    """Each value over that of the last layer of its family whose value is positive and finite."""
    return _relative(column, layers, -1)


def relative_to_first(column: Column, layers: Mapping[str, Judged]) -> dict[str, float]:
    """Each value over that of the first layer of its family whose value is positive and finite."""
    return _relative(column, layers, 0)


def quotient(above: Column, below: Column) -> dict[str, float]:
    """Values over values, of the sites that have both and where the divisor is not zero.

    >>> quotient({"a": 3.0, "b": 1.0, "c": 1.0}, {"a": 2.0, "b": 0.0})
    {'a': 1.5}
    """
    return {site: value / below[site] for site, value in above.items() if below.get(site)}


def judge_layers(
    columns: Mapping[str, Column],
    layers: Mapping[str, Judged],
    thresholds: Thresholds,
    *,
    finite_input: bool = True,
) -> dict[str, list[Finding]]:
    """What is wrong with each layer whose output or error was measured.

    Args:
        columns: Those of ``error_moment``, ``error_ratio``, ``activation_moment``, ``dead``, ``effective_rank``,
            ``mean_cosine`` and ``weight_norm`` that there are. NaN in a column of moments was measured, and counts as
            not finite; what was not measured is not there.
        layers: Site -> layer, in the order of execution. ``site#1`` is the second call of ``site`` and has its weight.
        thresholds: What the verdicts are made by.
        finite_input: Whether what the network was given was finite. If not, what is not finite within it is no fault
            of a layer, and such layers are not judged.

    Returns:
        Site -> findings, the most severe first, none for a healthy layer; in the order of execution. Layers whose
        output has no elements (an expert that was given no token) are not judged.
    """

    def value(name: str, site: str) -> float:
        return columns.get(name, {}).get(site, NAN)

    def moment(name: str, site: str) -> float:
        there = site in columns.get(name, {})
        return math.inf if there and math.isnan(value(name, site)) else value(name, site)

    signal, weights = columns.get("activation_moment", {}), columns.get("weight_norm", {})
    parametric = {s: q for s, q in signal.items() if s in weights or not weights}
    relative = relative_to_first(parametric, layers)
    readout = max((layer.depth for layer in layers.values()), default=0)
    found = {}
    for site, layer in layers.items():
        if site not in columns.get("error_moment", {}) and site not in signal:
            continue
        if 0 in layer.shape:
            continue
        error, output = moment("error_moment", site), moment("activation_moment", site)
        if not finite_input and math.inf in (error, output):
            continue
        evidence = Evidence(
            error_moment=error,
            error_ratio=value("error_ratio", site),
            activation_moment=output,
            activation_ratio=relative.get(site, NAN),
            dead=value("dead", site),
            effective_rank=value("effective_rank", site),
            mean_cosine=value("mean_cosine", site),
            weight_norm=value("weight_norm", site.partition("#")[0]),
            observations=layer.observations,
            matrix=_matrix(layer.shape) if layer.depth < readout else (0, 0),
        )
        found[site] = judge(evidence, thresholds)
    return found


def _matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Samples and units of a representation."""
    return (shape or (1,))[0], math.prod(shape[1:])


def _relative(column: Column, layers: Mapping[str, Judged], which: int) -> dict[str, float]:
    ratios: dict[str, float] = {}
    for family in families(column, layers):
        usable = [s for s in family if 0 < column[s] < math.inf]
        if usable:
            ratios |= {s: column[s] / column[usable[which]] for s in family}
    return ratios
