"""Where a training stands: a bar on a terminal, a plain line now and then anywhere else."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_SECONDS = 10.0
"""Time between plain lines."""


class ProgressDisplay:
    """Shows step, loss, accuracy, steps per second and the time left.

    Args:
        steps: Steps in all.
        label: What is being trained.
        show: False: nothing is shown.
        console: Where to; standard output if None.
        start: Steps that were done before.
    """

    def __init__(
        self,
        steps: int,
        label: str = "",
        show: bool = True,
        console: Console | None = None,
        start: int = 0,
    ) -> None:
        self._steps = steps
        self._before = start
        self._label = label
        self._show = show
        self._console = console or Console()
        self._bar: Progress | None = None
        if show and (self._console.is_terminal or self._console.is_jupyter):
            # No thread of its own: it redraws when told, between two steps.
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(compact=True),
                console=self._console,
                auto_refresh=False,
            )
            self._task = self._bar.add_task(label, total=steps, text="")
        self._start = self._line = time.perf_counter()

    def update(self, done: int, loss: float, accuracy: float) -> None:
        """Show the state after ``done`` steps."""
        if not self._show:
            return
        now = time.perf_counter()
        rate = (done - self._before) / max(now - self._start, 1e-9)
        text = f"loss {loss:.4f}  accuracy {accuracy:.3f}  {rate:.2f} steps/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, text=text, refresh=True)
        elif now - self._line >= LINE_SECONDS or done == self._steps:
            self._line = now
            left = _clock((self._steps - done) / rate)
            line = f"{self._label} step {done}/{self._steps}  {text}  {left} left".lstrip()
            self._console.print(line, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
