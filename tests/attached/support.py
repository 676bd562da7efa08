"""What the tests of attached models share."""

import torch
from torch import nn

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
