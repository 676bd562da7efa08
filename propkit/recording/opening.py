"""Where a recording goes: a new run in memory or in a store, or one that is continued."""

import functools
import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from propkit.notices import say
from propkit.probe import Probe
from propkit.recording.ranks import Ranks
from propkit.recording.resume import BEGINNING, Start, check_same, continuing, start_of
from propkit.sites import Site
from propkit.store.place import Source, is_local

if TYPE_CHECKING:
    from propkit.store.protocol import Writer
    from propkit.store.resume import Left
    from propkit.store.run import Run


class Opened(NamedTuple):
    """A run that is ready: its writer, how to open it for reading, where the recording begins, and how to undo it.

    A run that was created is removed by `undo`; one that was to go on is closed as failed.
    """

    writer: "Writer"
    open_run: "Callable[[], Run]"
    start: Start
    undo: "Callable[[], None]" = lambda: None


@dataclass(frozen=True)
class Target:
    """Where to, and how: the arguments of `propkit.attach` with these names.

    Raises:
        ValueError: They contradict each other.
    """

    store: Source | None
    overwrite: bool
    resume: bool
    step: int | None
    takeover: bool
    durable: bool
    compact: bool = False

    def __post_init__(self) -> None:
        if self.overwrite and self.resume:
            raise ValueError(
                "attach: overwrite=True replaces the run and resume=True continues it; give one of them"
            )
        if self.resume and self.store is None:
            raise ValueError(
                "attach: resume=True continues the run in a store, and none is given; write "
                "attach(model, 'run.zarr', resume=True)"
            )
        if not self.resume and (self.step is not None or self.takeover):
            raise ValueError(
                "attach: step= and takeover= say how to continue a run; add resume=True"
            )
        number = isinstance(self.step, int) and not isinstance(self.step, bool) and self.step >= 0
        if self.step is not None and not number:
            raise ValueError(
                f"attach: step={self.step!r}: expected the number of steps completed, an integer from 0 on"
            )

    def open(
        self,
        attributes: dict[str, Any],
        probes: Sequence[Probe],
        sites: Sequence[Site],
        ranks: Ranks | None,
    ) -> Opened:
        """Open the run; in a training by several processes rank 0 does, and the others hear where it begins.

        Args:
            attributes: Root attributes of a run that begins here and now; the list ``notes`` gets those of the run.
            probes: What is measured.
            sites: And where.
            ranks: The processes.

        Raises:
            OSError, ValueError: See `propkit.attach`.
            RuntimeError: On the other ranks, if rank 0 could not open it.
        """
        if ranks is None:
            return self._open(attributes, probes, sites)
        if not ranks.writes:
            start, error = ranks.told()
            if error:
                raise RuntimeError(f"attach: rank 0 cannot record ({error})")
            return _in_memory(attributes, start)
        try:
            opened = self._open(attributes, probes, sites)
        except Exception as error:
            ranks.told((None, f"{type(error).__name__}: {error}"))
            raise
        ranks.told((opened.start, ""))
        return opened

    def _open(
        self, attributes: dict[str, Any], probes: Sequence[Probe], sites: Sequence[Site]
    ) -> Opened:
        if self.store is None:
            return _in_memory(attributes, BEGINNING)
        if not is_local(self.store):
            return self._elsewhere(self.store, attributes, probes, sites)
        if self.resume and (self.step or os.path.lexists(Path(self.store).expanduser())):
            return self._continue(self.store, attributes, probes, sites)
        from propkit.store import run as stores
        from propkit.store.writer import ZarrWriter

        # It takes 0.1 s, for which the first flush would hold up the training.
        importlib.import_module("zarr")
        writer = ZarrWriter.create(self.store, attributes, self.overwrite, self.durable)
        return Opened(writer, lambda: stores.open(writer.path), BEGINNING, writer.discard)

    def _elsewhere(
        self,
        store: Source,
        attributes: dict[str, Any],
        probes: Sequence[Probe],
        sites: Sequence[Site],
    ) -> Opened:
        from propkit.store import run as stores
        from propkit.store.object_resume import take_up_objects
        from propkit.store.object_writer import ObjectWriter

        if self.durable:
            raise ValueError(
                "attach: durable= is for runs in a directory of this machine; elsewhere the store keeps what it has "
                "acknowledged, leave it out"
            )
        if self.resume:
            try:
                left = take_up_objects(store, self.takeover)
            except FileNotFoundError:
                if self.step:
                    raise
            else:
                new = self._new(left, attributes, probes, sites)
                writer = ObjectWriter.resume(left, new["steps"], new)
                _tell(left, attributes, new)
                start = start_of(left, new)
                return Opened(writer, lambda: stores.open(store), start, _given_up(writer))
        writer = ObjectWriter.create(store, attributes, self.overwrite)
        return Opened(writer, lambda: stores.open(store), BEGINNING, writer.discard)

    def finish(self) -> None:
        """Compress a run that is complete."""
        if self.compact and self.store is not None and is_local(self.store):
            from propkit.store.compact import compact, worthwhile

            if worthwhile(self.store):
                compact(self.store)

    def _continue(
        self,
        store: str | os.PathLike[str],
        attributes: dict[str, Any],
        probes: Sequence[Probe],
        sites: Sequence[Site],
    ) -> Opened:
        from propkit.store import run as stores
        from propkit.store.resume import take_up
        from propkit.store.writer import ZarrWriter

        left = take_up(store, self.takeover)
        try:
            new = self._new(left, attributes, probes, sites)
            writer = ZarrWriter.resume(left, new["steps"], new, self.durable)
        except BaseException:
            left.let_go()
            raise
        _tell(left, attributes, new)
        start = start_of(left, new)
        return Opened(writer, lambda: stores.open(writer.path), start, _given_up(writer))

    def _new(
        self,
        left: "Left",
        attributes: dict[str, Any],
        probes: Sequence[Probe],
        sites: Sequence[Site],
    ) -> dict[str, Any]:
        """Root attributes to set in a run that goes on.

        Raises:
            ValueError: It is a run of something else.
        """
        check_same(left, probes, sites)
        return continuing(left, attributes, left.steps if self.step is None else self.step)


def _tell(left: "Left", attributes: dict[str, Any], new: dict[str, Any]) -> None:
    """Say what there is to be said of a run that goes on, and keep its notes with those of now."""
    for note in new["notes"][len(left.attributes.get("notes", [])) :]:
        say(f"{left.name}: {note}")
    mine: list[str] = attributes["notes"]
    mine[:] = [*new["notes"], *(note for note in mine if note not in new["notes"])]


def _given_up(writer: "Writer") -> "Callable[[], None]":
    return functools.partial(writer.close, "failed", "attach failed before the run went on")


def _in_memory(attributes: dict[str, Any], start: Start) -> Opened:
    from propkit.store.memory import MemoryWriter
    from propkit.store.run import Run

    memory = MemoryWriter(attributes)
    return Opened(memory, lambda: Run.from_memory(memory), start)
