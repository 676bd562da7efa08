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
    """Collects 0-d tensors without waiting for the device, and reads them when `due`.

    Args:
        first: Number of the first step.
    """

    def __init__(self, first: int = 0) -> None:
        self._first = first
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._recent: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._read = 0
        self._time = time.perf_counter()

    def add(self, loss: Tensor, accuracy: Tensor) -> None:
        """Take one step's values."""
        self._pending.append((loss, accuracy))

    @property
    def due(self) -> bool:
        """Whether it is time to `read`."""
        waited = time.perf_counter() - self._time
        return waited >= INTERVAL or self._read < EARLY or len(self._pending) >= MOST

    def read(self) -> tuple[float, float]:
        """Wait for the device; mean loss and accuracy over the last `WINDOW` steps.

        Raises:
            DivergenceError: A loss is not finite; it names the first such step.
        """
        if self._pending:
            flat = torch.stack([value.float() for pair in self._pending for value in pair]).tolist()
            pairs = list(zip(flat[::2], flat[1::2], strict=True))
            self._pending.clear()
            for offset, (loss, _) in enumerate(pairs):
                if not math.isfinite(loss):
                    step = self._first + self._read + offset
                    raise DivergenceError(f"training diverged: loss {loss} at step {step}", step)
            self._read += len(pairs)
            self._recent.extend(pairs)
        self._time = time.perf_counter()
        losses, accuracies = zip(*self._recent, strict=True)
        return sum(losses) / len(losses), sum(accuracies) / len(accuracies)
