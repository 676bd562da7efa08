"""Nothing is left behind: no hook, no growing memory."""

import gc
import tracemalloc
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

import propkit
from propkit.testing import mlp
from tests.conftest import cross_entropy, make_case, sgd


def _hooks(model: nn.Module) -> int:
    of_modules = sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for m in model.modules()
    )
    of_tensors = sum(
        len(p._backward_hooks or ()) + len(p._post_accumulate_grad_hooks or ())
        for p in model.parameters()
    )
    return (
        of_modules
        + of_tensors
        + len(_global_optimizer_post_hooks)
        + len(_global_optimizer_pre_hooks)
    )


def _growth(action, warm: int, times: int) -> int:
    """Bytes of Python memory by which `times` repetitions grow it."""
    for _ in range(warm):
        action()
    gc.collect()
    tracemalloc.start()
    try:
        action()
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(times):
            action()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_a_thousand_attach_and_detach_cycles() -> None:
    model = mlp(depth=3)
    bare = _hooks(model)
    growth = _growth(lambda: propkit.attach(model, probes="error_moment").detach(), 20, 1000)
    assert _hooks(model) == bare
    assert growth < 100_000, f"{growth} bytes in 1000 cycles"


@pytest.mark.slow
def test_a_thousand_observed_steps(tmp_path: Path) -> None:
    """Rows go to the store, so the process does not grow with the run; the graph of a step is freed with it."""
    model, x, y = make_case("mlp")
    optimizer = sgd(model)
    bare = _hooks(model)
    with propkit.attach(model, tmp_path / "run.zarr") as recorder:

        def step() -> None:
            optimizer.zero_grad()
            loss = cross_entropy(x, y)(model)
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)

        growth = _growth(step, 200, 1000)
    assert _hooks(model) == bare
    assert growth < 300_000, f"{growth} bytes in 1000 steps"
    assert propkit.open(tmp_path / "run.zarr")["error_moment"].sizes["step"] == 1201


def test_tensors_of_a_step_are_freed_with_it() -> None:
    model, x, y = make_case("plain")
    optimizer = sgd(model)

    def alive() -> int:
        gc.collect()
        return sum(1 for o in gc.get_objects() if type(o) is torch.Tensor and o.ndim > 1)

    with propkit.attach(model):
        for _ in range(3):
            optimizer.zero_grad()
            cross_entropy(x, y)(model).backward()
            optimizer.step()
        first = alive()
        for _ in range(5):
            optimizer.zero_grad()
            cross_entropy(x, y)(model).backward()
            optimizer.step()
        assert alive() <= first
