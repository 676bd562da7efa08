"""Measuring: interleaved steps of networks that are alike but for how they are watched, and peak memory."""

import contextlib
import copy
import ctypes
import gc
import itertools
import os
import random
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile
from watching.tools import Configuration
from watching.training import Cost, Stopwatch, Subject

from propkit.models import plain

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h

K = TypeVar("K")


class Spread(NamedTuple):
    """Quartiles."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:6.3f} [{self.low:5.3f}, {self.high:5.3f}]"


def spread(values: Sequence[float]) -> Spread:
    if len(values) < 2:
        return Spread(values[0], values[0], values[0])
    return Spread(*statistics.quantiles(values, n=4, method="inclusive"))


class Bench:
    """Networks alike in all but how they are watched."""

    def __init__(self, depth: int, batch: int, size: int, folder: Path, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = plain(depth, **options)
        self.x, self.y = torch.randn(batch, 3, size, size), torch.randint(0, 10, (batch,))
        self.layers = depth
        self.folder = folder

    def subject(self, watch: Stopwatch | None = None) -> Subject:
        """Another copy of the network, in training."""
        return Subject(copy.deepcopy(self.model), self.x, self.y, self.folder, watch)

    @contextlib.contextmanager
    def observed(self, c: Configuration, watch: Stopwatch | None = None) -> Iterator[Subject]:
        """A network of its own under observation, after two steps and a flush."""
        s = self.subject(watch)
        with contextlib.ExitStack() as stack:
            with contextlib.nullcontext() if watch is None else watch.watching():
                stack.enter_context(c.observe(s))
            if watch is not None and s.after_step is not None:
                s.after_step = watch.wrap(s.after_step)
            s.step()
            s.step()
            if s.recorder is not None:
                _ = s.recorder.run  # the first flush ends the discovery of the network
            yield s

    def interleaved(
        self, subjects: dict[K, Subject], rounds: int, references: Sequence[Subject] = ()
    ) -> dict[K, list[tuple[Cost, Cost]]]:
        """Per round, in random order, a step of each with a bare step before and after: (its cost, mean of both).

        The bare steps go round as many copies as there are subjects, so that every network has rested as long as
        the others when its turn comes.
        """
        result: dict[K, list[tuple[Cost, Cost]]] = {label: [] for label in subjects}
        order = list(subjects)
        references = references or [self.subject() for _ in order]
        for reference in references:
            reference.step()
        turn = itertools.cycle(references)
        shuffle = random.Random(0).shuffle
        gc.collect()
        gc.freeze()  # a collection now and then goes through what the step made, not through all of torch
        before = next(turn).step()
        for _ in range(rounds):
            shuffle(order)
            for label in order:
                cost, after = subjects[label].step(), next(turn).step()
                result[label].append((cost, _mean(before, after)))
                before = after
        return result


def _mean(a: Cost, b: Cost) -> Cost:
    return Cost(*((x + y) / 2 for x, y in zip(a, b, strict=True)))


def peak_bytes(bench: Bench, c: Configuration) -> int:
    """Most bytes that torch's allocator held at a time, from before the observer until after three steps."""
    gc.collect()  # what an earlier network left would be freed meanwhile
    with (
        _silent_stderr(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p,
        bench.observed(c) as s,
    ):
        s.step()
    events = [e for e in p.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed.

    By default a step gives some back and the next gets it again page by page: between none and 28,000 page faults a
    step, not alike for networks that are alike.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for parameter, value in ((_M_TRIM_THRESHOLD, 2**31 - 1), (_M_MMAP_THRESHOLD, 32 << 20)):
            libc.mallopt(parameter, value)
