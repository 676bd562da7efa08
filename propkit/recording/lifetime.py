"""How long a recording lasts: until it is ended, by the program's end at the latest, and in no forked process."""

import atexit
import concurrent.futures.thread  # noqa: F401 - what it does at the end comes after what is done here
import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Callable


class Lifetime:
    """Ends what nobody else has ended.

    Args:
        close: Ends it, in a state and for a reason. More calls do nothing.
        abandon: Forgets it in a forked process, which has its memory, but no thread and nothing to write.
    """

    def __init__(self, close: Callable[[str, str], None], abandon: Callable[[], None]) -> None:
        self._close = close
        self._abandon = abandon

    def begin(self) -> None:
        """From now on it has to be ended."""
        atexit.register(self.at_exit)
        _running.add(self)

    def over(self) -> None:
        """It has been ended."""
        atexit.unregister(self.at_exit)
        _running.discard(self)

    def end(self, error: BaseException | None) -> None:
        """Close it in the state that the end of the program or of a ``with`` block calls for."""
        if error is None:
            self._close("complete", "")
        elif isinstance(error, KeyboardInterrupt):
            self._close("interrupted", "KeyboardInterrupt")
        else:
            self._close("failed", f"{type(error).__name__}: {error}"[:500])

    def forked(self) -> None:
        """This is a copy in another process."""
        self.over()
        self._abandon()

    def at_exit(self) -> None:
        """The program ends."""
        self.end(getattr(sys, "last_exc", None) or getattr(sys, "last_value", None))


_running: weakref.WeakSet[Lifetime] = weakref.WeakSet()


def _forked() -> None:
    for lifetime in list(_running):
        with contextlib.suppress(Exception):
            lifetime.forked()  # Python would print an error, in each worker of a data loader


def _threads_end() -> None:
    """The main thread is through. Later, stores elsewhere cannot do anything: their threads take no more work."""
    if all(t.daemon or t is threading.main_thread() for t in threading.enumerate()):
        for lifetime in list(_running):
            lifetime.at_exit()


if hasattr(threading, "_register_atexit"):
    threading._register_atexit(_threads_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
