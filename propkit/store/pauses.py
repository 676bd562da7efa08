"""Pauses of a thread that writes in the background: the training must not wait long for the interpreter.

Python runs one thread at a time. The training gets its turn when the writing thread lets go, or after 5 ms; and a
system call of some microseconds is over before the training has woken up. So the writing thread pauses now and then.
"""

import threading
import time

STRETCH = 1.5e-4
"""Seconds after which a pause is due."""

PAUSE = 1e-4
"""Seconds that it takes at least."""


class _Here(threading.local):
    resumed: float | None = None


_here = _Here()


def in_background() -> None:
    """Say that this thread works in the background: from now on `pause` does what it says."""
    _here.resumed = time.perf_counter()


def pause() -> None:
    """Let other threads run, if one is due; to be called between stretches of less than 0.1 ms."""
    if _here.resumed is not None and time.perf_counter() - _here.resumed > STRETCH:
        time.sleep(PAUSE)
        _here.resumed = time.perf_counter()
