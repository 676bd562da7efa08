"""What the recording costs, measured while it runs, and sampling that is widened until it costs no more than it may.

A step's time is that from its end back to the end of the step before. What a measured step takes longer than one in
which nothing is measured is what measuring costs, wherever in the step that is: in hooks, in copies, on the device if
the loop waits for it. Medians are compared, so that an evaluation or a checkpoint between two steps does not count.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

BARE, USUAL, FIXED = 0, 1, 2
"""Kinds of steps: nothing is measured; probes are whose sampling may be widened; others too."""

WINDOW = 32
"""Steps of each kind that are looked at: the last ones."""

ENOUGH = 8
"""Steps of a kind from which on their median is believed."""

CALM = 0.7
"""Sampling is narrowed again only if it then stays under this part of the budget: noise must not toggle it."""

WIDEST = 1 << 16
"""Factor at most."""


class Overhead:
    """Times of measured and of other steps.

    Args:
        clock: Seconds, from any origin.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.steps = [0, 0, 0]
        self._times: list[deque[float]] = [deque(maxlen=WINDOW) for _ in range(3)]
        self._own: deque[float] = deque(maxlen=WINDOW)
        self._flushing = 0.0
        self._last: float | None = None

    def lap(self, kind: int, began: float | None = None) -> None:
        """End a step.

        Args:
            kind: `BARE`, `USUAL` or `FIXED`.
            began: When the recorder's own part of its end began.
        """
        now = self.clock()
        if self._last is not None:
            self.steps[kind] += 1
            self._times[kind].append(now - self._last)
            if began is not None:
                self._own.append(now - began)
        self._last = now

    def flushed(self, seconds: float) -> None:
        """A flush took the training that long; the step under way does not count it as its own."""
        self._flushing += seconds
        if self._last is not None:
            self._last += seconds

    def known(self, kind: int) -> bool:
        """Whether enough steps of a kind were seen."""
        return len(self._times[kind]) >= ENOUGH

    @property
    def step(self) -> float:
        """Seconds of a step in which nothing is measured; of any step while there was none."""
        times = self._times[BARE] or self._times[USUAL] or self._times[FIXED]
        return statistics.median(times) if times else 0.0

    def cost(self, kind: int) -> float:
        """Seconds that measuring adds to a step of a kind, with its part of the flushes."""
        times = self._times[kind]
        if not times:
            return 0.0
        if self._times[BARE]:
            added = max(0.0, statistics.median(times) - self.step)
        else:
            added = statistics.median(self._own) if self._own else 0.0
        return added + self._flushing / max(1, self.steps[USUAL] + self.steps[FIXED])

    def report(self) -> dict[str, object]:
        """What the run remembers: ``seconds`` per measured step, and its ``share`` of the training's time."""
        added = {kind: self.cost(kind) for kind in (USUAL, FIXED)}
        measured = self.steps[USUAL] + self.steps[FIXED]
        spent = sum(self.steps[kind] * seconds for kind, seconds in added.items())
        bare = sum(self.steps) * self.step
        basis = (
            "measured steps against others"
            if self._times[BARE]
            else "the recorder at the end of steps, a lower bound: every step is measured"
        )
        return {
            "seconds": spent / measured if measured else 0.0,
            "share": spent / bare if bare else 0.0,
            "step_seconds": self.step,
            "measured_steps": measured,
            "other_steps": self.steps[BARE],
            "basis": basis,
        }


class Decision(NamedTuple):
    """A new factor, and the share that was found with the one before; None: it is tried, to have steps to compare."""

    factor: int
    share_found: float | None


