"""Judging the layers of a run by what was recorded, with the thresholds of `propkit.measure`."""

import math
from collections.abc import Mapping

from propkit.diagnosis.verdict import NAN, Evidence, Thresholds, judge
from propkit.report.layer import Layer


def compare(columns: dict[str, dict[str, float]], layers: Mapping[str, Layer]) -> None:
    """Add the columns that compare values: with the last layer of its kind, of a block's ends."""
    errors = columns.get("error_moment", {})
    ratios = columns["error_ratio"] = {}
    for family in _families(errors, layers):
        usable = [s for s in family if 0 < errors[s] < math.inf]
        if usable:
            ratios |= {s: errors[s] / errors[usable[-1]] for s in family}
    below = columns.get("input", {})
    columns["gradient_norm_ratio"] = {
        s: out / below[s] for s, out in columns.get("output", {}).items() if below.get(s)
    }


def judge_layers(
    columns: Mapping[str, dict[str, float]], layers: dict[str, Layer], thresholds: Thresholds
) -> None:
    """Judge the layers whose output or error was measured, as `propkit.measure` does."""

    def value(name: str, site: str) -> float:
        return columns.get(name, {}).get(site, NAN)

    def moment(name: str, site: str) -> float:
        measured = value(name, site)
        there = site in columns.get(name, {})
        return math.inf if there and math.isnan(measured) else measured

    signal, weights = columns.get("activation_moment", {}), columns.get("weight_norm", {})
    relative: dict[str, float] = {}
    for family in _families(
        {s: q for s, q in signal.items() if s in weights or not weights}, layers
    ):
        usable = [s for s in family if 0 < signal[s] < math.inf]
        if usable:
            relative |= {s: signal[s] / signal[usable[0]] for s in family}
    readout = max((layer.depth for layer in layers.values()), default=0)
    for site, layer in layers.items():
        if site not in columns.get("error_moment", {}) and site not in signal:
            continue
        shape = layer.shape
        matrix = ((shape or (1,))[0], math.prod(shape[1:])) if layer.depth < readout else (0, 0)
        evidence = Evidence(
            error_moment=moment("error_moment", site),
            error_ratio=value("error_ratio", site),
            activation_moment=moment("activation_moment", site),
            activation_ratio=relative.get(site, NAN),
            dead=value("dead", site),
            effective_rank=value("effective_rank", site),
            mean_cosine=value("mean_cosine", site),
            weight_norm=value("weight_norm", site.partition("#")[0]),
            observations=_observations(layer),
            matrix=matrix,
        )
        layer.findings = judge(evidence, thresholds)


def _observations(layer: Layer) -> int:
    """Samples times positions that are seen of one unit."""
    shape = layer.shape
    if not shape:
        return 0
    channels_first = "Conv" in layer.type or len(shape) not in (2, 3)
    units = shape[1 if channels_first and len(shape) > 1 else -1]
    return math.prod(shape) // units if units else 0


def _families(values: Mapping[str, float], layers: Mapping[str, Layer]) -> list[list[str]]:
    """Sites with a value, in the order of execution, by the number of dimensions of their outputs."""
    families: dict[int, list[str]] = {}
    for site in sorted(values, key=lambda s: layers[s].depth):
        families.setdefault(len(layers[site].shape), []).append(site)
    return list(families.values())
