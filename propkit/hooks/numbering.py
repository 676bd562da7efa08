"""Numbers of the calls in a forward, counted while graphs are traced: they do not change when a graph runs."""

import torch


class Numbering:
    """Counts calls of sites, and layers, during traces.

    A trace may be given up and begun again, and one function may be traced several times (for another batch size, for
    unsampled steps): each trace of it begins with the numbers that its first one began with. A forward that is cut
    into several graphs goes on counting, after those that were made.

    Attributes:
        sites: Names of all sites that a trace went through.
    """

    def __init__(self) -> None:
        self.sites: set[str] = set()
        self._trace: object = None
        self._calls: dict[str, int] = {}
        self._open: dict[str, list[tuple[int, str]]] = {}
        self._starts: dict[object, tuple[dict[str, int], int]] = {}
        self._before: tuple[dict[str, int], int, int] = {}, 0, 0

    def attempt(self, graphs: int, depth: int) -> None:
        """The compiler, which has made so many graphs, begins another one; so many layers are before it."""
        self._before = dict(self._calls), graphs, depth

    def attempted(self, graphs: int, depth: int) -> int:
        """It has ended, with so many graphs; the number of layers that are behind it."""
        calls, before, start = self._before
        if graphs != before:
            return depth
        # It gave up: what it went through is going to be called, or traced, by itself.
        self._calls = dict(calls)
        self._open.clear()
        return start

    def restart(self) -> None:
        """A forward of the model begins."""
        self._calls.clear()
        self._open.clear()

    def follow(self, depth: int) -> int:
        """Notice a new trace; the number of layers before it, `depth` if it goes on."""
        trace = torch._guards.CompileContext.current_trace_id()
        if trace is None or trace == self._trace:
            return depth
        self._trace = trace
        self._open.clear()
        frame = trace.compile_id.frame_id
        calls, depth = self._starts.setdefault(frame, (dict(self._calls), depth))
        self._calls = dict(calls)
        return depth

    def enter(self, site: str, shape: str) -> int:
        """A call of the site begins, with this shape of its input; returns its number."""
        self.sites.add(site)
        number = self._calls.get(site, 0)
        self._calls[site] = number + 1
        self._open.setdefault(site, []).append((number, shape))
        return number

    def leave(self, site: str) -> tuple[int, str]:
        """The call ends: its number and its input's shape."""
        opened = self._open.get(site)
        return opened.pop() if opened else (max(self._calls.get(site, 0) - 1, 0), "")
