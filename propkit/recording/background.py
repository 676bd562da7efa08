"""One thread that does one job after the other, and never lets more than a few pile up."""

import queue
import threading
from collections.abc import Callable

from propkit.store.pauses import in_background

Job = Callable[[], None]


class Worker:
    """Runs jobs in order in a background thread; `put` blocks while `depth` of them wait.

    A job that raises ends the work: later jobs are skipped, and `error` keeps the exception.
    """

    def __init__(self, name: str, depth: int = 4) -> None:
        self.error: Exception | None = None
        self._jobs: queue.Queue[Job | None] = queue.Queue(depth)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, job: Job) -> None:
        """Add a job; waits while the queue is full."""
        self._jobs.put(job)

    def drain(self) -> None:
        """Wait until every job that was put has run."""
        self._jobs.join()

    def stop(self) -> None:
        """Run what waits, then end the thread."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()

    def _run(self) -> None:
        in_background()
        while True:
            job = self._jobs.get()
            try:
                if job is None:
                    return
                if self.error is None:
                    job()
            except Exception as error:
                self.error = error
            finally:
                self._jobs.task_done()


class Inline:
    """The same interface without a thread, for runs in memory."""

    error: Exception | None = None

    def put(self, job: Job) -> None:
        """Do the job now."""
        if self.error is None:
            try:
                job()
            except Exception as error:
                self.error = error

    def drain(self) -> None:
        """Nothing waits."""

    def stop(self) -> None:
        """Nothing runs."""
