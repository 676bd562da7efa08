"""What the measured numbers say about a layer: vanishing, exploding, dead, singular or healthy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import NamedTuple

HEALTHY = "healthy"
VERDICTS = ("exploding", "dead", "vanishing", "singular", HEALTHY)
"""The most severe first: what diverges, what never recovers, what learns slowly, what is badly conditioned."""

NAN = math.nan


@dataclass(frozen=True)
class Thresholds:
    """From where on a layer is called unhealthy. Ratios are of mean squares, so 1e3 is a factor of 32 in amplitude.

    The defaults are three decades for errors, because healthy networks stay well within them and unhealthy ones pass
    them by far: orthogonal and residual networks keep the error within one or two decades from end to end, a plain
    network with batch normalisation multiplies it by up to π/(π − 1) = 1.47 per layer and so passes 1e3 after some
    twenty layers, about where such networks cease to train well.

    Attributes:
        vanishing: Least error moment of a layer relative to the reference layer, the last one whose output has as many
            dimensions (so that pooling and flattening are not counted as propagation).
        exploding: Largest error moment relative to the reference layer.
        vanishing_signal: Least mean square of a layer's output relative to the first one whose output has as many
            dimensions. Wider than for errors: the scale of a signal does no harm by itself, as the next
            normalisation removes it; six decades are a factor of a thousand in amplitude.
        exploding_signal: Largest mean square of a layer's output relative to that one.
        dead: Share of dead units from which a layer is dead. Half of the units of a ReLU network are zero for one
            sample, but next to none for all samples of a batch; where all samples look like one (singular), they are
            called dead halfway from this share to 1.
        effective_rank: Effective rank of the representation from which down a layer is singular. At 1.5 some 93 % of
            the energy lies in one direction: all samples look alike, as in a 100-layer ReLU network without
            normalisation (1.1 and less); with batch normalisation its layers stay above 10.
        mean_cosine: Mean cosine of the samples from which on a layer is singular. Positive inputs and ReLU outputs have
            0.3 to 0.8 in healthy networks. What the last layer returns is not judged: logits are few and much alike
            before training.
        evidence: Least number of observations: samples times positions for a unit to be called dead, samples and units
            for conditioning. One sample alone kills half of the units and has rank one.
    """

    vanishing: float = 1e-3
    exploding: float = 1e3
    vanishing_signal: float = 1e-6
    exploding_signal: float = 1e6
    dead: float = 0.5
    effective_rank: float = 1.5
    mean_cosine: float = 0.95
    evidence: int = 8

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            kind, name = (
                (Integral, "a whole number") if f.name == "evidence" else (Real, "a number")
            )
            if isinstance(value, bool) or not isinstance(value, kind):
                raise TypeError(f"{f.name}: expected {name}, found {value!r}")
        for low, high in (
            ("vanishing", "exploding"),
            ("vanishing_signal", "exploding_signal"),
        ):
            if not 0 <= getattr(self, low) < 1 < getattr(self, high):
                raise ValueError(
                    f"expected 0 <= {low} < 1 < {high}, found {getattr(self, low)} and {getattr(self, high)}"
                )
        for field, expected, holds in (
            ("dead", "a share above 0 and up to 1", 0 < self.dead <= 1),
            ("effective_rank", "a finite number from 0 on", 0 <= self.effective_rank < math.inf),
            ("mean_cosine", "a cosine, -1 to 1", -1 <= self.mean_cosine <= 1),
            ("evidence", "1 or more", self.evidence >= 1),
        ):
            if not holds:
                raise ValueError(f"{field}: expected {expected}, found {getattr(self, field)}")


def checked(thresholds: object) -> Thresholds:
    """The thresholds, None standing for the defaults.

    Raises:
        TypeError: They are something else.
    """
    if thresholds is None:
        return Thresholds()
    if not isinstance(thresholds, Thresholds):
        raise TypeError(
            f"thresholds: expected a Thresholds, found {type(thresholds).__name__}; for other values than the "
            "defaults: from propkit.diagnosis.verdict import Thresholds, then thresholds=Thresholds(dead=0.7)"
        )
    return thresholds


@dataclass(frozen=True)
class Evidence:
    """What is known of one layer; NaN where it was not measured.

    Attributes:
        error_moment: Mean square of the error at its output.
        error_ratio: That moment relative to the reference layer's.
        activation_moment: Mean square of its output.
        activation_ratio: That moment relative to the first layer's.
        dead: Share of dead units.
        effective_rank: Effective rank of its output, samples by units.
        mean_cosine: Mean cosine of the samples.
        weight_norm: Norm of its weight.
        observations: Samples times positions, per unit.
        matrix: Samples and units of the representation; (0, 0) where its conditioning is not to be judged.
    """

    error_moment: float = NAN
    error_ratio: float = NAN
    activation_moment: float = NAN
    activation_ratio: float = NAN
    dead: float = NAN
    effective_rank: float = NAN
    mean_cosine: float = NAN
    weight_norm: float = NAN
    observations: int = 0
    matrix: tuple[int, int] = (0, 0)


class Finding(NamedTuple):
    """A verdict with its reason."""

    verdict: str
    reason: str


def judge(e: Evidence, t: Thresholds) -> list[Finding]:
    """What is wrong with a layer, the most severe first; empty where nothing is.

    >>> judge(Evidence(error_ratio=2e4, dead=0.75, observations=64), Thresholds())[0]
    Finding(verdict='exploding', reason='error moment 2e+04 x that of the last layer')
    >>> judge(Evidence(error_ratio=0.5), Thresholds())
    []
    """
    conditioning = _conditioning(e, t)
    dead = (1 + t.dead) / 2 if conditioning else t.dead
    found = [*_errors(e, t), *_signal(e, t, dead), *conditioning]
    unique = {f.verdict: f for f in reversed(found)}
    return sorted(unique.values(), key=lambda f: VERDICTS.index(f.verdict))


def _errors(e: Evidence, t: Thresholds) -> list[Finding]:
    if _overflown(e.error_moment):
        return [Finding("exploding", "the error is not finite")]
    if e.error_moment == 0:
        return [Finding("vanishing", "the error is exactly zero: dead or zero weights above?")]
    relative = f"error moment {e.error_ratio:.3g} x that of the last layer"
    if e.error_ratio > t.exploding:
        return [Finding("exploding", relative)]
    return [Finding("vanishing", relative)] if e.error_ratio < t.vanishing else []


def _signal(e: Evidence, t: Thresholds, dead: float) -> list[Finding]:
    if _overflown(e.activation_moment):
        return [Finding("exploding", "the output is not finite")]
    if e.weight_norm == 0:  # on purpose: zero initialisation of residual branches, adapters
        return []
    found = []
    if e.dead >= dead and e.observations >= t.evidence:
        found.append(Finding("dead", f"{e.dead:.0%} of the units are zero for the whole batch"))
    relative = f"mean square of the output {e.activation_ratio:.3g} x that of the first layer"
    if e.activation_ratio > t.exploding_signal:
        found.append(Finding("exploding", relative))
    if e.activation_ratio < t.vanishing_signal:
        found.append(Finding("vanishing", relative))
    return found


def _conditioning(e: Evidence, t: Thresholds) -> list[Finding]:
    if min(e.matrix) < t.evidence:
        return []
    if e.mean_cosine >= t.mean_cosine:
        return [Finding("singular", f"mean cosine of the samples {e.mean_cosine:.3f}")]
    if e.effective_rank <= t.effective_rank:
        return [Finding("singular", f"effective rank {e.effective_rank:.2f}")]
    return []


def _overflown(moment: float) -> bool:
    # NaN from the table is "not measured"; a NaN that was measured arrives as infinity.
    return math.isinf(moment)


def overall(sites: Sequence[str], findings: Sequence[Sequence[Finding]]) -> str:
    """One line for the whole model: the most severe problem, where it begins, and what else there is.

    Args:
        sites: The layers that were judged, in the order of execution.
        findings: What `judge` found at each.

    >>> overall(["a", "b"], [[Finding("dead", "80 % of ...")], []])
    'dead: 1 of 2 layers, first a (80 % of ...)'
    """
    parts: list[str] = []
    for verdict in VERDICTS:
        hits = [
            (s, f)
            for s, fs in zip(sites, findings, strict=True)
            for f in fs
            if f.verdict == verdict
        ]
        if hits:
            site, first = hits[0]
            where = f"{verdict}: {len(hits)} of {len(sites)} layers"
            parts.append(where if parts else f"{where}, first {site} ({first.reason})")
    if not parts:
        return f"{HEALTHY}: nothing found at {len(sites)} layers" if sites else "nothing was judged"
    return "; ".join(parts)
