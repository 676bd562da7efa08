"""Run a recipe: the one place where model, data, trainer and probes meet."""

import math
import os
import re
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from propkit.data.augmentation import Augmentation
from propkit.data.imageset import ImageSet
from propkit.recipes import Recipe
from propkit.recipes.components import components
from propkit.sweep import checkpoint_of
from propkit.training import (
    Checkpoint,
    Evaluation,
    Execution,
    evaluate,
    generator,
    initialize,
    make_optimizer,
    train,
)
from propkit.training.processes import Processes

if TYPE_CHECKING:
    from propkit.recording.recorder import Recorder


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        recipe: As run, overrides included.
        data: Name of the data.
        store: Where the run is; None: in memory.
        steps: Optimiser steps.
        seconds: Time of the training.
        loss: Mean training loss over the last 50 steps.
        accuracy: Mean training accuracy over them.
        test_loss: Mean loss on the test images after the last step.
        test_accuracy: Accuracy likewise.
    """

    recipe: Recipe
    data: str
    store: str | None
    steps: int
    seconds: float
    loss: float
    accuracy: float
    test_loss: float
    test_accuracy: float

    def __str__(self) -> str:
        return (
            f"{self.recipe.name} on {self.data}: {self.steps} steps in {self.seconds:.1f} s "
            f"({self.steps / self.seconds:.2f} steps/s), loss {self.loss:.4f}, "
            f"training accuracy {self.accuracy:.3f}, test accuracy {self.test_accuracy:.3f}"
        )


def run_recipe(
    recipe: Recipe,
    data: ImageSet,
    store: str | os.PathLike[str] | None = None,
    *,
    steps: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    every: int | None = None,
    label: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
    execution: Execution | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
) -> Outcome:
    """Train as the recipe says while its probes record, then evaluate on the test images.

    The seed decides the initial weights, the order of the images and their flips. PyTorch's global
    random state is left as it was. Of several processes (torchrun; see `propkit.training.train`) all
    call this: rank 0 writes the run of the whole batches and the checkpoint.

    Args:
        recipe: What to do.
        data: What to do it on.
        store: Path of the run to create; None keeps it in memory and loses it.
        steps: Instead of the recipe's.
        seed: At least 0.
        device: ``cpu``, ``cuda``, ``cuda:1``...
        every: Steps between two rows, instead of the recipe's.
        label: Name of the run in legends; the recipe's name if None.
        overwrite: Replace an existing run.
        progress: Show how far the training is.
        execution: Precision, memory layout, compilation, determinism.
        checkpoint_every: Save the training beside the store every so many steps, see
            `propkit.sweep.checkpoint_of`.
        resume: Go on at the checkpoint; rows of the run from its step on are recorded anew.

    Raises:
        FileExistsError: Something is at ``store``; nothing has been touched.
        FileNotFoundError: There is no checkpoint to resume from.
        ResumeError: It is of another training, or at its end already.
        DivergenceError: The training diverged; the run holds what led there.
        RecordingError: The probes or the pattern of blocks do not fit.
        ValueError: An argument is out of its range, or the device is not there.
    """
    recipe = replace(
        recipe,
        steps=recipe.steps if steps is None else steps,
        every=recipe.every if every is None else every,
    )
    check_device(device)
    processes = Processes()
    if recipe.normalization != "pixel":
        data = data.normalized_by(recipe.normalization)
    path = None if store is None else os.fspath(store)
    if (resume or checkpoint_every) and path is None:
        raise ValueError("a checkpoint lies beside the store: name one")
    if not (overwrite or resume):
        processes.only_first(lambda: check_free(store))
    with ExitStack() as stack:
        model = _build(recipe, data, seed).to(device)
        optimizer = make_optimizer(
            recipe.optimizer, model, recipe.lr, recipe.momentum, recipe.weight_decay, recipe.decay
        )
        label = recipe.name if label is None else label
        config = _config(recipe, data, seed, device, model)
        # Before the probes, so that a weight's recorded change is the whole one.
        parts = components(model, recipe, optimizer, seed, stack)
        checkpoint, start = None, 0
        if path is not None and (resume or checkpoint_every):
            checkpoint = Checkpoint(
                checkpoint_of(path), checkpoint_every or recipe.steps, parts, _essential(config)
            )
        if resume and checkpoint is not None:
            start = _load(checkpoint, model, optimizer, recipe.steps)
        recorder = stack.enter_context(
            _attach(
                model,
                path,
                probes=list(recipe.probes),
                every=recipe.every,
                blocks=recipe.blocks,
                optimizer=optimizer,
                label=label,
                config=config,
                seed=seed,
                **({"resume": True, "step": start} if resume else {"overwrite": overwrite}),
            )
        )
        if overwrite and path is not None and "://" not in path and processes.first:
            checkpoint_of(path).unlink(missing_ok=True)  # of the run that is no more
        if checkpoint is not None:
            checkpoint = replace(checkpoint, before_save=lambda steps: recorder.flush())  # noqa: ARG005 - its signature
        log = _Log(recorder, model, data, device, recipe)
        result = train(
            model,
            data,
            steps=recipe.steps,
            optimizer=optimizer,
            batch_size=recipe.batch_size,
            augmentation=Augmentation(recipe.flip, round(recipe.crop * min(data.shape[1:]))),
            milestones=recipe.milestones,
            gamma=recipe.gamma,
            warm_up=recipe.warm_up,
            orthonormality=recipe.orthonormality,
            seed=seed,
            device=device,
            execution=execution,
            checkpoint=checkpoint,
            start=start,
            callbacks=[log],
            progress=progress,
            label=label,
        )
    return Outcome(
        recipe=recipe,
        data=data.name,
        store=path,
        steps=result.steps,
        seconds=result.seconds,
        loss=result.loss,
        accuracy=result.accuracy,
        test_loss=log.test.loss,
        test_accuracy=log.test.accuracy,
    )


def check_free(store: str | os.PathLike[str] | None) -> None:
    """Refuse a store where something is already.

    Raises:
        FileExistsError: There is.
    """
    # A URL is left to the store, which refuses likewise.
    if store is not None and "://" not in os.fspath(store) and os.path.lexists(store):
        raise FileExistsError(f"{os.fspath(store)} exists; name another store or overwrite it")


def check_device(device: str) -> None:
    """Refuse a device that PyTorch cannot use.

    Raises:
        ValueError: It is unknown or not there.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used: {reason}") from None


