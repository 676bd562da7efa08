"""One training step of one network, and how much of it passes in a tool's hooks."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import optimizer as torch_optimizer

import propkit
from propkit.hooks import signals

_MODULE_HOOKS = ("forward_", "forward_pre_", "full_backward_", "full_backward_pre_")
_TENSOR_HOOKS = ("register_hook", "register_post_accumulate_grad_hook")


class Stopwatch:
    """Time in some functions, as the hooks of a tool, nested ones counted once; by default CPU time of this thread."""

    current: "Stopwatch | None" = None

    def __init__(self, clock: Callable[[], float] = time.thread_time) -> None:
        self.seconds = 0.0
        self._clock = clock
        self._inside = False

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function on the watch."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            self._inside, begin = True, self._clock()
            try:
                return function(*args, **kwargs)
            finally:
                self._inside = False
                self.seconds += self._clock() - begin

        return timed

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Every hook that is put on a module, a tensor or an optimiser meanwhile is on the watch."""
        steps = (
            torch_optimizer._global_optimizer_pre_hooks,
            torch_optimizer._global_optimizer_post_hooks,
        )
        before = [set(hooks) for hooks in steps]
        Stopwatch.current = self
        try:
            yield
        finally:
            Stopwatch.current = None
            for hooks, known in zip(steps, before, strict=True):
                hooks.update({k: self.wrap(hooks[k]) for k in hooks if k not in known})


def let_stopwatches_in() -> None:
    """Replace, for good, the methods that register hooks.

    Exchanging them around the watched steps alone would touch classes of torch there and not in the bare steps.
    """

    def registering(original: Callable[..., Any]) -> Callable[..., Any]:
        def register(owner: Any, hook: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            watch = Stopwatch.current
            return original(owner, hook if watch is None else watch.wrap(hook), *args, **kwargs)

        return register

    places = [(nn.Module, f"register_{kind}hook") for kind in _MODULE_HOOKS]
    places += [(torch.Tensor, name) for name in _TENSOR_HOOKS]
    for owner, name in places:
        setattr(owner, name, registering(getattr(owner, name)))

    own = signals._register  # propkit puts hooks on tensors by what is below `Tensor.register_hook`

    def register(tensor: torch.Tensor, node: Any, hook: Callable[..., Any]) -> None:
        watch = Stopwatch.current
        own(tensor, node, hook if watch is None else watch.wrap(hook))

    signals._register = register


def _wait_for_threads() -> None:
    """Wait until what a tool does in the background is done: it belongs to this step, not to the next network's."""
    busy = True
    while busy:
        before = time.process_time()
        time.sleep(0.005)
        busy = time.process_time() - before > 5e-4


class Cost(NamedTuple):
    """Seconds of one step: on the wall clock, on the CPU by all threads until they rest, and in hooks (CPU)."""

    wall: float
    cpu: float
    hooks: float


@dataclass
class Subject:
    """A network in training. Observers change `run` and `after_step`."""

    model: nn.Module
    x: torch.Tensor
    y: torch.Tensor
    folder: Path
    watch: Stopwatch | None = None
    after_step: Callable[[torch.Tensor], None] | None = None
    recorder: propkit.Recorder | None = None
    steps: int = 0
    run: Callable[[], torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.run = self.forward_backward

    def forward_backward(self) -> torch.Tensor:
        """The loss, with gradients."""
        loss = F.cross_entropy(self.model(self.x), self.y)
        loss.backward()
        return loss

    def step(self) -> Cost:
        """One training step."""
        self.steps += 1
        begin, watched = (time.perf_counter(), time.process_time()), self.hook_seconds()
        with contextlib.nullcontext() if self.watch is None else self.watch.watching():
            self.optimizer.zero_grad()
            loss = self.run()
            self.optimizer.step()
            if self.after_step is not None:
                self.after_step(loss)
        wall = time.perf_counter() - begin[0]
        _wait_for_threads()
        return Cost(wall, time.process_time() - begin[1], self.hook_seconds() - watched)

    def hook_seconds(self) -> float:
        """Time in hooks so far."""
        return 0.0 if self.watch is None else self.watch.seconds

    def convs(self) -> dict[str, nn.Module]:
        """Convolutions by name."""
        return {n: m for n, m in self.model.named_modules() if isinstance(m, nn.Conv2d)}
