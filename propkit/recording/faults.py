"""Why probes are off: said once, and kept in the run."""

from collections.abc import Iterable, Mapping
from typing import Self

from propkit.notices import say


class Faults(dict[str, str]):
    """Probe -> what went wrong in it, and at which step.

    Attributes:
        since: Probe -> that step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.since: dict[str, int] = {}

    def copy(self) -> Self:
        """Those that are known now."""
        copied = type(self)()
        copied.update(self)
        copied.since.update(self.since)
        return copied

    def met(self, step: int, probe: str, error: Exception, last: bool) -> None:
        """A probe failed.

        Args:
            step: When.
            probe: Its name.
            error: How.
            last: Whether the recording is over.
        """
        why = f"{type(error).__name__}: {error}"
        self[probe] = f"step {step}: {why}"
        self.since.setdefault(probe, step)
        off = "" if last else " and is off from now on"
        say(f"probe {probe!r} failed at step {step}{off}: {why}")

    def of_schedules(self, step: int, failed: Mapping[str, Iterable[str]]) -> None:
        """Schedules raised: why -> whose they are."""
        for why, probes in failed.items():
            self |= dict.fromkeys(probes, f"step {step}: its schedule raised {why}")
            self.since |= dict.fromkeys(probes, step)
            names = ", ".join(map(repr, probes))
            say(f"the schedule of {names} raised {why} at step {step}, so that is off from now on")
