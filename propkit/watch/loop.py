"""Looking again and again, until the run ends."""

import os
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from propkit.store.run import Run
from propkit.store.run import open as open_run
from propkit.watch.choice import NothingToShowError
from propkit.watch.frame import (
    Frame,
    duration,
    read_frame,
    render,
    strip_columns,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PATIENCE = 5.0
"""Seconds for which something that is no run is taken for one that is being made."""

PAUSE = 8.0
"""Between two looks at least so many times the CPU time that one takes, so that watching never takes a core."""

PLAIN_SIZE = (120, 40)
"""Columns and lines where the output is no terminal."""


class Watcher:
    """Looks at a run.

    Args:
        path: Of the run; it need not be there yet.
        probe: Group to show, see `propkit.watch.choice.choose`.
        variable: Its variable.
        clock: Seconds, from any origin.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        probe: str | None = None,
        variable: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self.state = ""
        self._probe, self._variable = probe, variable
        self._clock = clock
        self._began = clock()
        self._seen = False
        self._commit: object = None
        self._shown: Frame | str = ""
        self._trouble = ""
        self._steps: deque[tuple[float, int]] = deque(maxlen=30)

    @property
    def ended(self) -> bool:
        """Whether the run will not grow any more."""
        return self.state not in ("", "running")

    @property
    def shows_a_run(self) -> bool:
        """Whether it has found one and read it."""
        return isinstance(self._shown, Frame)

    def look(self, columns: int) -> None:
        """Read the run as it is now, if it has changed.

        Raises:
            ValueError: What is there is no run, and has not become one for a while; or the run has ended without what
                is to be shown.
        """
        self._trouble = ""
        try:
            run = open_run(self.path)
            self._seen = True
            self._read(run, columns)
        except FileNotFoundError as error:
            self.state = ""
            waited = duration(self._clock() - self._began)
            if self.shows_a_run:
                self._trouble = f"the run is not there any more ({error.filename or self.path})"
            else:
                self._shown = f"waiting for {self.path}: there is no run yet ({waited})"
        except NothingToShowError as error:
            if self.ended:
                raise
            self._shown = f"{self.path}: waiting; {error}"
        except (OSError, ValueError, LookupError) as error:
            # Being created, cut back by a resumed training, compacted: the next look sees it whole.
            if not self._seen and self._clock() - self._began > PATIENCE:
                raise ValueError(str(error)) from error
            self._trouble = f"cannot be read at the moment: {error}"

    def _read(self, run: Run, columns: int) -> None:
        commit = run.attributes.get("commit") or {}
        mark = (commit.get("seq"), run.attributes.get("created"), run.state, columns)
        if mark == self._commit:
            return
        self.state = run.state
        frame = read_frame(run, columns, self._probe, self._variable)
        self._shown, self._commit = frame, mark
        self._count(frame)

    def _count(self, frame: Frame) -> None:
        """Note the step, for the rate: by the run's own clock, not by when it was looked at."""
        if frame.step is None or frame.written is None:
            return
        now = frame.written.timestamp()
        if self._steps and (frame.step < self._steps[-1][1] or now < self._steps[-1][0]):
            self._steps.clear()  # cut back and resumed, or another run
        if not self._steps or frame.step > self._steps[-1][1]:
            self._steps.append((now, frame.step))

    @property
    def rate(self) -> float | None:
        """Steps per second over the last looks; None before the second."""
        if len(self._steps) < 2 or self._steps[-1][0] <= self._steps[0][0]:
            return None
        (began, first), (ended, last) = self._steps[0], self._steps[-1]
        return (last - first) / (ended - began)

    def render(self, width: int, height: int, footer: str = "") -> "RenderableType":
        """What is known by now, for the terminal."""
        from rich.text import Text

        if isinstance(self._shown, str):
            return Text("\n".join(t for t in (self._shown, self._trouble, footer) if t))
        note = "; ".join(t for t in (self._trouble, footer) if t)
        return render(self._shown, width, height, self.rate, note)


def watch(
    path: str | os.PathLike[str],
    *,
    probe: str | None = None,
    variable: str | None = None,
    once: bool = False,
    interval: float = 1.0,
    follow: bool = False,
    console: "Console | None" = None,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Show a run in the terminal until it ends.

    Args:
        path: Of the run; waited for if it is not there yet.
        probe: Group to show; None: error moments, where there are any.
        variable: Its variable.
        once: One frame, and no more; also where the output is no terminal.
        interval: Seconds between two looks; more where a look takes long.
        follow: Go on after the run has ended: it may be resumed.
        console: Where to.
        sleep: Waits.

    Returns:
        The state of the run: ``complete``, ``failed``...; ``running`` if `once` or if the terminal was closed.

    Raises:
        FileNotFoundError: There is no run, and `once`.
        ValueError: What is there is no run, or lacks what is to be shown.
    """
    from rich.console import Console
    from rich.live import Live

    if not interval > 0:
        raise ValueError(f"interval={interval!r}: expected a positive number of seconds")
    console = console or Console(highlight=False)
    if once or not console.is_terminal:
        return _one_frame(path, probe, variable, console)
    watcher = Watcher(path, probe, variable)
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            width, height = console.size
            began, first = time.process_time(), not watcher.shows_a_run
            watcher.look(strip_columns(width))
            cost = (
                0.0 if first else time.process_time() - began
            )  # the first one imports what it needs
            stop = watcher.ended and not follow
            hint = "" if stop else "Ctrl-C stops watching; the training goes on"
            live.update(watcher.render(width, height - 1, hint), refresh=True)
            if stop or not console.is_terminal:  # which it is no more once its window was closed
                return watcher.state
            sleep(max(interval, PAUSE * cost))


def _one_frame(
    path: str | os.PathLike[str], probe: str | None, variable: str | None, console: "Console"
) -> str:
    width, height = console.size if console.is_terminal else PLAIN_SIZE
    console.width = width
    run = open_run(path)
    frame = read_frame(run, strip_columns(width), probe, variable)
    console.print(render(frame, width, height))
    return run.state
