"""The buffers of all sites: made while a graph is traced, read and emptied once per sampled step."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch

from propkit.hooks.accumulators import Reading, empty_buffer, make_reading, read
from propkit.hooks.values import GRADIENTS
from propkit.probe import Measurement

if TYPE_CHECKING:
    from propkit.hooks.traced import SiteHook


class Entry(NamedTuple):
    """One buffer: measurement `k` at call `number` of one end of a site."""

    hook: "SiteHook"
    number: int
    k: int

    @property
    def buffer(self) -> torch.Tensor:
        """The buffer itself, which the graph knows as an attribute of the hook."""
        held: torch.Tensor = getattr(self.hook, f"b{self.number}_{self.k}")
        return held

    @property
    def measurement(self) -> Measurement:
        """What is measured."""
        return self.hook.here[self.k][1]

    @property
    def rules(self) -> list[str]:
        """Reduction of each variable."""
        return [self.measurement.describe(name)[1] for name in self.hook.variables[self[1:]]]


class Buffers:
    """All buffers of one recorder, and the counters that tell which sites' graphs ran."""

    def __init__(self) -> None:
        self.hooks: list[SiteHook] = []
        self.entries: dict[Entry, None] = {}
        self._seen: dict[
            tuple[SiteHook, int], int
        ] = {}  # the version of a counter that was seen last
        self._readings: dict[tuple[Entry, ...], Reading] = {}

    def allocate(
        self, hook: "SiteHook", number: int, k: int, names: tuple[str, ...], device: torch.device
    ) -> str:
        """Make the buffers of a measurement, at all sites that have it: blocks of one kind may share one graph.

        Returns:
            The reductions of the variables, separated by commas.
        """
        m = hook.here[k][1]
        rules = [m.describe(name)[1] for name in names]
        for other in self.hooks:
            if other.end != hook.end or k >= len(other.here) or other.here[k][1] is not m:
                continue
            entry = Entry(other, number, k)
            new = entry not in self.entries
            if new or (
                other is hook
                and (entry.buffer.device != device or other.variables[number, k] != names)
            ):
                setattr(other, f"b{number}_{k}", empty_buffer(rules, device))
                other.variables[number, k] = names
                self.entries[entry] = None
                self._readings.clear()
        return ",".join(rules)

    def count(self, hook: "SiteHook", number: int, device: torch.device) -> None:
        """Make the counters of a call, at all sites."""
        for other in self.hooks:
            if other.end == hook.end and (other is hook or not hasattr(other, f"c{number}")):
                setattr(other, f"c{number}", torch.zeros((), device=device))
                self._seen[other, number] = 0

    def ran(self) -> set[tuple[str, int]]:
        """Sites and calls whose graph ran since this was asked last; the device is not waited for."""
        ran = set()
        for (hook, number), before in self._seen.items():
            version = getattr(hook, f"c{number}")._version
            if version != before:
                ran.add((hook.site.name, number))
                self._seen[hook, number] = version
        return ran

    def clear(self) -> None:
        """Forget what was added so far."""
        for _ in self.take(self.entries, None):
            pass

    def take(
        self, entries: Iterable[Entry], scale: torch.Tensor | None
    ) -> Iterator[tuple[Entry, str, torch.Tensor, torch.Tensor | float]]:
        """Read buffers and empty them: entry, variable, value, 0-d, NaN where nothing was added, and its weight."""
        by_device: dict[torch.device, list[Entry]] = {}
        for e in entries:
            by_device.setdefault(e.buffer.device, []).append(e)
        for device, here in by_device.items():
            key = tuple(here)
            if key not in self._readings:
                degrees = [_degree(e.measurement) for e in here]
                self._readings[key] = make_reading([e.rules for e in here], degrees, device)
            values, weights = map(iter, read([e.buffer for e in here], self._readings[key], scale))
            for e in here:
                weight = next(weights)
                for name, rule in zip(e.hook.variables[e.number, e.k], e.rules, strict=True):
                    yield e, name, next(values), weight if rule == "mean" else 1.0


def _degree(m: Measurement) -> int:
    """Power of the loss with which the values grow."""
    return (m.degree or 0) if GRADIENTS.intersection(m.signals) else 0
