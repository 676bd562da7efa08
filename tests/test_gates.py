"""Compiled models on steps in which nothing is measured: gates instead of hooks, and everything in its place again."""

import copy
import io
from collections.abc import Iterator

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import propkit
from propkit.hooks.gates import Gate, put_back, take_out
from propkit.hooks.hook import Hook
from propkit.testing import brute_force
from tests.conftest import cross_entropy, make_case, sgd


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _hooks(model: nn.Module) -> list[Hook]:
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    return [
        h
        for m in model.modules()
        for kind in kinds
        for h in getattr(m, kind).values()
        if isinstance(h, Hook)
    ]


def _step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _compiled(model: nn.Module) -> tuple[nn.Module, CompileCounterWithBackend]:
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(model, backend=counter, fullgraph=True), counter


def test_one_gate_a_site_on_unsampled_steps_and_no_hook_in_the_end() -> None:
    def sites(recorder: propkit.Recorder) -> set[str]:
        run = recorder.run
        return {str(site).partition("#")[0] for group in run for site in run[group]["site"].values}

    model, x, y = make_case("residual")
    optimizer = sgd(model)
    with propkit.attach(model, every=2) as recorder:
        fast, counter = _compiled(model)
        for step in range(6):
            if step % 2:
                assert {type(h) for h in _hooks(model)} == {Gate}
                assert len(_hooks(model)) == len(sites(recorder))
            elif step:
                assert Gate not in {type(h) for h in _hooks(model)}
            _step(optimizer, cross_entropy(x, y)(fast))
    assert counter.frame_count == 2
    assert not _hooks(model)
    assert np.isfinite(recorder.run["error_moment"]["output"].values).all()


@pytest.mark.parametrize("last", [3, 4])
def test_detached_between_whatever_steps_nothing_is_left(last: int) -> None:
    model, x, y = make_case("mlp")
    optimizer = sgd(model)
    with propkit.attach(model, every=2):
        fast, _ = _compiled(model)
        for _ in range(last):
            _step(optimizer, cross_entropy(x, y)(fast))
    assert not _hooks(model)
    for m in model.modules():
        for name in ("_forward_hooks_with_kwargs", "_forward_hooks_always_called"):
            assert not getattr(m, name)
        assert not m._forward_pre_hooks_with_kwargs


def test_first_compiled_on_an_unsampled_step() -> None:
    """As in a run that is resumed: there is no third graph, and the numbers of calls are those of an eager run."""
    model, x, y = make_case("residual")
    optimizer = sgd(model)
    with propkit.attach(model, every=lambda step: step in (2, 5)) as recorder:
        fast, counter = _compiled(model)
        for step in range(7):
            if step == 2:
                assert counter.frame_count == 1
                oracle = brute_force(model, cross_entropy(x, y))
            _step(optimizer, cross_entropy(x, y)(fast))
    assert counter.frame_count == 2
    errors = recorder.run["error_moment"]
    assert errors["step"].values.tolist() == [2, 5]
    for site, value in zip(errors["site"].values, errors["output"].sel(step=2).values, strict=True):
        name, _, call = str(site).partition("#")
        expected = oracle[name][int(call or 0)].grad_output
        np.testing.assert_allclose(value, float((expected.double() ** 2).mean()), rtol=1e-5)


def test_an_evaluation_has_one_graph_without_a_hook() -> None:
    """It is good on sampled and on unsampled steps alike."""
    model, x, y = make_case("plain")
    optimizer = sgd(model)
    with propkit.attach(model, every=2) as recorder:
        fast, counter = _compiled(model)
        for step in range(6):
            _step(optimizer, cross_entropy(x, y)(fast))
            model.eval()
            with torch.no_grad():
                torch.testing.assert_close(fast(x), model(x))
            model.train()
            assert {type(h) is Gate for h in _hooks(model)} == {step % 2 == 0}
    assert counter.frame_count == 3
    assert recorder.run["error_moment"].sizes["step"] == 3


