"""Recorder: when to measure, and the handle that the user holds."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Self, SupportsIndex

import torch

from propkit.hooks.loss_scale import LossScale
from propkit.hooks.taps import Key
from propkit.notebook import recorder_html
from propkit.notices import say
from propkit.probe import Measurement
from propkit.recording.hooks import Hooks
from propkit.recording.layout import Layout
from propkit.recording.lifetime import Lifetime
from propkit.recording.outbox import Outbox
from propkit.recording.ranks import Ranks
from propkit.recording.rows import Observation, make_row, own_copy
from propkit.recording.sampling import Sampling

if TYPE_CHECKING:
    from propkit.store.run import Run


class Recorder:
    """Handle of a recording: made by `propkit.attach`, ended by `detach` or by leaving its ``with`` block.

    Attributes:
        steps: Number of optimiser steps completed: since `propkit.attach`, or since the beginning of a resumed run.
    """

    def __init__(
        self,
        outbox: Outbox,
        layout: Layout,
        sampling: Sampling,
        open_run: Callable[[], "Run"],
        loss_scale: LossScale,
        ranks: Ranks | None = None,
        first: int = 0,
        strict: bool = False,
    ) -> None:
        self.steps = first
        self._strict = strict
        self._outbox = outbox
        self._log = outbox.curves.add
        self._layout, self._slots = layout, layout.slots
        self._sampling = sampling
        self._schedules, self._overhead = sampling.schedules, sampling.overhead
        outbox.watch(sampling.overhead, sampling.budget)
        self._wide = layout.wide_probes()
        self._open_run = open_run
        self._loss_scale = loss_scale
        self._ranks = ranks
        self._hooks: Hooks  # they come with `start`
        self._stop_listening: Callable[[], None]
        self._steps_found_by: Callable[[], str | None]
        self._active: frozenset[str] = frozenset()
        self._observed: list[Observation] = []
        self._stepped = False  # since the gradient scaler's last update
        self._missed = False  # a step in which nothing was observed was noted
        self._detached = False
        self._closing = threading.RLock()
        self._lifetime = Lifetime(self._close, self._abandon)

    @property
    def run(self) -> "Run":
        """The run as recorded up to the last completed step; asking for it writes what is still buffered.

        In a training by several processes it holds what was written so far, and rank 0 alone has it.
        """
        if self._ranks is None:  # a flush of several ranks takes all of them
            self.flush()
        return self._open_run()

    def flush(self) -> None:
        """Write what is buffered and wait until it is committed.

        Call it (on all ranks) before saving a checkpoint: a run that is resumed there (``attach(..., resume=True,
        step=recorder.steps)``) then has all rows up to it, even if the process is killed in between.
        """
        if not self._detached:
            self._flush()
            self._outbox.drain()
            self._check()

    def log(self, *, step: SupportsIndex | None = None, **scalars: float | torch.Tensor) -> None:
        """Record training curves, without waiting for the device.

        Args:
            step: Step that the values belong to. By default the step under way if `log` is called before
                ``optimizer.step()``, or the one just completed if it is called after; the first call decides
                which of the two the loop does.
            **scalars: Numbers or tensors of one element, such as ``loss=loss``: as they are now, without their graph.

        Raises:
            TypeError: A value is neither a number nor a tensor of one element, or `step` is no integer.
            ValueError: `step` lies before one that is written already, or a name cannot name a variable.
        """
        if not self._detached:
            self._log(self.steps, step, scalars)

    def end_step(self) -> None:
        """End a step; called after each optimiser step that was found."""
        if self._detached:
            return
        began = None
        if self._active:
            began = self._overhead.clock()
            self._hooks.finish_step()
            if self._over():  # by a fault in the hooks
                return
            observed, self._observed = self._observed, []
            if observed or self._ranks:  # which flush after the same number of rows
                self._outbox.add(make_row(self.steps, observed))
            if not (observed or self._missed or self._active <= self._hooks.disabled):
                self._missed = True
                self._outbox.note(
                    f"step {self.steps} was to be measured, but no observed module ran in it: is the attached model "
                    "the one that is trained, and no copy of it, nor a function compiled before it was attached?"
                )
        wide = not self._active.isdisjoint(self._wide)
        self._loss_scale.look()  # steps that a scaler skips count, whatever is measured
        self.steps += 1
        self._stepped = True
        self._sampling.lap(self._active, began, None if self._ranks else self.steps)
        self._begin_step()
        if self._outbox.due(wide):
            began = self._overhead.clock()
            self._flush()
            self._overhead.flushed(self._overhead.clock() - began)
            self._check()

    def step(self) -> None:
        """Say that a training step is complete, in a loop without a `torch.optim` optimiser.

        Raises:
            RuntimeError: The steps of an optimiser have been found, so every step would be counted twice.
        """
        found = self._steps_found_by()
        if found is not None:
            raise RuntimeError(
                f"the steps of {found} have been found by themselves; recorder.step() is for loops without a "
                "torch.optim optimiser"
            )
        self.end_step()

    def detach(self) -> None:
        """Take all hooks out of the model and end the run as complete. Calling it again does nothing.

        Hooks cannot be taken out under a forward that is running: call it where no other thread trains the model.

        Raises:
            Exception: Rows could not be written or the run could not be closed, and the recording is strict.
        """
        self._close("complete")

    remove = detach

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._lifetime.end(error)

    def __repr__(self) -> str:
        state = "detached" if self._detached else f"recording {', '.join(self._schedules)}"
        return f"<propkit.Recorder: {state}, step {self.steps}>"

    _repr_html_ = recorder_html

    def receive(
        self,
        key: Key,
        measurement: Measurement,
        value: float | torch.Tensor,
        weight: float | torch.Tensor,
        origin: int,
    ) -> None:
        """Take one value of the step under way.

        Raises:
            ValueError: It is 1-d and longer or shorter than it may be.
        """
        if isinstance(value, torch.Tensor) and value.ndim:
            slot = self._layout.slot(key, measurement, len(value))
            value = own_copy(value, measurement.dtype_of(key.variable))
        elif (slot := self._slots.get(key, -1)) < 0:
            slot = self._layout.slot(key, measurement)
        self._observed.append((slot, value, weight, origin))

    def loss_scale(self) -> torch.Tensor | None:
        """What the loss of the running backward pass is multiplied by."""
        return self._loss_scale.current()

    def fault(self, probe: str, error: Exception) -> None:
        """Note that a probe failed; training and the other probes go on."""
        self._outbox.faults.met(self.steps, probe, error, self._detached)

    def broken(self, error: Exception) -> None:
        """End the recording after a fault of propkit's own; training goes on, unless the recording is strict."""
        if self._strict and self._detached:
            raise error
        say(
            f"recording ended at step {self.steps} by a fault in propkit: {type(error).__name__}: {error}"
        )
        self._close("failed", f"{type(error).__name__}: {error}"[:500])
        if self._strict:
            raise error

    def start(
        self, hooks: Hooks, stop_listening: Callable[[], None], found: Callable[[], str | None]
    ) -> None:
        """Begin with step 0."""
        self._hooks = hooks
        self._stop_listening = stop_listening
        self._steps_found_by = found
        self._loss_scale.on_update(self._scaler_updated)
        hooks.install(self._active)  # notice compilations, also if step 0 is not sampled
        self._begin_step()
        if not self._over():  # by a fault in the hooks
            self._lifetime.begin()

    def _begin_step(self) -> None:
        due = self._sampling.due(self.steps)
        self._outbox.faults.of_schedules(self.steps, self._sampling.failed())
        if due != self._active:
            self._hooks.install(due)
        self._active = due

    def _scaler_updated(self) -> None:
        """The gradient scaler ends a step; if the optimiser made none, the step was skipped for its overflow."""
        if not self._stepped and not self._detached:
            self._outbox.curves.add(self.steps, self.steps, {"skipped": 1.0})
            self.end_step()
        self._stepped = False

    def _over(self) -> bool:
        return self._detached

    def _flush(self) -> None:
        before = None if self._detached else self.steps
        hooks = self._hooks
        self._outbox.flush(hooks.places, self.steps, before, hooks.stop_discovering)

    def _check(self) -> None:
        """See what the background found."""
        self._check_probes()
        error, trouble = self._outbox.error, self._outbox.trouble
        if self._detached:
            return
        if self._strict and (failure := error or trouble):
            self._close("failed", str(failure)[:500], failure)
            raise failure
        if error is not None:
            text = f"{type(error).__name__}: {error}"
            say(f"recording ended at step {self.steps}: {text}")
            self._close("failed", text[:500], error)
        else:
            self._outbox.note_trouble()

    def _check_probes(self) -> None:
        for probe, why in self._outbox.health.faults.copy().items():
            if probe not in self._outbox.faults:
                self._hooks.disabled.add(probe)
                self.fault(probe, ValueError(why))

    def _close(self, state: str, reason: str = "", known: Exception | None = None) -> None:
        """End the recording once; another thread waits for it. `known` is a failure that was said already."""
        with self._closing:
            if self._detached:
                return
            self._detached = True
            self._unhook()
            lost, wanted = None, state
            try:
                self._flush()
                self._outbox.drain()
                self._check_probes()
            except Exception as error:  # the run is closed all the same
                lost, text = error, f"{type(error).__name__}: {error}"
                say(f"the last rows are lost by a fault in propkit: {text}")
                state, reason = "failed", reason or text[:500]
            self._observed.clear()
            failure = self._outbox.close(state, reason, known) or lost
            self._lifetime.over()
        if failure is not None and self._strict and wanted == "complete":
            raise failure

    def _abandon(self) -> None:
        """Leave the recording to the process that began it; this one is a copy."""
        self._detached = True
        self._closing = threading.RLock()  # another thread may have held it
        self._unhook()

    def _unhook(self) -> None:
        self._stop_listening()
        self._loss_scale.remove()
        self._hooks.remove()
