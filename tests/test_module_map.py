"""A module as a map: the values and Jacobians of a copy, and no trace on the module itself."""

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import (
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

import propkit
from propkit.module_map import module_map
from propkit.spectra.jacobian import jacobian_extremes, jacobian_matrix, jacobian_moments
from propkit.spectra.linearize import Jacobian
from propkit.testing import TinyResNet
from tests.conftest import cross_entropy, make_case, sgd


class Restless(nn.Module):
    """Changes buffers, draws random numbers, changes its input in place, takes and returns more than one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.spectral_norm(nn.Conv1d(3, 3, 3, padding=1))
        self.norm = nn.BatchNorm1d(3)
        self.calls = 0

    def forward(self, index, x, *, scale, mask=None):
        self.calls += 1
        x.relu_()
        x = checkpoint(lambda z: self.norm(self.conv(z)), x, use_reentrant=False)
        scale.mul_(2)
        noise = random.random() + float(np.random.rand())  # noqa: NPY002 - the global state is meant
        return {"index": index, "hidden": [F.dropout(x, 0.3) * scale * noise, mask]}


def _arguments() -> tuple[tuple, dict]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(4, 3, 5, generator=generator)
    return (torch.arange(4), x), {"scale": torch.full((3, 1), 1.5), "mask": None}


def _state(module: nn.Module) -> list:
    tensors = [t.detach().clone() for t in (*module.parameters(), *module.buffers())]
    return [*tensors, torch.get_rng_state(), torch.tensor(module.calls)]


def test_the_value_is_that_of_the_next_forward_each_time_and_nothing_changes() -> None:
    module = Restless()
    args, kwargs = _arguments()
    before, python, numpy = _state(module), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002 - the global state is meant
    with module_map(module, *args, **kwargs) as (function, x):
        values = [function(x) for _ in range(3)]
        assert not x.requires_grad
        jacobian_extremes(function, x, iterations=4)
        inside = [t.clone() for t in module.parameters()]
    for a, b in zip(before, _state(module), strict=True):
        assert torch.equal(a, b)
    assert random.getstate() == python
    assert np.array_equal(np.random.get_state()[1], numpy)  # noqa: NPY002 - likewise
    assert all(p.grad is None for p in module.parameters())
    for a, b in zip(inside, module.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(args[1], _arguments()[0][1])
    assert torch.equal(kwargs["scale"], _arguments()[1]["scale"])
    expected = module(*args, **kwargs)["hidden"][0]
    assert module.norm.num_batches_tracked == 1
    for value in values:
        assert torch.equal(value, expected)


def test_the_jacobian_is_that_of_a_copy() -> None:
    model, x, _ = make_case("residual")
    twin = copy.deepcopy(model)
    expected = torch.autograd.functional.jacobian(lambda z: twin(z), x).reshape(24, -1)
    with module_map(model, x.requires_grad_()) as (function, z):
        found = jacobian_matrix(function, z)
    assert not z.requires_grad
    assert x.grad is None
    torch.testing.assert_close(found.float(), expected)


def test_a_tensor_that_is_given_several_times_is_varied_everywhere() -> None:
    attention = nn.MultiheadAttention(4, 2, batch_first=True).double()
    x = torch.randn(1, 3, 4, dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(lambda z: attention(z, z, z)[0], x)
    with module_map(attention, x, x, value=x) as (function, z):
        torch.testing.assert_close(jacobian_matrix(function, z), expected.reshape(12, 12))
    with module_map(attention, x, x.clone(), x.clone()) as (function, z):
        assert not torch.allclose(jacobian_matrix(function, z), expected.reshape(12, 12))


def test_training_goes_on_as_if_nothing_had_been_measured() -> None:
    results = []
    for watched in (True, False):
        torch.manual_seed(5)
        net = nn.Sequential(TinyResNet(), nn.Dropout(0.5))
        _, x, y = make_case("residual")
        optimizer, losses = sgd(net), []
        for _ in range(3):
            if watched:
                with torch.no_grad(), module_map(net, x) as (function, z):
                    jacobian_moments(function, z, probes=2)
            optimizer.zero_grad()
            loss = cross_entropy(x, y)(net)
            loss.backward()
            if watched:
                with module_map(net[0].blocks, torch.randn(2, 6, 4, 4).clone()) as (function, z):
                    jacobian_moments(function, z, probes=2)
                torch.manual_seed(len(losses))
            else:
                torch.manual_seed(len(losses))
            optimizer.step()
            losses.append(loss.item())
        results.append((losses, [t.clone() for t in net.state_dict().values()]))
    assert results[0][0] == results[1][0]
    assert all(map(torch.equal, results[0][1], results[1][1]))


def test_a_recording_does_not_notice_not_even_in_a_recomputed_checkpoint() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    outer = nn.ModuleList([module])
    outer.forward = lambda x: checkpoint(module, x, use_reentrant=False)
    runs = []
    for mapped in (True, False):
        with propkit.attach(outer, probes=["activation", "error_moment"]) as recorder:
            outer(torch.ones(3, 4)).sum().backward()
            if mapped:
                with module_map(outer, torch.randn(3, 4)) as (function, x):
                    jacobian_moments(function, x, probes=2)
            recorder.step()
        runs.append(recorder.run)
    for group in runs[0].groups:
        assert runs[0][group].equals(runs[1][group]), group


def _saving_products() -> tuple:
    return create_selective_checkpoint_contexts([torch.ops.aten.addmm.default])


@pytest.mark.parametrize("context", [noop_context_fn, _saving_products])
def test_inside_a_checkpoint_under_way(context) -> None:
    """It counts what is saved for backward, a selective one keeps results: what is measured must not be among them."""
    layer = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    x = torch.randn(3, 4, requires_grad=True)
    layer(x).square().sum().backward()
    expected, x.grad = x.grad, None
    found = []

    def watched(z: torch.Tensor) -> torch.Tensor:
        if torch._C._current_graph_task_id() == -1:  # not in the recomputation
            with module_map(layer, 2 * z) as (function, point):
                found.append(jacobian_matrix(function, point))
        return layer(z)

    y = checkpoint(watched, x, use_reentrant=False, context_fn=context)
    y.square().sum().backward()
    assert torch.equal(x.grad, expected)
    assert torch.equal(found[0], jacobian_matrix(layer, 2 * x))


def test_the_autocast_of_the_entry_holds() -> None:
    layer = nn.Linear(8, 8)
    x = torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(x)
        with module_map(layer, x) as (function, z), torch.autocast("cpu", enabled=False):
            assert torch.equal(function(z), expected)
    with module_map(layer, x) as (function, z), torch.autocast("cpu", torch.bfloat16):
        assert function(z).dtype == torch.float32


def test_inference_mode_does_not_matter() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    x = torch.randn(5, 4)
    expected = jacobian_matrix(net, x)
    with torch.inference_mode(), module_map(net, x * 1) as (function, z):
        assert torch.equal(jacobian_matrix(function, z), expected)


def test_hooks_of_the_module_itself_run_unless_its_forward_is_given() -> None:
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda module, args, result: 3 * result)
    x = torch.randn(1, 2)
    with module_map(layer, x) as (function, z):
        hooked = function(z)
    with module_map(layer, x, forward=layer.forward) as (function, z):
        torch.testing.assert_close(hooked, 3 * function(z))


def test_an_exception_inside_leaves_everything_as_it_was() -> None:
    model, x, _ = make_case("plain")
    before = [b.clone() for b in model.buffers()]
    with pytest.raises(RuntimeError), module_map(model, x) as (function, z):  # noqa: PT012 - it is raised inside
        function(z)
        function(z[:, :1])
    assert all(map(torch.equal, before, model.buffers()))


def test_what_has_no_jacobian_is_said() -> None:
    embedding = nn.Embedding(5, 3)
    with (
        pytest.raises(ValueError, match="Embedding received no floating-point tensor"),
        module_map(embedding, torch.arange(5)),
    ):
        pass

    class Counts(nn.Module):
        def forward(self, x):
            return x.argmax(1)

    with (
        pytest.raises(ValueError, match="returned no floating-point tensor"),
        module_map(Counts(), torch.ones(2, 3)) as (function, z),
    ):
        Jacobian(function, z)


def test_modules_that_talk_to_other_processes_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    model = nn.Sequential(nn.Linear(3, 3), nn.SyncBatchNorm(3))
    x = torch.randn(4, 3)
    with (
        pytest.raises(ValueError, match=r"1 \(SyncBatchNorm\) exchanges data"),
        module_map(model, x),
    ):
        pass
    with module_map(model.eval(), x):
        pass
    model[0].weight.full_tensor = lambda: None  # as a sharded parameter has
    with pytest.raises(ValueError, match=r"0 \(Linear\) exchanges data"), module_map(model, x):
        pass
