"""Run a recipe: the one place where model, data, trainer and probes meet."""

import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from propkit.data.imageset import ImageSet
from propkit.recipes import Recipe
from propkit.training import evaluate, generator, initialize, sgd, train

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
) -> Outcome:
    """Train as the recipe says while its probes record, then evaluate on the test images.

    The seed decides the initial weights, the order of the images and their flips. PyTorch's global
    random state is left as it was.

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

    Raises:
        FileExistsError: Something is at ``store``; nothing has been touched.
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
    if not overwrite:
        check_free(store)
    model = _build(recipe, data, seed).to(device)
    optimizer = sgd(model, recipe.lr, recipe.momentum, recipe.weight_decay, recipe.decay)
    label = recipe.name if label is None else label
    with _attach(
        model,
        None if store is None else os.fspath(store),
        probes=list(recipe.probes),
        every=recipe.every,
        blocks=recipe.blocks,
        optimizer=optimizer,
        label=label,
        config=_config(recipe, data, seed, device, model),
        seed=seed,
        overwrite=overwrite,
    ) as recorder:
        result = train(
            model,
            data,
            steps=recipe.steps,
            optimizer=optimizer,
            batch_size=recipe.batch_size,
            milestones=recipe.milestones,
            gamma=recipe.gamma,
            orthonormality=recipe.orthonormality,
            seed=seed,
            device=device,
            callbacks=[_Log(recorder)],
            progress=progress,
            label=label,
        )
        test = evaluate(model, data, device)
    return Outcome(
        recipe=recipe,
        data=data.name,
        store=None if store is None else os.fspath(store),
        steps=result.steps,
        seconds=result.seconds,
        loss=result.loss,
        accuracy=result.accuracy,
        test_loss=test.loss,
        test_accuracy=test.accuracy,
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
    """Writes the training curves to the run."""

    def __init__(self, recorder: "Recorder") -> None:
        self._recorder = recorder

    def on_step(self, step: int, loss: Tensor, accuracy: Tensor) -> None:
        self._recorder.log(step=step, loss=loss, accuracy=accuracy)


def _build(recipe: Recipe, data: ImageSet, seed: int) -> nn.Module:
    # Modules draw default weights from the global generator, which is put back.
    with torch.random.fork_rng(devices=[]):
        model = recipe.build(data.num_classes, data.shape[0])
    return initialize(model, recipe.init, generator(seed, "init"))


def _config(
    recipe: Recipe, data: ImageSet, seed: int, device: str, model: nn.Module
) -> dict[str, Any]:
    return {
        "recipe": recipe.config(),
        "data": {
            "name": data.name,
            "shape": list(data.shape),
            "train": len(data.train_images),
            "test": len(data.test_images),
            "flip": data.flip,
        },
        "seed": seed,
        "device": device,
        "parameters": sum(p.numel() for p in model.parameters()),
        "optimizer": "SGD",
    }


def _attach(model: nn.Module, store: str | None, **arguments: Any) -> "Recorder":
    from propkit.attach import attach

    try:
        return attach(model, store, **arguments)
    except (LookupError, TypeError, ValueError, re.error) as error:
        raise RecordingError(f"the run cannot be recorded: {error}") from error
