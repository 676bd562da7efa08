"""What the tests of attached models share."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import propkit
from tests.conftest import sgd

EXACT = {"rtol": 1e-5, "atol": 1e-30}


def mean_square(t: torch.Tensor | None) -> float:
    return float("nan") if t is None else float((t.detach().double() ** 2).mean())


def norm(t: torch.Tensor | None) -> float:
    return float("nan") if t is None else float((t.detach().double() ** 2).sum().sqrt())


def train_mlp(model: nn.Module, loss, steps: int = 1, **options) -> propkit.Recorder:
    optimizer = sgd(model)
    with propkit.attach(model, **options) as recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model).backward()
            optimizer.step()
    return recorder


def output_moments(recorder: propkit.Recorder, step: int = 0) -> dict[str, float]:
    ds = recorder.run["error_moment"]
    return dict(zip(ds["site"].values.tolist(), ds["output"].values[step].tolist(), strict=True))


def count_hooks(model: nn.Module) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for m in model.modules()
    )


class Checkpointed(nn.Module):
    """A network whose body is recomputed in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.stem, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.body = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(checkpoint(self.body, self.stem(x), use_reentrant=self.reentrant))
