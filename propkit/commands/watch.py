"""``propkit watch``: a run in the terminal while it is being written."""

import argparse
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from propkit.commands import FAILED, INTERRUPTED, UsageError

SUMMARY = "show a run in the terminal while it is being written"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("run", metavar="RUN.zarr", help="the run; waited for if it is not there yet")
    add("--probe", metavar="NAME", help="probe to show (default: error_moment)")
    add("--variable", metavar="NAME", help="its variable (default: output, else the first)")
    add(
        "--interval",
        type=float,
        default=1.0,
        metavar="S",
        help="seconds between two looks (default: 1)",
    )
    add(
        "--once",
        action="store_true",
        help="print one frame and stop, as where the output is no terminal",
    )
    add("--follow", action="store_true", help="go on when the run has ended: it may be resumed")


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; returns 0, 1 if the run ended otherwise than complete, 130 after Ctrl-C."""
    from propkit.watch.loop import watch

    try:
        with _interruptible() as sleep:
            state = watch(
                arguments.run,
                probe=arguments.probe,
                variable=arguments.variable,
                once=arguments.once,
                interval=arguments.interval,
                follow=arguments.follow,
                sleep=sleep,
            )
    except KeyboardInterrupt:
        return INTERRUPTED
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(str(error)) from None
    return 0 if state in ("complete", "running") else FAILED


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[float], None]]:
    """A way to sleep that Ctrl-C ends also where Python swallowed the exception, as in a callback of a library."""
    pressed: list[int] = []

    def press(number: int, frame: Any) -> None:  # noqa: ARG001 - the signature of a signal handler
        pressed.append(number)
        raise KeyboardInterrupt

    def sleep(seconds: float) -> None:
        if pressed:
            raise KeyboardInterrupt
        time.sleep(seconds)

    if threading.current_thread() is not threading.main_thread():  # which alone hears signals
        yield sleep
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield sleep
    finally:
        signal.signal(signal.SIGINT, before)
