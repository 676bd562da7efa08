"""Optimisers of every kind, several at once, several backward passes in a step."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import propkit
from propkit.testing import TinyResNet, mlp
from tests.zoo import oracle
from tests.zoo.batches import BLOCKS, LABELS, classify, images, normal
from tests.zoo.harness import EXACT, check, outputs, sgd


def grouped(model: nn.Module) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "lr": 1e-4}], lr=1e-3
    )


@pytest.mark.parametrize("foreach", [True, False])
def test_several_parameter_groups(foreach: bool) -> None:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = grouped(model)
        optimizer.defaults["foreach"] = foreach
        return optimizer

    check(TinyResNet(), classify(images()), blocks=BLOCKS, optimizer=make)


def two(model: nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """One for the matrices, one for the rest and the head."""
    head = list(model.head.parameters())
    matrices = [p for p in model.parameters() if p.ndim > 1 and all(p is not h for h in head)]
    rest = [p for p in model.parameters() if all(p is not m for m in matrices)]
    return torch.optim.SGD(matrices, lr=0.1), torch.optim.Adam(rest, lr=1e-2)


def test_two_optimisers_that_step_together_make_one_step() -> None:
    model, loss = TinyResNet(), classify(images())
    bare, want, ratios = copy.deepcopy(model), [], []
    optimizers, bare_optimizers = two(model), two(bare)
    with propkit.attach(model) as recorder:
        for _ in range(5):
            want.append(oracle.observe(bare, loss))
            before = copy.deepcopy(bare)
            for net, pair in ((bare, bare_optimizers), (model, optimizers)):
                net.zero_grad()
                loss(net).backward()
                for optimizer in pair:
                    optimizer.step()
            change = bare.head.weight - before.head.weight
            ratios.append(oracle.norm(change) / oracle.norm(before.head.weight))
    for a, b in zip(model.parameters(), bare.parameters(), strict=True):
        assert torch.equal(a, b)
    run = recorder.run
    assert run["error_moment"]["step"].values.tolist() == list(range(5))
    for step, calls in enumerate(want):
        for name, value in outputs(recorder, step).items():
            np.testing.assert_allclose(value, oracle.error_moment(calls[name])["output"], **EXACT)
    found = run["weight"].set_index(site="site").sel(site="head")["update_ratio"]
    # In the first round nothing tells yet that a second optimiser follows.
    np.testing.assert_allclose(found.values[1:], ratios[1:], rtol=1e-5)


def test_lbfgs_evaluates_several_times_in_a_step() -> None:
    model, loss = mlp(), classify(normal(4, 12))
    bare = copy.deepcopy(model)
    wanted: list[oracle.Calls] = []

    def train(net: nn.Module, seen: list[oracle.Calls] | None) -> None:
        optimizer = torch.optim.LBFGS(net.parameters(), lr=0.5, max_iter=3)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            if seen is not None:
                seen.append(oracle.observe(net, loss))
            value = loss(net)
            value.backward()
            return value

        optimizer.step(closure)

    train(bare, wanted)
    with propkit.attach(model) as recorder:
        train(model, None)
    assert len(wanted) > 1
    for a, b in zip(model.parameters(), bare.parameters(), strict=True):
        assert torch.equal(a, b)
    run = recorder.run
    assert run["error_moment"]["step"].values.tolist() == [0]
    for group in ("error_moment", "gradient_norm"):
        for name, value in outputs(recorder, group=group).items():
            calls = [c for evaluation in wanted for c in evaluation[name]]
            np.testing.assert_allclose(value, getattr(oracle, group)(calls)["output"], **EXACT)
    assert (run["weight"]["update_ratio"].values > 0).all()


class Clipped(torch.optim.SGD):
    """Clips in a pre-hook of its own."""

    def __init__(self, parameters, **options) -> None:
        super().__init__(parameters, **options)
        self.register_step_pre_hook(self._clip)

    def _clip(self, *_) -> None:
        nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 0.1)


class ClippedBySubclass(torch.optim.SGD):
    """Clips in its ``step``, then calls that of its base: PyTorch runs the step hooks for both."""

    def step(self, closure=None):
        nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 0.1)
        return super().step(closure)


@pytest.mark.parametrize("kind", [Clipped, ClippedBySubclass])
def test_accumulation_with_clipping(kind) -> None:
    parts = [classify(images(seed=s)) for s in (3, 4, 5)]
    check(TinyResNet(), parts, blocks=BLOCKS, optimizer=lambda m: kind(m.parameters(), lr=0.1))


def test_several_backward_passes_of_one_forward() -> None:
    """Two losses on two heads of one graph: each pass gives a value, they are combined."""

    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(6, 6)
            self.left, self.right = nn.Linear(6, 3), nn.Linear(6, 2)

        def forward(self, x):
            hidden = self.body(x).relu()
            return {"left": self.left(hidden), "right": self.right(hidden)}

    def left(net: nn.Module, out=None) -> torch.Tensor:
        return F.cross_entropy((out or net(x))["left"], LABELS)

    def right(net: nn.Module, out=None) -> torch.Tensor:
        return (out or net(x))["right"].square().sum()

    model, x = TwoHeads(), normal(4, 6)
    want = [oracle.observe(model, loss) for loss in (left, right)]
    with propkit.attach(model) as recorder:
        optimizer = sgd(model)
        out = model(x)
        left(model, out).backward(retain_graph=True)
        right(model, out).backward()
        optimizer.step()
    moments, norms = outputs(recorder), outputs(recorder, group="gradient_norm")
    for name in ("body", "left", "right"):
        calls = [c for w in want for c in w[name] if c.grad_output is not None]
        np.testing.assert_allclose(moments[name], oracle.error_moment(calls)["output"], **EXACT)
        np.testing.assert_allclose(norms[name], oracle.gradient_norm(calls)["output"], **EXACT)


def test_a_gradient_penalty_differentiates_twice() -> None:
    model = mlp()
    x = normal(4, 12)

    def penalised(net: nn.Module) -> torch.Tensor:
        inputs = x.clone().requires_grad_()
        out = net(inputs)
        (grad,) = torch.autograd.grad(out.tanh().sum(), inputs, create_graph=True)
        return F.cross_entropy(out, LABELS) + grad.square().sum()

    bare = copy.deepcopy(model)
    optimizers = [sgd(net) for net in (model, bare)]
    with propkit.attach(model) as recorder:
        for net, optimizer in zip((model, bare), optimizers, strict=True):
            for _ in range(3):
                optimizer.zero_grad()
                penalised(net).backward()
                optimizer.step()
    for a, b in zip(model.parameters(), bare.parameters(), strict=True):
        assert torch.equal(a, b)
    assert np.isfinite(recorder.run["error_moment"]["output"].values).all()
    assert recorder.run.attributes["faults"] == {}
