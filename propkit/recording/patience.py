"""A writer that waits for better times: what cannot be written now is kept and tried again at the next commit."""

import functools
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from propkit.schema import Group
    from propkit.store.protocol import Writer
    from propkit.store.table import Floats, Steps

HELD_BYTES = 1 << 28
"""What is kept in memory at most while the disk is full; after that the recording ends."""


SLOW = 1.0
"""Seconds from which a try that failed took long."""

PAUSE = 10
"""How many times as long nothing is tried then."""


class PatientWriter:
    """Stands before another writer, with its methods (`propkit.store.protocol.Writer`).

    A disk that is full, or a network that is down, need not end the recording: `commit` returns, `trouble` says what is
    wrong, and nothing is lost while there is memory for it. A try that took seconds to fail is repeated after ten
    times as long at the earliest: a network that is down does not take the time of the training.

    Args:
        writer: The writer of the store.

    Attributes:
        trouble: Why the last commit failed; None if it did not.
    """

    def __init__(self, writer: "Writer") -> None:
        self.trouble: OSError | None = None
        self._writer = writer
        self._waiting: deque[Callable[[], None]] = deque()
        self._held = 0
        self._not_before = 0.0

    def define(self, group: "Group") -> None:
        """See `Writer.define`."""
        self._do(functools.partial(self._writer.define, group))

    def append(self, group: str, step: "Steps", columns: "Mapping[str, Floats]") -> None:
        """See `Writer.append`; the arrays are not copied while they wait."""
        self._held += step.nbytes + sum(column.nbytes for column in columns.values())
        self._do(functools.partial(self._writer.append, group, step, columns))

    def update(self, **attributes: object) -> None:
        """See `Writer.update`."""
        self._writer.update(**attributes)

    def commit(self) -> None:
        """Write all that waits, and commit it; if that fails, later."""
        begun = time.monotonic()
        if self.trouble is not None and begun < self._not_before and self._held <= HELD_BYTES:
            return
        try:
            self._catch_up()
            self._writer.commit()
        except OSError as error:
            took = time.monotonic() - begun
            self._not_before = begun + took + (PAUSE * took if took > SLOW else 0)
            self._met(error)
        else:
            self.trouble, self._held = None, 0

    def close(self, state: str, reason: str = "") -> None:
        """See `Writer.close`; here an error is one."""
        self._catch_up()
        self._writer.close(state, reason)

    def _do(self, call: Callable[[], None]) -> None:
        if not self._waiting:
            try:
                call()
                return
            except OSError as error:
                self._met(error)
        self._waiting.append(call)  # in order: a group's rows come after its definition

    def _catch_up(self) -> None:
        while self._waiting:
            self._waiting[0]()
            self._waiting.popleft()

    def _met(self, error: OSError) -> None:
        self.trouble = error
        if isinstance(error, FileNotFoundError) or self._held > HELD_BYTES:
            raise error  # the run is gone, or it takes too long
