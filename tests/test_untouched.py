"""Measuring a model leaves no trace: everything is afterwards, bit for bit, what it was before."""

import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import propkit
from propkit.testing import TinyResNet
from tests.conftest import cross_entropy, make_case, sgd


def _scripted(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(module)


def _hooks(model: nn.Module) -> int:
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    on_modules = sum(len(getattr(m, t)) for m in model.modules() for t in tables)
    return on_modules + sum(len(p._backward_hooks or {}) for p in model.parameters())


class Stateful(nn.Module):
    """Everything that a forward pass changes: buffers, attributes, random states, weights, inputs, mode."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 12, max_norm=0.5)
        self.conv = nn.utils.parametrizations.spectral_norm(nn.Conv1d(3, 6, 3, padding=1))
        self.old = nn.utils.spectral_norm(nn.Linear(12, 12))
        self.norm = nn.BatchNorm1d(6)
        self.query = nn.Parameter(torch.randn(6, 12))
        self.head = nn.Linear(12, 3)
        self.register_buffer("count", torch.zeros(2), persistent=False)
        self.same = self.norm.running_mean  # a reference that must stay one
        self.seen, self.fail = None, False

    def forward(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        self.count += 1
        self.count = self.count + random.random() + np.random.rand()  # noqa: NPY002 - the global state is meant
        x = x.mul_(2) if not x.requires_grad else x * 2
        hidden = F.dropout(self.norm(self.conv(x)).relu_(), 0.3) + self.old(self.query)
        hidden = hidden + self.embedding(index)[:, None]
        self.seen = hidden
        self.extra = hidden.detach()
        self.eval()
        if self.fail:
            raise KeyboardInterrupt
        return self.head(hidden.mean(1))


def _snapshot(model: nn.Module) -> dict[str, object]:
    return {
        "buffers": {n: (id(b), b._version, b.clone()) for n, b in model.named_buffers()},
        "parameters": {n: (id(p), p.requires_grad) for n, p in model.named_parameters()},
        "values": {n: p.detach().clone() for n, p in model.named_parameters()},
        "grads": {
            n: (id(p.grad), p.grad.clone())
            for n, p in model.named_parameters()
            if p.grad is not None
        },
        "attributes": [{k: id(v) for k, v in m.__dict__.items()} for m in model.modules()],
        "training": [m.training for m in model.modules()],
        "hooks": _hooks(model),
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].copy(),  # noqa: NPY002 - likewise
    }


def _assert_same(a: object, b: object, where: str = "") -> None:
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for k in a:
            _assert_same(a[k], b[k], f"{where}/{k}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            _assert_same(x, y, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, np.ndarray):
        assert np.array_equal(a, b), where
    else:
        assert a == b, where


@pytest.mark.parametrize(("fail", "needs_gradient"), [(False, False), (False, True), (True, False)])
def test_nothing_at_all_is_changed(fail: bool, needs_gradient: bool) -> None:
    model = Stateful()
    model.head.bias.requires_grad_(False)
    x, index, y = torch.randn(8, 3, 12), torch.arange(8) % 5, torch.arange(8) % 3
    F.cross_entropy(model(x.clone(), index), y).backward()
    model.train()
    model.norm.eval()
    stepped = []
    model.query.register_hook(lambda grad: None)
    model.head.weight.register_post_accumulate_grad_hook(lambda p: stepped.append(p))
    images = x.clone().requires_grad_(needs_gradient)
    inputs = images.clone()
    model.fail = fail
    before = _snapshot(model)
    if fail:
        with pytest.raises(KeyboardInterrupt):
            propkit.measure(model, images, index, y, loss=F.cross_entropy)
    else:
        found = propkit.measure(model, images, index, y, loss=F.cross_entropy)
        assert (found["error_moment"]["output"].values > 0).all()
    _assert_same(before, _snapshot(model))
    assert model.same is model.norm.running_mean
    assert torch.equal(inputs, images)
    assert images.grad is None
    assert images._backward_hooks is None
    assert stepped == []


def test_an_input_that_needs_a_gradient_reaches_the_first_layer() -> None:
    model, x, y = make_case("mlp")
    upstream = nn.Linear(12, 12)
    found = propkit.measure(model, upstream(x), y, loss=F.cross_entropy)
    assert found["error_moment"]["input"].sel(site="0") > 0
    assert upstream.weight.grad is None


def test_a_graph_in_flight_survives() -> None:
    """A backward pass that is still to come finds the tensors that it saved."""
    model, x, y = make_case("plain")
    model.eval()  # the running statistics are saved for the backward pass
    loss = cross_entropy(x, y)(model)
    model.train()
    propkit.measure(model, x, y, loss=F.cross_entropy)
    loss.backward()


def test_training_goes_on_as_if_nothing_had_been_measured() -> None:
    model, x, y = make_case("residual")
    model.dropout = nn.Dropout(0.5)
    model.forward = lambda x, f=TinyResNet.forward: f(model, model.dropout(x))
    twin = TinyResNet()
    twin.load_state_dict(model.state_dict())
    twin.dropout = nn.Dropout(0.5)
    twin.forward = lambda x, f=TinyResNet.forward: f(twin, twin.dropout(x))
    results = []
    for net, watched in ((model, True), (twin, False)):
        torch.manual_seed(5)
        optimizer, losses = sgd(net), []
        for _ in range(3):
            if watched:
                propkit.measure(net, x, y, loss=F.cross_entropy)
            optimizer.zero_grad()
            loss = cross_entropy(x, y)(net)
            loss.backward()
            if watched:
                propkit.measure(net, x, y, loss=F.cross_entropy)
            optimizer.step()
            losses.append(loss.item())
        results.append((losses, net.state_dict(), torch.get_rng_state()))
    _assert_same(results[0][0], results[1][0])
    _assert_same(dict(results[0][1]), dict(results[1][1]))
    assert torch.equal(results[0][2], results[1][2])


def test_a_recording_in_progress_does_not_notice() -> None:
    runs = []
    for measured in (True, False):
        torch.manual_seed(0)
        model, x, y = make_case("plain")
        optimizer = sgd(model)
        with propkit.attach(model) as recorder:
            for _ in range(3):
                optimizer.zero_grad()
                loss = cross_entropy(x, y)(model)
                if measured:
                    found = propkit.measure(model, 3 * x, y, loss=F.cross_entropy)
                loss.backward()
                optimizer.step()
        runs.append(recorder.run)
    assert found["error_moment"].sizes["step"] == 1
    for group in runs[0].groups:
        assert runs[0][group].equals(runs[1][group]), group


def test_a_gradient_scaler_in_the_process_does_not_matter() -> None:
    model, x, y = make_case("mlp")
    expected = propkit.measure(model, x, y, loss=F.cross_entropy)["error_moment"]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    assert propkit.measure(model, x, y, loss=F.cross_entropy)["error_moment"].equals(expected)


def test_scripted_parts_keep_their_statistics() -> None:
    scripted = _scripted(nn.Sequential(nn.BatchNorm1d(12), nn.Linear(12, 12)))
    model = nn.Sequential(nn.Linear(12, 12), scripted, nn.Linear(12, 3))
    before = {n: b.clone() for n, b in model.named_buffers()}
    found = propkit.measure(model, torch.randn(8, 12), torch.arange(8) % 3, loss=F.cross_entropy)
    assert any("TorchScript" in note for note in found.run.attributes["notes"])
    _assert_same(before, dict(model.named_buffers()))


@pytest.mark.parametrize("trainable", [True, False])
def test_a_model_made_in_inference_mode_is_measured_and_kept(trainable: bool) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 12, max_norm=0.5)
            self.norm, self.head = nn.BatchNorm1d(12), nn.Linear(12, 5)
            self.head.weight = self.embedding.weight

        def forward(self, index: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.embedding(index)))

    with torch.inference_mode():
        model = Tied().requires_grad_(trainable)
    index = torch.arange(8) % 5
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = [{k: id(v) for k, v in m.__dict__.items()} for m in model.modules()]
    found = propkit.measure(model, index, index, loss=F.cross_entropy)
    assert propkit.compatibility(model, index).sites
    _assert_same(before, dict(model.state_dict()))
    assert attributes == [{k: id(v) for k, v in m.__dict__.items()} for m in model.modules()]
    assert all(p.requires_grad == trainable and p.grad is None for p in model.parameters())
    assert model.head.weight is model.embedding.weight
    assert model.head.weight.is_inference()
    plain = Tied().requires_grad_(trainable)
    plain.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
    expected = propkit.measure(plain, index, index, loss=F.cross_entropy)
    assert found.table.drop_attrs().equals(expected.table.drop_attrs())
    assert ("error_moment" in found.run) == trainable