class RecordingError(ValueError):
    """Probes, pattern or schedule do not fit; nothing has been trained."""


class _Log:
    """Writes the training curves to the run, and now and then those of the test images."""

    def __init__(
        self, recorder: "Recorder", model: nn.Module, data: ImageSet, device: str, recipe: Recipe
    ) -> None:
        self._recorder = recorder
        self._what = model, data, device
        self._every = recipe.evaluate_every
        self._last = recipe.steps - 1
        self.test = Evaluation(math.nan, math.nan, 0)

    def on_step(self, step: int, loss: Tensor, accuracy: Tensor) -> None:
        self._recorder.log(step=step, loss=loss, accuracy=accuracy)
        if step == self._last or (self._every and (step + 1) % self._every == 0):
            self.test = evaluate(*self._what)
            self._recorder.log(
                step=step, test_loss=self.test.loss, test_accuracy=self.test.accuracy
            )


class ResumeError(ValueError):
    """The checkpoint does not fit the training; nothing has been changed."""


def _load(
    checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int
) -> int:
    try:
        start = checkpoint.load(model, optimizer)
    except ValueError as error:
        raise ResumeError(str(error)) from error
    if start >= steps:
        raise ResumeError(f"{checkpoint.path} is at step {start}: all {steps} steps are done")
    return start


def _essential(config: dict[str, Any]) -> dict[str, Any]:
    """What a resumed training must have in common with the one before; it may be longer."""
    kept = {key: config[key] for key in ("recipe", "data", "seed")}
    free = ("steps", "every", "evaluate_every")
    kept["recipe"] = {key: value for key, value in kept["recipe"].items() if key not in free}
    return kept


def _build(recipe: Recipe, data: ImageSet, seed: int) -> nn.Module:
    # Modules draw default weights from the global generator, which is put back.
    with torch.random.fork_rng(devices=[]):
        model = recipe.build(data.num_classes, data.shape[0], math.prod(data.shape))
    return initialize(model, recipe.init, generator(seed, "init"))


def _config(
    recipe: Recipe, data: ImageSet, seed: int, device: str, model: nn.Module
) -> dict[str, Any]:
    return {
        "recipe": recipe.config(),
        "data": {
            **{"name": data.name, "shape": list(data.shape), "flip": data.flip},
            **{"train": len(data.train_images), "test": len(data.test_images)},
        },
        "seed": seed,
        "device": device,
        "processes": Processes().size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "optimizer": recipe.optimizer,
    }


def _attach(model: nn.Module, store: str | None, **arguments: Any) -> "Recorder":
    from propkit.attach import attach

    try:
        return attach(model, store, **arguments)
    except (LookupError, TypeError, ValueError, re.error) as error:
        raise RecordingError(f"the run cannot be recorded: {error}") from error