def test_a_model_at_rest_is_copied_and_saved() -> None:
    model, x, y = make_case("mlp")
    optimizer = sgd(model)
    with propkit.attach(model, every=5) as recorder:
        fast, _ = _compiled(model)
        for _ in range(2):
            _step(optimizer, cross_entropy(x, y)(fast))
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
            assert not _hooks(twin)
            torch.testing.assert_close(twin(x), model(x))
    assert recorder.run["error_moment"]["step"].values.tolist() == [0]


def test_hooks_of_others_keep_their_order_and_effect() -> None:
    """One from before, one put first, one that comes while nothing is measured."""
    model, x, y = make_case("mlp")
    twin = copy.deepcopy(model)

    def register(net: nn.Module, name: str, **options: bool) -> None:
        factor = float(len(name))
        net[0].register_forward_hook(lambda m, a, r: r * factor + 1.0, **options)
        net[0].register_forward_pre_hook(lambda m, a: (a[0] * factor - 1.0,), **options)

    def train(net: nn.Module) -> list[float]:
        optimizer = sgd(net)
        register(net, "a")
        fast, _ = _compiled(net)
        losses = []
        for step in range(8):
            if step == 2:
                register(net, "bbb", prepend=True)
            if step == 4:
                register(net, "cc")
            loss = cross_entropy(x, y)(fast)
            losses.append(loss.item())
            _step(optimizer, loss)
        return losses

    expected = train(twin)
    torch._dynamo.reset()
    with propkit.attach(model, every=3) as recorder:
        assert train(model) == expected
    assert recorder.run["error_moment"]["step"].values.tolist() == [0, 3, 6]
    assert len(model[0]._forward_hooks) == 3


def test_two_recorders_share_two_graphs() -> None:
    """Their hooks come back in one order, whichever comes back first."""
    model, x, y = make_case("mlp")
    optimizer = sgd(model)
    with propkit.attach(model, every=2) as one, propkit.attach(model, every=2) as two:
        fast, counter = _compiled(model)
        for _ in range(7):
            _step(optimizer, cross_entropy(x, y)(fast))
    assert counter.frame_count == 2
    for recorder in (one, two):
        errors = recorder.run["error_moment"]
        assert errors["step"].values.tolist() == [0, 2, 4, 6]
        assert np.isfinite(errors["output"].values).all()
    assert not _hooks(model)


class _Silent(Hook):
    def __init__(self) -> None:
        super().__init__(lambda *_: None)


@given(st.lists(st.booleans(), max_size=8), st.integers(0, 3), st.data())
def test_taken_out_and_put_back(mine: list[bool], late: int, data: st.DataObject) -> None:
    """Hooks of others keep their order, as they are now; ours are where they were among those that still are there."""
    module, handles, others = nn.Identity(), [], []
    first = data.draw(st.booleans())  # some are put before those that are there
    for own in mine:
        prepend = first and data.draw(st.booleans())
        hook = _Silent() if own else (lambda *_: None)
        handle = module.register_forward_hook(hook, prepend=prepend, with_kwargs=own)
        (handles if own else others).append(handle)
    before = list(module._forward_hooks.items())
    absent = take_out(handles)
    assert not any(isinstance(h, Hook) for h in module._forward_hooks.values())
    assert not module._forward_hooks_with_kwargs
    gone = data.draw(st.sets(st.sampled_from(others))) if others else set()
    for handle in gone:
        handle.remove()
    new = [
        module.register_forward_hook(lambda *_: None, prepend=data.draw(st.booleans()))
        for _ in range(late)
    ]
    foreign = list(module._forward_hooks)
    put_back(absent)
    after = list(module._forward_hooks.items())
    assert [k for k, h in after if not isinstance(h, Hook)] == foreign
    known = {handle.id for handle in new} | {handle.id for handle in gone}
    assert [i for i in after if i[0] not in known] == [i for i in before if i[0] not in known]
    assert set(module._forward_hooks_with_kwargs) == {handle.id for handle in handles}
    if (
        not first and not late
    ):  # else others make another order there; it is what a graph is guarded by
        assert list(dict.keys(module._forward_hooks)) == [k for k, _ in after]
    for handle in handles:
        handle.remove()
    assert list(module._forward_hooks) == foreign
