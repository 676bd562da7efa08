"""What the recorder takes of the training thread: its share of a step, and how long one `log()` takes.

    python benchmarks/recording.py [--steps 100] [--batch 64] [--quick]

plain44 with the default probes at every step, one thread. "Recording" is what happens to the values once the probes
have computed them, and the curves: `receive`, the row at the step's end, `log()`, the flush as far as the training
thread does it or waits for it. A flush is made at each fourth step, sixteen times as often as by default.

`log(loss=loss)` is timed in the step, where the convolutions have emptied the caches, and in a loop of its own while
rows of the 44 layers are flushed without a pause, the first flush left out. "control" is `loss.tolist()`, which
records nothing, in other steps, or in the same loop. The worst case is the writing thread's hold on the interpreter,
Python's garbage collector, or other programs: "own" leaves out the collector and, in the loop, what this thread
waited for a processor around the call (on Linux): at high load that may be too much.
"""

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from watching.training import Stopwatch

import propkit
from propkit.models import plain
from propkit.recording import outbox, recorder
from propkit.recording.outbox import Outbox
from propkit.recording.recorder import Recorder
from propkit.recording.rows import Row

SHARE, MEDIAN, WORST = 0.01, 30e-6, 0.5e-3
LONG = 0.2e-3
WARM = 4
PER_STEP = 100  # calls in the loop of its own, most of whose time shall pass in them
OURS = [
    (Recorder, "receive"),
    (Recorder, "_flush"),
    (Recorder, "_check"),
    (Outbox, "add"),
    (Outbox, "due"),
    (recorder, "make_row"),
]
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class Watch(Stopwatch):
    """Seconds on the wall: in some functions, in the garbage collector, of waiting for a processor."""

    def __init__(self) -> None:
        super().__init__(time.perf_counter)
        self.collecting = 0.0
        self._begun = 0.0

    def waiting(self) -> float:
        """Of this thread, since it began: it could have run and did not; 0 where the system does not tell."""
        schedule = Path("/proc/thread-self/schedstat")
        return 1e-9 * int(schedule.read_text().split()[1]) if schedule.exists() else 0.0

    def collected(self, phase: str, _: object) -> None:
        """The garbage collector begins or ends."""
        if phase == "start":
            self._begun = time.perf_counter()
        else:
            self.collecting += time.perf_counter() - self._begun

    @contextmanager
    def collections(self) -> Iterator[None]:
        """The garbage collector is on the watch."""
        gc.callbacks.append(self.collected)
        try:
            yield
        finally:
            gc.callbacks.remove(self.collected)


class Calls:
    """How long each call of a function took, and without what is not ours."""

    def __init__(self, watch: Watch) -> None:
        self.seconds: list[float] = []
        self.own: list[float] = []
        self._watch = watch
        self._waited: float | None = None

    def begin(self) -> None:
        """Leave out what is waited for a processor, from here on: it is looked up after long calls, in files."""
        self._waited = self._watch.waiting()

    def __call__(self, function: Callable[..., object], **arguments: object) -> None:
        """Call it."""
        collecting = self._watch.collecting
        begin = time.perf_counter()
        function(**arguments)
        took = own = time.perf_counter() - begin
        own -= self._watch.collecting - collecting
        if took > LONG and self._waited is not None:
            waited = self._watch.waiting()
            own = max(0.0, own - (waited - self._waited))
            self._waited = waited
        self.seconds.append(took)
        self.own.append(own)

    def forget(self, calls: int) -> None:
        """Leave out the first calls."""
        del self.seconds[:calls], self.own[:calls]

    def __str__(self) -> str:
        times = sorted(self.seconds)
        late = times[int(0.999 * len(times))]
        return (
            f"median {1e6 * statistics.median(times):6.1f} us   99.9 % {1e3 * late:6.3f} ms   worst "
            f"{1e3 * times[-1]:7.3f} ms, own {1e3 * max(self.own):6.3f} ms   "
            f"{sum(s > LONG for s in times)} of {len(times)} calls > {1e3 * LONG:g} ms"
        )


