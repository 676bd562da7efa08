"""Checkpoints of a training: all that it needs to go on as if it had never stopped."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from propkit.training.processes import Processes

_VERSION = 2


class Stateful(Protocol):
    """What else a training has: `propkit.training.modulate` and `project` return such handles."""

    def state_dict(self) -> dict[str, Any]:
        """Its state."""

    def load_state_dict(self, state: dict[str, Any]) -> object:
        """Take the state over."""


@dataclass(frozen=True)
class Checkpoint:
    """Where and when a training is saved.

    Of several processes rank 0 writes the file, and all read it: it lies where all can.

    Attributes:
        path: The file, replaced as a whole each time: a crash leaves the one before.
        every: Optimiser steps between two.
        parts: Name -> what else has a state.
        config: What a training that resumes must have in common with this one (JSON-able).
        before_save: Called with the number of completed steps, before the file is replaced: records
            of these steps must be safe first.

    Raises:
        ValueError: ``every`` is not positive.
    """

    path: Path
    every: int
    parts: Mapping[str, Stateful] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    before_save: Callable[[int], object] = lambda steps: None  # noqa: ARG005 - its signature

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"steps between checkpoints must be at least 1, found {self.every}")

    def save(self, steps: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Save the state after ``steps`` optimiser steps; of several processes all call it, and rank 0 writes.

        Modules that draw random numbers do so from PyTorch's global generators, whose states are
        saved too. The order of the images and their flips follow from the seed and the step.
        """
        self.before_save(steps)
        processes = Processes()
        processes.copy_buffers_(model)
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        random = processes.gather((torch.get_rng_state(), cuda))
        state = {
            "version": _VERSION,
            "steps": steps,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "config": dict(self.config),
            "random": [list(states) for states in random],
        }
        processes.only_first(lambda: self._write(state))

    def _write(self, state: dict[str, Any]) -> None:
        new = self.path.with_name(self.path.name + ".new")
        with new.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Put the saved state back.

        Returns:
            Number of steps completed.

        Raises:
            FileNotFoundError: There is no checkpoint.
            ValueError: It is of another training, or no checkpoint of this version.
        """
        state = read(self.path)
        processes = Processes()
        if len(state["random"]) != processes.size:
            raise ValueError(
                f"{self.path} is a checkpoint of a training by {len(state['random'])} processes, and here are "
                f"{processes.size}: batch norm would see other parts of the batches"
            )
        saved = state["config"]
        differing = sorted(
            key for key in {*saved, *self.config} if saved.get(key) != self.config.get(key)
        )
        if differing:
            key = differing[0]
            raise ValueError(
                f"{self.path} is a checkpoint of another training: {key} was {saved.get(key)!r}, "
                f"now {self.config.get(key)!r}"
            )
        if set(state["parts"]) != set(self.parts):
            raise ValueError(
                f"{self.path} holds the states of {sorted(state['parts'])}, "
                f"the training has {sorted(self.parts)}"
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        host, cuda = state["random"][processes.rank]
        torch.set_rng_state(host)
        if torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(cuda)
        return int(state["steps"])


def read(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU.

    Raises:
        FileNotFoundError: There is none.
        ValueError: The file is no checkpoint, or one of another version.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no checkpoint {path} to resume from") from None
    except Exception as error:
        raise ValueError(f"{path} is no checkpoint of propkit: {error}") from error
    if not isinstance(state, dict) or state.get("version") != _VERSION:
        raise ValueError(f"{path} is no checkpoint of this version of propkit")
    return state
