"""Runs made of given numbers, in memory and on disk."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from propkit import Run
from propkit.schema import Group, Variable
from propkit.store.memory import MemoryWriter
from propkit.store.writer import ZarrWriter

Groups = Mapping[str, Mapping[str, Any]]
TYPES = ["Conv2d", "Conv2d", "Conv2d", "Linear"]


def write(writer: Any, steps: Any, groups: Groups, types: list[str], close: bool = True) -> None:
    """Put variables (steps, sites) into a run; `groups` is group -> variable -> values."""
    sites = len(types)
    coords = {
        "site": np.array([f"layer{i}" for i in range(1, sites + 1)]),
        "depth": np.arange(1, sites + 1),
        "type": np.array(types),
        "fan_in": np.full(sites, 9),
        "fan_out": np.array([2, 4, 8, 10] if sites == 4 else [4] * sites),
    }
    for name, variables in groups.items():
        writer.define(Group(name, tuple(Variable(v) for v in variables), coords))
        if len(steps):
            columns = {k: np.asarray(v, dtype=np.float64) for k, v in variables.items()}
            writer.append(name, np.asarray(steps), columns)
    writer.commit()
    if close:
        writer.close("complete")


def run_of(steps: Any, groups: Groups, types: list[str] = TYPES, **attributes: Any) -> Run:
    writer = MemoryWriter(attributes)
    write(writer, steps, groups, types)
    return Run.from_memory(writer)


def store_of(
    path: Any, steps: Any, groups: Groups, types: list[str] = TYPES, **attributes: Any
) -> Any:
    write(ZarrWriter.create(path, attributes), steps, groups, types)
    return path


STEPS = [0, 2, 5, 10]
Q = [[1.0, 10.0, 100.0, 7.0], [2.0, 4.0, 8.0, 7.0], [6.0, 3.0, 3.0, 7.0], [1e-9, 1e-4, 1e-3, 7.0]]
CORRELATION = [[0.0, 0.0, 0.0, 0.9], [0.5, 0.1, 0.2, 0.9], [0.1, 0.1, 0.1, 0.9], [-0.1, 0, 0.1, 0]]
PAIRS = [[1.0, 6.0, 28.0, 45.0]] * 4
NORM = [[2.0, 2.0, 4.0, 1.0]] * 4
GROUPS: dict[str, dict[str, Any]] = {
    "error_moment": {"output": Q, "input": Q},
    "filter_correlation": {"correlation": CORRELATION, "pairs": PAIRS},
    "weight": {"norm": NORM},
}
"""A hand-made run of four steps: three convolutions with 2, 4 and 8 filters and a linear layer."""


@pytest.fixture
def run() -> Run:
    return run_of(STEPS, GROUPS, label="tiny")


@pytest.fixture
def make_run() -> Callable[..., Run]:
    return run_of


@pytest.fixture
def make_store() -> Callable[..., Any]:
    return store_of


@pytest.fixture
def groups() -> dict[str, dict[str, Any]]:
    """The quantities of `run`, at `steps`."""
    return {k: dict(v) for k, v in GROUPS.items()}


@pytest.fixture
def steps() -> list[int]:
    return list(STEPS)
