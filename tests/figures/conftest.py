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


QUANTILES = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
VALUES = 5
"""Singular values, or channels, of a layer."""


def full_run(
    steps: Any = (0, 1, 10, 100),
    layers: int = 6,
    change: Callable[[np.ndarray], np.ndarray] = lambda values: values,
    without: tuple[str, ...] = (),
    attributes: Any = None,
) -> Run:
    """Variable v of site s at the n-th step is (1 + n + s) times a factor of its own; `change` is applied to all."""
    config = {"parameters": 1234}
    writer = MemoryWriter({"label": "all", "config": config, **(attributes or {})})
    for name, variables in _ALL_GROUPS.items():
        if name in without:
            continue
        kinds = ["ReLU" if i % 2 else "Conv2d" for i in range(layers)]
        if name not in ("activation", "representation", "activation_maps"):
            kinds = ["Conv2d"] * layers
        coords, axes = {}, {}
        if name != "log":
            coords = {
                "site": np.array([f"layer{i}" for i in range(layers)], dtype=str),
                "depth": np.arange(1, layers + 1),
                "type": np.array(kinds, dtype=str),
                "input_shape": np.array(
                    [f"(8, {4 + i // 3}, 2, 2)" for i in range(layers)], dtype=str
                ),
                "output_shape": np.array(
                    [f"(8, {4 + (i + 1) // 3}, 2, 2)" for i in range(layers)], dtype=str
                ),
                "fan_in": np.full(layers, 9),
                "fan_out": np.array([0 if k == "ReLU" else 4 for k in kinds], dtype=int),
            }
        dims = {"value": "singular_value", "rho": "channel", "quantiles": "quantile"}
        if name in _PICTURES:
            dims = {"value": _PICTURES[name]}
        own = {dims[v] for v in variables if v in dims}
        for dim in own:
            axes[dim] = QUANTILES if dim == "quantile" else None
            if dim != "quantile":
                coords["row_size"] = np.full(layers, VALUES)
        group = Group(
            name, tuple(Variable(v, dim=dims.get(v, "")) for v in variables), coords, axes=axes
        )
        writer.define(group)
        if len(steps):
            n = len(steps)
            columns = {}
            for factor, v in zip(variables.values(), variables, strict=True):
                base = (1.0 + np.arange(n)[:, None] + np.arange(group.width)) * factor
                if name == "log":
                    base = base[:, 0]
                elif v in _SIZES:
                    columns[v] = np.full_like(base, _SIZES[v])
                    continue
                elif v == "quantiles":
                    base = base[:, :, None] * QUANTILES
                elif v in dims:
                    base = (base[:, :, None] * np.linspace(1, 0, VALUES)).reshape(n, -1)
                columns[v] = change(base).astype(np.float64)
            writer.append(name, np.asarray(steps), columns)
    writer.commit()
    writer.close("complete")
    return Run.from_memory(writer)


_ALL_GROUPS = {
    "error_moment": {"output": 1.0, "input": 1.0},
    "gradient_norm": {"input": 1.0, "output": 2.0},
    "activation": {"mean_abs": 0.5, "mean_square": 1.0},
    "filter_correlation": {"correlation": 0.01, "pairs": 1.0},
    "weight": {"norm": 2.0},
    "representation": {
        "condition_number": 10.0,
        "effective_rank": 1.0,
        "top_share": 0.01,
        "mean_cosine": 0.01,
    },
    "bn_jacobian": {"rho": 1.0, "rho_mean": 1.0, "rho_min": 0.5, "rho_max": 2.0, "deviation": 0.1},
    "singular_values": {"value": 1.0, "spectral_norm": 1.0},
    "singular_value_quantiles": {"quantiles": 1.0, "spectral_norm": 1.0},
    "jacobian_spectrum": {"largest": 4.0, "smallest": 1.0, "mean_square": 1.0, "spread": 0.5},
    "filters": {"value": 0.1, "channels": 1.0, "height": 1.0, "width": 1.0},
    "activation_maps": {"value": 0.1, "maps": 1.0, "height": 1.0, "width": 1.0},
    "log": {"loss": 1.0, "accuracy": 0.1, "test_loss": 2.0, "test_accuracy": 0.05},
}


_PICTURES = {"filters": "filter_element", "activation_maps": "map_element"}
_SIZES = {"channels": 1.0, "maps": 1.0, "height": 1.0, "width": VALUES}
"""Of pictures, which are the same at all steps."""


@pytest.fixture
def recorded() -> Callable[..., Run]:
    return full_run
