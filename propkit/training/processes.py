"""The processes that share a training: each has its part of every batch (torchrun, data-parallel).

Decisions that all must take alike, when to look at the loss and when to stop, never come from a clock or a signal
of one process alone: what one process knows goes through `Processes.mean` to all of them, at the same step.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


class Processes:
    """Those of PyTorch's default process group; one alone where there is none.

    Attributes:
        rank: Number of this process, from 0.
        size: How many there are.
    """

    def __init__(self) -> None:
        grouped = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if grouped else 0
        self.size = dist.get_world_size() if grouped else 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and shows progress."""
        return self.rank == 0

    @property
    def part(self) -> tuple[int, int]:
        """``(rank, size)``: see `propkit.data.batches`."""
        return self.rank, self.size

    def share(self, model: nn.Module) -> nn.Module:
        """The module to call, so that gradients are those of the whole batch; it shares the parameters.

        Batch norm normalises each process's images by their own statistics. Its running statistics are
        rank 0's.
        """
        if self.size == 1:
            return model
        device = next(model.parameters()).device
        return DistributedDataParallel(model, [device] if device.type == "cuda" else None)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes, in place of each element; a collective operation."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def sum(self, values: Tensor) -> Tensor:
        """Likewise the sum."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, on each of them; a collective operation."""
        if self.size == 1:
            return [value]
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, value)
        return everyone

    def copy_buffers_(self, model: nn.Module) -> None:
        """Give all processes rank 0's buffers (running statistics); a collective operation."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def only_first(self, act: Callable[[], object]) -> None:
        """Let rank 0 act while the others wait; what it raises is raised on all, a collective operation."""
        error: list[Exception | None] = [None]
        if self.first:
            try:
                act()
            except Exception as raised:
                error = [raised]
        if self.size > 1:
            dist.broadcast_object_list(error, src=0)
        if error[0] is not None:
            raise error[0]


def launched() -> bool:
    """Whether torchrun, or something that sets the same variables, started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextlib.contextmanager
def joined(device: str) -> Iterator[str]:
    """The process group for a training on ``device``, as long as the block runs.

    Args:
        device: As on the command line. Of ``cuda``, each process takes the GPU of its local rank.

    Yields:
        This process's device; ``device`` itself where only one process runs, without any group.

    Raises:
        ValueError: ``device`` is one GPU, which several processes cannot share.
    """
    if not launched():
        yield device
        return
    cuda = torch.device(device).type == "cuda"
    if cuda and torch.device(device).index is not None:
        raise ValueError(
            f"several processes were started, but {device!r} is one GPU; say cuda, and each takes its own"
        )
    if cuda:  # untested: no machine with several GPUs was at hand
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


class Interrupts:
    """Turns SIGINT and SIGTERM into a mark that the processes can tell each other of.

    One process that stopped by itself would leave the others waiting for it. A second signal stops this
    one at once. Where a training has one process, or does not run in the main thread, nothing is changed.
    """

    def __init__(self, processes: Processes) -> None:
        self.asked = False
        self._shared = processes.size > 1
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if self._shared and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a handler
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
