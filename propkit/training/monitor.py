"""Loss and accuracy of the last steps, read now and then, and whether they are finite."""

import math
import time
from collections import deque

import torch
from torch import Tensor

from propkit.training.divergence import DivergenceError

INTERVAL = 0.25
"""Seconds between transfers to the host."""

EARLY = 4
"""The first steps are looked at one by one: that is when very deep plain networks blow up."""

MOST = 1024
"""Steps that may wait on the device."""

WINDOW = 50
"""Steps that the means run over."""


class Monitor:
    """Collects values without waiting for the device, and reads them when `due`.

    Args:
        first: Number of the first step.
        every: Steps between two reads; by the clock if None. Processes that share a training must read
            at the same steps, which their clocks would not tell.
    """

    def __init__(self, first: int = 0, every: int | None = None) -> None:
        self._first = first
        self._every = every
        self._pending: list[Tensor] = []
        self._recent: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._read = 0
        self._time = time.perf_counter()

    def add(self, values: Tensor) -> None:
        """Take one step's values: ``(3,)``, loss, accuracy, and above 0 if the training is to stop."""
        self._pending.append(values)

    @property
    def due(self) -> bool:
        """Whether it is time to `read`."""
        if self._read < EARLY or len(self._pending) >= (self._every or MOST):
            return True
        return self._every is None and time.perf_counter() - self._time >= INTERVAL

    def read(self) -> tuple[float, float]:
        """Wait for the device; mean loss and accuracy over the last `WINDOW` steps.

        Raises:
            DivergenceError: A loss is not finite; it names the first such step.
            KeyboardInterrupt: The training is to stop.
        """
        rows = torch.stack(self._pending).tolist() if self._pending else []
        self._pending.clear()
        for offset, (loss, _, _) in enumerate(rows):
            if not math.isfinite(loss):
                step = self._first + self._read + offset
                raise DivergenceError(f"training diverged: loss {loss} at step {step}", step)
        if any(stop > 0 for _, _, stop in rows):
            raise KeyboardInterrupt
        self._read += len(rows)
        self._recent.extend((loss, accuracy) for loss, accuracy, _ in rows)
        self._time = time.perf_counter()
        losses, accuracies = zip(*self._recent, strict=True)
        return sum(losses) / len(losses), sum(accuracies) / len(accuracies)
