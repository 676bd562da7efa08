"""What is on its way to the store: rows and curves on their devices, notes, faults, and the thread that writes them."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from propkit.hooks.taps import Place
from propkit.notices import say
from propkit.recording.background import Inline, Worker
from propkit.recording.budget import Budget, Overhead, costs
from propkit.recording.curves import Curves
from propkit.recording.faults import Faults
from propkit.recording.flush import write_flush
from propkit.recording.health import Health
from propkit.recording.layout import Layout
from propkit.recording.patience import PatientWriter
from propkit.recording.ranks import Ranks
from propkit.recording.resume import BEGINNING, Start
from propkit.recording.rows import Row, events
from propkit.schema import Group

if TYPE_CHECKING:
    from propkit.store.protocol import Writer

FLUSH_ROWS = 64
FLUSH_SECONDS = 10.0
FLUSH_BYTES = 1 << 24
"""Bytes of spectra that are held on the device at most, but for one row more."""
DISCOVERY_FLUSHES = 4
"""How long to look for the places of sites that have given no value yet."""


class Outbox:
    """Buffers rows and curves, and hands them to the writer in the background.

    Args:
        writer: Where they go.
        layout: Which columns there are.
        threaded: Whether to write in a thread; in memory there is nothing to wait for.
        notes: Remarks on what was left out, so far.
        ranks: The processes that measure shares of the batch.
        start: Where the recording begins.
        finish: What is done to a run that is complete, when it has been closed.
    """

    def __init__(
        self,
        writer: "Writer",
        layout: Layout,
        threaded: bool,
        notes: list[str],
        ranks: Ranks | None,
        start: Start = BEGINNING,
        finish: Callable[[], None] = lambda: None,
    ) -> None:
        self.rows: list[Row] = []
        self.curves = Curves(start.step, start.curves)
        self.health = Health(start.not_finite)
        self.faults = Faults()
        self._costs: Callable[[], Mapping[str, object]] = dict
        self._budget: Budget | None = None
        self._earlier_faults = start.faults
        self._layout = layout
        self._notes = notes
        self._ranks = ranks
        self._steps = start.step
        self._finish = finish
        self._writer = PatientWriter(writer)
        self._worker: Worker | Inline = Worker("propkit-writer") if threaded else Inline()
        self._flushed = time.monotonic()
        self._flushes = 0
        self._bytes = 0  # of spectra, on the device
        self._troubled = False  # and it was said

    @property
    def error(self) -> Exception | None:
        """Why the run cannot be written any more."""
        return self._worker.error

    @property
    def trouble(self) -> OSError | None:
        """Why what was flushed last is not written yet; it is tried again at the next flush."""
        return self._writer.trouble

    def watch(self, overhead: Overhead, budget: Budget | None) -> None:
        """Keep in the run what the recording costs; with several ranks, see to it that they keep one budget."""
        self._costs = lambda: costs(overhead, budget)
        self._budget = budget

    def note(self, text: str) -> None:
        """Say something once, and keep it in the run."""
        if text not in self._notes:
            self._notes.append(text)
            say(text)

    def note_trouble(self) -> None:
        """Say that rows cannot be written for now, if it has just begun."""
        trouble = self.trouble
        if trouble is not None and not self._troubled:
            self.note(
                f"step {self._steps}: {trouble}; the rows are kept in memory until they can be written"
            )
        self._troubled = trouble is not None

    def add(self, row: Row) -> None:
        """Take the row of a step."""
        self.rows.append(row)
        self._bytes += row.nbytes

    def due(self, wide: bool) -> bool:
        """Whether to flush now; with several ranks it may depend only on what all of them know alike.

        Args:
            wide: Whether spectra were to be measured in this step.
        """
        if self._ranks is not None:
            return len(self.rows) >= FLUSH_ROWS or wide
        waiting = len(self.rows) + len(self.curves)
        late = time.monotonic() - self._flushed > FLUSH_SECONDS
        return waiting >= FLUSH_ROWS or (waiting > 0 and late) or self._bytes >= FLUSH_BYTES

    def flush(
        self,
        places: Mapping[tuple[str, int], Place],
        steps: int,
        before: int | None,
        fixed: Callable[[], None] = lambda: None,
    ) -> None:
        """Hand what is buffered to the writer; the only transfer from the device.

        Args:
            places: What is known of the sites.
            steps: Number of steps completed.
            before: Leave the curves from this step on, which may still grow; None: write all.
            fixed: Called when all sites are known, as far as they ever will be.
        """
        self._flushed = time.monotonic()
        self._steps = steps
        agree = self._agreement(steps, last=before is None)
        groups: list[Group] = []
        if self.rows:
            groups = self._layout.new_groups(places)
            self._flushes += 1
            if self._flushes >= DISCOVERY_FLUSHES or not self._layout.silent():
                fixed()
            for key in self._layout.plan().strays:
                self.note(
                    f"{key.site} (call {key.call}) first gave {key.probe}/{key.variable} when other values of the "
                    "probe were written already, and there is no room between them: left out"
                )
        rows, self.rows, self._bytes = self.rows, [], 0
        curves, new_curves = self.curves.take(before)
        if new_curves is not None:
            groups.append(new_curves)
        if not (rows or curves.steps or groups) and self._ranks is None:
            return
        self._worker.put(
            functools.partial(
                write_flush,
                self._writer,
                groups,
                self._layout.plan(),
                rows,
                curves,
                events(rows),
                self._remarks(),
                self._ranks,
                self.health,
                self.faults.copy(),
                agree,
            )
        )

    def drain(self) -> None:
        """Wait until what was flushed is written."""
        self._worker.drain()

    def close(self, state: str, reason: str, known: Exception | None = None) -> Exception | None:
        """Write what was flushed, then end the run.

        Args:
            state: How it ends.
            reason: Why.
            known: A failure that was said already.

        Returns:
            Why rows could not be written, or the run not be closed; a warning says so.
        """
        silent = self._layout.silent()
        if silent and self._layout.reductions:
            self._notes.append(
                f"no value from {', '.join(silent)}: not called in a measured step (a part that is not used, or whose "
                "weight another module uses by itself), or reached by no gradient"
            )
        self._worker.stop()
        failure = self._worker.error
        if failure is not None and failure is not known:
            say(
                f"the last rows could not be written ({type(failure).__name__}: {failure}); what was committed is "
                "readable"
            )
        if failure is None and self._ranks is not None and state == "complete":
            try:
                self._ranks.part()
            except RuntimeError as error:
                say(f"not all ranks ended the run together ({error})")
        try:
            if failure is None:
                self._writer.update(**self._remarks())
                self._writer.close(state, reason)
            else:
                self._writer.close("failed", reason or str(failure)[:500])
        except Exception as error:
            say(
                f"the run could not be closed ({type(error).__name__}: {error}); what was committed is readable"
            )
            return failure or error
        if failure is None and state == "complete" and (self._ranks is None or self._ranks.writes):
            try:
                self._finish()
            except Exception as error:
                say(
                    f"the run could not be compacted ({type(error).__name__}: {error}); it is whole, as it was "
                    "written, and propkit.open(...).compact() tries again"
                )
        return failure

    def abandon(self) -> None:
        """End the thread; nothing more is written."""
        self._worker.stop()

    def _agreement(self, steps: int, last: bool) -> Callable[[], None]:
        """Adopt what rank 0 decided on the budget one flush ago, as all ranks do at this flush, and decide anew."""
        ranks, budget = self._ranks, self._budget
        if ranks is None or budget is None:
            return lambda: None
        decision = None
        if not last:
            self._worker.drain()  # what was flushed last, some steps ago
            agreed, ranks.agreed = ranks.agreed, None
            if agreed is not None:
                budget.adopt(
                    steps + 1, agreed
                )  # what is measured in the next step has been decided
            decision = budget.decide() if ranks.writes else None
        return functools.partial(ranks.agree, decision)

    def _remarks(self) -> dict[str, object]:
        return {
            "steps": self._steps,
            "notes": list(self._notes),
            "faults": self._earlier_faults | self.faults,
            **self._costs(),
        }
