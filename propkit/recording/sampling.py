"""Which probes are measured in a step: their schedules, thinned where there is a budget, and what that costs."""

from collections.abc import Collection, Mapping

from propkit.recording.budget import Budget, Overhead, kind_of
from propkit.schedules import Schedule


class Sampling:
    """The sampling of one recording.

    Args:
        schedules: Of each probe.
        fixed: Probes with a schedule of their own, which a budget leaves as it is.
        budget: Share of the step that recording may take; None: any.

    Attributes:
        schedules: Of each probe.
        overhead: What measuring costs.
        budget: What keeps it under a share of the step.

    Raises:
        ValueError: `budget` is no such share.
    """

    def __init__(
        self,
        schedules: Mapping[str, Schedule],
        fixed: Collection[str],
        budget: float | None,
    ) -> None:
        self.schedules = dict(schedules)
        self.overhead = Overhead()
        self.budget = None if budget is None else Budget(budget, fixed, self.overhead)
        self._asked = dict(schedules)
        self._fixed = frozenset(fixed)
        self._failed: dict[str, list[str]] = {}

    def due(self, step: int) -> frozenset[str]:
        """The probes to measure in a step; to be called once for each step.

        A schedule that raises, as it is the user's, is not asked again; see `failed`.
        """
        names = set()
        for name, when in self._asked.items():
            try:
                if when(step):
                    names.add(name)
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
                self._failed.setdefault(why, []).append(name)
        due = frozenset(names)
        return due if self.budget is None else self.budget.thin(due)

    def failed(self) -> dict[str, list[str]]:
        """Why schedules have raised since this was called last -> whose they are."""
        if not self._failed:
            return self._failed
        failed, self._failed = self._failed, {}
        for name in (name for names in failed.values() for name in names):
            del self._asked[name]
        return failed

    def lap(self, active: Collection[str], began: float | None, following: int | None) -> None:
        """End a step.

        Args:
            active: What was measured in it.
            began: See `Overhead.lap`.
            following: The next step; None: several ranks decide on the budget together.
        """
        self.overhead.lap(kind_of(active, self._fixed), began)
        if self.budget is not None and following is not None:
            self.budget.consider(following)
