"""Shared by all tests: fixed seeds, and a training loop in a few lines."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from propkit.testing import TinyPlain, TinyResNet, mlp

torch.set_num_threads(1)  # the tests run side by side

Case = tuple[nn.Module, torch.Tensor, torch.Tensor]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_case(kind: str) -> Case:
    """A model and a batch for it."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 3, (8,), generator=generator)
    if kind == "mlp":
        return mlp(), torch.randn(8, 12, generator=generator), labels
    images = torch.randn(8, 3, 7, 5, generator=generator)
    return {"plain": TinyPlain, "residual": TinyResNet}[kind](), images, labels


@pytest.fixture(params=["plain", "residual", "mlp"])
def case(request: pytest.FixtureRequest) -> Case:
    return make_case(request.param)


def cross_entropy(x: torch.Tensor, y: torch.Tensor) -> Callable[[nn.Module], torch.Tensor]:
    return lambda model: F.cross_entropy(model(x), y)


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)


@pytest.fixture
def small_chunks(monkeypatch):
    """Eight rows a chunk, so that few rows fill several."""
    monkeypatch.setattr("propkit.store.arrays.LONGEST_CHUNK", 8)