class Budget:
    """Widens the sampling by powers of two until measuring costs no more than a share of the step.

    Every probe's due steps are thinned to each second, fourth... of them; those of probes with a schedule of their
    own, which are dear and rare on purpose, are left. Given the same times it decides the same.

    One process decides after each step (`consider`). Several ranks must measure the same steps: one of them decides
    (`decide`), and all adopt that at the same step (`adopt`).

    Args:
        share: Added time over the time of steps in which nothing is measured, such as 0.02.
        fixed: Probes whose sampling is left as it is.
        overhead: What is measured.

    Raises:
        ValueError: `share` is no number between 0 and 1.
    """

    def __init__(self, share: float, fixed: Collection[str], overhead: Overhead) -> None:
        if isinstance(share, bool) or not isinstance(share, float | int) or not 0 < share <= 1:
            raise ValueError(
                f"budget={share!r}: expected the share of the step that recording may take, such as 0.02"
            )
        self.factor = 1
        self.fixed = frozenset(fixed)
        self._share = float(share)
        self._overhead = overhead
        self._due: dict[str, int] = {}
        self._all = self._wanted = 0  # steps; those in which a probe that may be thinned was due
        self._decided = 0  # steps that had been measured at the last decision
        self._trial = False
        self._history: list[dict[str, object]] = []

    def thin(self, due: frozenset[str]) -> frozenset[str]:
        """Of the probes that are due in a step, those to measure; to be called once for each step."""
        self._all += 1
        self._wanted += not due <= self.fixed
        kept = set(due & self.fixed)
        for name in due - self.fixed:
            count = self._due.get(name, 0)
            self._due[name] = count + 1
            if count % self.factor == 0:
                kept.add(name)
        return frozenset(kept)

    def consider(self, step: int) -> None:
        """Widen or narrow the sampling from here on, if enough steps were measured since the last time.

        Args:
            step: The next step.
        """
        if decision := self.decide():
            self.adopt(step, decision)

    def decide(self) -> Decision | None:
        """What the factor should be by now; None if it is as it should be, or too little is known."""
        overhead = self._overhead
        if overhead.steps[USUAL] - self._decided < ENOUGH:
            return None
        if not overhead.known(BARE):
            return Decision(2, None) if self.factor == 1 else None
        self._decided = overhead.steps[USUAL]
        trial, self._trial = self._trial, False
        spent = overhead.cost(USUAL) * self._wanted / self._all
        whole = spent / overhead.step if overhead.step else 0.0  # the share without widening
        needed = _power(whole / self._share)
        if needed < self.factor and not trial:
            needed = min(self.factor, _power(whole / (CALM * self._share)))
        return Decision(needed, whole / self.factor) if needed != self.factor else None

    def adopt(self, step: int, decision: Decision) -> None:
        """Sample as was decided.

        Args:
            step: The first step for which `thin` has not been called yet.
            decision: See `decide`.
        """
        self.factor = decision.factor
        self._trial = decision.share_found is None
        self._decided = self._overhead.steps[USUAL]
        self._history.append({"step": step, **decision._asdict()})

    def report(self) -> dict[str, object]:
        """What the run remembers: the ``share``, the ``factor`` by now, and when and why it changed (``history``)."""
        return {
            "share": self._share,
            "factor": self.factor,
            "fixed": sorted(self.fixed),
            "history": [dict(change) for change in self._history],
        }


def kind_of(active: Collection[str], fixed: Collection[str]) -> int:
    """The kind of a step in which these probes are measured.

    >>> kind_of([], ["weight"]), kind_of(["activation"], ["weight"]), kind_of(["weight"], ["weight"])
    (0, 1, 2)
    """
    if not active:
        return BARE
    return USUAL if set(active).isdisjoint(fixed) else FIXED


def costs(overhead: Overhead, budget: Budget | None) -> Mapping[str, object]:
    """Root attributes of the run."""
    kept: dict[str, object] = {"overhead": overhead.report()}
    return kept if budget is None else {**kept, "budget": budget.report()}


def _power(ratio: float) -> int:
    """The smallest power of two that is no less than the ratio."""
    factor = 1
    while factor < ratio and factor < WIDEST:
        factor *= 2
    return factor
