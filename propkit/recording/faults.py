"""Why probes are off: said once, and kept in the run."""

from collections.abc import Iterable, Mapping

from propkit.notices import say


class Faults(dict[str, str]):
    """Probe -> what went wrong in it, and at which step."""

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
        off = "" if last else " and is off from now on"
        say(f"probe {probe!r} failed at step {step}{off}: {why}")

    def of_schedules(self, step: int, failed: Mapping[str, Iterable[str]]) -> None:
        """Schedules raised: why -> whose they are."""
        for why, probes in failed.items():
            self |= dict.fromkeys(probes, f"step {step}: its schedule raised {why}")
            names = ", ".join(map(repr, probes))
            say(f"the schedule of {names} raised {why} at step {step}, so that is off from now on")
