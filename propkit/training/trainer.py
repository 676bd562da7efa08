"""A small trainer for image classifiers: seeded, on one device or several, observed through callbacks."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from propkit.data.augmentation import Augmentation
from propkit.data.batches import batches
from propkit.data.imageset import ImageSet
from propkit.training.checkpoint import Checkpoint
from propkit.training.divergence import DivergenceError
from propkit.training.execution import Execution
from propkit.training.monitor import Monitor
from propkit.training.optimizer import learning_rate_factor, sgd
from propkit.training.processes import Interrupts, Processes
from propkit.training.progress import ProgressDisplay
from propkit.training.regularizers import add_orthonormality_gradient_
from propkit.training.seeding import generator
from propkit.training.stability import check_orthonormality_stability


class Callback(Protocol):
    """What `train` tells about each step."""

    def on_step(self, step: int, loss: Tensor, accuracy: Tensor) -> None:
        """Called after ``optimizer.step()``.

        Args:
            step: Number of optimiser steps completed before the batch was computed: 0 at the first
                call.
            loss: Mean cross-entropy of the batch (of all processes) without penalties, a 0-d tensor on
                the training device.
            accuracy: Share of correct answers, likewise.
        """


@dataclass(frozen=True)
class TrainResult:
    """What came out: means over the last 50 steps (or fewer), and the time it took."""

    steps: int
    loss: float
    accuracy: float
    seconds: float


def train(
    model: nn.Module,
    data: ImageSet,
    *,
    steps: int,
    optimizer: torch.optim.Optimizer | None = None,
    batch_size: int = 128,
    augmentation: Augmentation | None = None,
    milestones: Sequence[int] = (32000, 48000),
    gamma: float = 0.1,
    warm_up: int = 0,
    warm_up_factor: float = 0.1,
    orthonormality: float = 0.0,
    seed: int = 0,
    device: str | torch.device = "cpu",
    execution: Execution | None = None,
    checkpoint: Checkpoint | None = None,
    start: int = 0,
    callbacks: Iterable[Callback] = (),
    progress: bool = True,
    label: str = "",
) -> TrainResult:
    """Train a classifier with cross-entropy, as in arXiv:1703.01827, Sec. 5.

    The same seed gives the same batches and flips on every device. Nothing is read back from the
    device more than a few times a second; a loss that is not finite is found then.

    Where PyTorch's default process group has several processes (torchrun), each computes an equal part of
    every batch: all call this with the same arguments but for ``device``. Gradients, loss and accuracy are
    those of the whole batch; batch norm uses the statistics of each process's part. Callbacks are told on
    all of them. The processes diverge, or are interrupted, together.

    Args:
        model: Moved to ``device`` and put in train mode. Its weights are used as they are: see
            `propkit.training.initialize`.
        data: Its training images are used.
        steps: Optimiser steps.
        optimizer: Holds the model's parameters; `sgd` with its defaults if None.
        batch_size: Images per step, of all processes together.
        augmentation: What is done to the images; flips alone if None. None is mirrored unless
            ``data.flip``.
        milestones: Steps from which the learning rate is multiplied by ``gamma`` once more.
        gamma: See ``milestones``.
        warm_up: Number of first steps whose learning rate is multiplied by ``warm_up_factor``.
        warm_up_factor: See ``warm_up``.
        orthonormality: λ of `propkit.training.orthonormality`, 0 for none. Give the optimiser no
            weight decay then.
        seed: Of shuffling and flips.
        device: Where to train.
        execution: Precision, memory layout, compilation, determinism.
        checkpoint: Where and when to save the state.
        start: Number of steps done already, as `Checkpoint.load` returned it: the training goes on with
            the next one.
        callbacks: Told of every step, in order.
        progress: Show a bar on a terminal, else a line every ten seconds.
        label: What to call the training in the progress display.

    Raises:
        DivergenceError: The loss is not finite, or the regulariser is about to diverge.
        KeyboardInterrupt: One of several processes got SIGINT or SIGTERM.
        ValueError: ``steps`` is not positive, ``start`` not below it, or the batch cannot be shared equally.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, found {steps}")
    if not 0 <= start < steps:
        raise ValueError(f"start must be at least 0 and below steps={steps}, found {start}")
    execution = execution or Execution()
    model.to(device).train()
    processes = Processes()
    called = processes.share(execution.prepare(model))
    optimizer = optimizer if optimizer is not None else sgd(model)
    # PyTorch's schedulers keep it there too; it goes through a checkpoint, unlike the decayed one.
    rates = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
    callbacks = list(callbacks)
    stream = batches(
        data,
        batch_size,
        generator(seed, "shuffle"),
        generator(seed, "augment"),
        device,
        start,
        augmentation=augmentation,
        part=processes.part,
    )
    monitor = Monitor(start, _reading(processes, device))
    mean_loss = mean_accuracy = float("nan")
    begun = time.perf_counter()
    display = ProgressDisplay(steps, label, progress and processes.first, start=start)
    with display, execution.algorithms(), Interrupts(processes) as interrupts:
        for step in range(start, steps):
            factor = learning_rate_factor(step, milestones, gamma, warm_up, warm_up_factor)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            images, labels = next(stream)
            optimizer.zero_grad()
            with execution.autocast(labels.device):
                logits = called(execution.images(images))
                loss = F.cross_entropy(logits, labels)
            loss.backward()
            if orthonormality:
                add_orthonormality_gradient_(model, orthonormality)
            optimizer.step()
            values = _values(loss, logits, labels, interrupts.asked)
            loss, accuracy, _ = processes.mean(values)
            for callback in callbacks:
                callback.on_step(step, loss, accuracy)
            monitor.add(values)
            saving = checkpoint is not None and (step + 1) % checkpoint.every == 0
            if monitor.due or saving or step + 1 == steps:
                mean_loss, mean_accuracy = monitor.read()
                if orthonormality:
                    _check_stability(model, max(rates) * factor, orthonormality, step)
                display.update(step + 1, mean_loss, mean_accuracy)
            if checkpoint is not None and saving:  # of a state that is finite
                checkpoint.save(step + 1, model, optimizer)
    return TrainResult(steps, mean_loss, mean_accuracy, time.perf_counter() - begun)


@torch.no_grad()
def _values(loss: Tensor, logits: Tensor, labels: Tensor, stop: bool) -> Tensor:
    """Loss, accuracy and whether to stop: ``(3,)``, float32."""
    accuracy = (logits.argmax(1) == labels).float().mean()
    return torch.stack([loss.float(), accuracy, accuracy.new_tensor(float(stop))])


def _reading(processes: Processes, device: str | torch.device) -> int | None:
    """Steps between two reads: to read costs nothing on a CPU, and a wait on a GPU."""
    if processes.size == 1:
        return None
    return 1 if torch.device(device).type == "cpu" else 20


def _check_stability(model: nn.Module, lr: float, coefficient: float, step: int) -> None:
    try:
        check_orthonormality_stability(model, lr, coefficient)
    except DivergenceError as error:
        raise DivergenceError(f"after step {step}: {error}", step + 1) from None