class Step:
    """A training step of plain44."""

    def __init__(self, batch: int) -> None:
        torch.manual_seed(0)
        self.model = plain(44)
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self._x, self._y = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))

    def __call__(self) -> torch.Tensor:
        """Train; the loss."""
        self._optimizer.zero_grad()
        loss = F.cross_entropy(self.model(self._x), self._y)
        loss.backward()
        self._optimizer.step()
        return loss


def in_the_step(folder: str, steps: int, batch: int) -> tuple[float, Calls, Calls]:
    """Share of the step that recording takes, and the times of `log` and, in other steps, of the control."""
    watch, step = Watch(), Step(batch)
    logs, control = Calls(watch), Calls(watch)
    taken, whole = [], []
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(outbox, "FLUSH_ROWS", 4))
        for owner, name in OURS:
            timed = watch.wrap(getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, timed))
        stack.enter_context(watch.collections())
        recording = stack.enter_context(propkit.attach(step.model, Path(folder, "step.zarr")))
        for i in range(WARM + steps):
            before, begin = watch.seconds, time.perf_counter()
            loss = step()
            if i % 2:
                control(loss.tolist)
                watch.wrap(recording.log)(loss=loss)
            else:
                logs(watch.wrap(recording.log), loss=loss)
            whole.append(time.perf_counter() - begin)
            taken.append(watch.seconds - before)
    logs.forget(WARM // 2)
    control.forget(WARM // 2)
    del whole[:WARM], taken[:WARM]
    print(
        f"a step of {1e3 * statistics.median(whole):.0f} ms; recording takes "
        f"{1e3 * statistics.median(taken):.2f} ms of it, {1e3 * statistics.fmean(taken):.2f} ms with the flushes"
    )
    return sum(taken) / sum(whole), logs, control


def alone(folder: str, calls: int) -> tuple[Calls, Calls]:
    """Times of `log` and of the control while the rows of the 44 layers are written without a pause."""
    watch, step = Watch(), Step(8)
    logs, control, rows = Calls(watch), Calls(watch), []
    add = Outbox.add

    def kept(self: Outbox, row: Row) -> None:
        rows.append(row)
        add(self, row)

    with watch.collections(), mock.patch.object(Outbox, "add", kept):
        path = Path(folder, "alone.zarr")
        with propkit.attach(step.model, path, every=lambda i: i < WARM) as recording:
            for _ in range(WARM):
                loss = step()
                recording.log(loss=loss)
            measured = rows[:]
            recording.flush()  # the first flush creates the arrays: once in a training
            recording.end_step()
            for i in range(calls // PER_STEP):
                add(recording._outbox, measured[i % WARM]._replace(step=recording.steps))
                logs.begin()
                control.begin()
                for _ in range(PER_STEP):
                    logs(recording.log, loss=loss)
                    control(loss.tolist)
                recording.end_step()
    return logs, control


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--calls", type=int, default=300_000, help="of log() in a loop of its own")
    parser.add_argument("--quick", action="store_true", help="4 steps of batch 2, 500 calls")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.batch, options.calls = 4, 2, 500
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        share, *cold = in_the_step(folder, options.steps, options.batch)
        warm = alone(folder, options.calls)
    results = [("recording / step", share <= SHARE, f"{100 * share:.2f} %", f"{100 * SHARE:g} %")]
    for place, (logs, control) in (("in the step", cold), ("alone", warm)):
        print(f"log() {place:12}{logs}\ncontrol {'':10}{control}")
        median, worst = statistics.median(logs.seconds), max(logs.own)
        results += [
            (f"log() {place}, median", median <= MEDIAN, f"{1e6 * median:.1f} us", "30 us"),
            (f"log() {place}, worst, own", worst <= WORST, f"{1e3 * worst:.3f} ms", "0.5 ms"),
        ]
    for what, met, found, target in results:
        print(f"{what:28}{found:>10}  target {target:>6}  {'MET' if met else 'NOT MET'}")
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    if not os.environ.items() >= ONE_THREAD.items():  # read when the libraries are loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ONE_THREAD})
    main()
