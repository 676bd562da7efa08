"""What no graph can hold is left out, and it is said."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import propkit
from propkit.hooks.compiled import Compiled
from propkit.notices import PropkitWarning
from propkit.testing import brute_force
from tests.compiled.support import (
    EXACT,
    HIDDEN_BY_TORCH,
    LABELS,
    check,
    compile_whole,
    count_graphs,
    count_hooks,
    train_step,
    what_is_said,
)
from tests.conftest import cross_entropy, make_case, sgd

pytestmark = HIDDEN_BY_TORCH


def test_probes_that_no_graph_can_hold_are_named_and_the_others_recorded() -> None:
    @propkit.probe
    def raising(output):
        raise ZeroDivisionError("no luck")

    @propkit.probe
    def strided(grad_output):
        return grad_output.sum() if grad_output.is_contiguous() else grad_output.mean()

    @propkit.probe
    def no_scalar(output):
        return output

    @propkit.probe
    def both_ends(grad_input, grad_output):
        return grad_input.sum() + grad_output.sum()

    @propkit.probe(reduce="max")
    def largest(grad_output):
        return grad_output.abs().amax()

    @propkit.probe(reduce="sum")
    def saliency(output, grad_output):
        return (output * grad_output).abs().sum()

    @propkit.probe
    def through(input, weight, output):
        return input.abs().mean() * weight.abs().mean() * output.abs().mean()

    @propkit.probe(dims={"wide": "channel"}, reduce="max")
    def wide(output):
        return output.transpose(0, 1).flatten(1).amax(1)

    model, x, y = make_case("plain")
    oracle = brute_force(model, cross_entropy(x, y))
    optimizer = sgd(model)
    bad, good = [raising, strided, no_scalar, both_ends, wide], [largest, saliency, through]
    recorder = propkit.attach(model, probes=[*bad, *good, "error_moment"])

    def train() -> None:
        fast = compile_whole(model)
        for _ in range(2):
            train_step(optimizer, cross_entropy(x, y)(fast))

    said = sorted(what_is_said(train))
    recorder.detach()
    assert [text.split("'")[1] for text in said] == sorted(p.name for p in bad)
    assert "no luck" in said[2]
    run = recorder.run
    assert set(run.attributes["faults"]) == {p.name for p in bad}
    assert set(run.groups) == {"error_moment", "largest", "saliency", "through"}
    for i, name in enumerate(run["largest"]["site"].values.tolist()):
        s = oracle[name][0]
        product = s.input.abs().mean() * s.module.weight.abs().mean() * s.output.abs().mean()
        for group, value in (
            ("largest", s.grad_output.abs().max()),
            ("saliency", (s.output * s.grad_output).abs().sum()),
            ("through", product),
        ):
            np.testing.assert_allclose(
                run[group][group].values[0, i], float(value.detach()), rtol=1e-5
            )


def test_weights_without_an_optimiser() -> None:
    """They are measured when the first gradient arrives."""
    model, x, y = make_case("mlp")
    fast, oracles = compile_whole(model), []
    with propkit.attach(model) as recorder:
        for _ in range(3):
            oracles.append(brute_force(model, cross_entropy(x, y)))
            cross_entropy(x, y)(fast).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
                    p.grad = None
            recorder.step()
    assert {"weight", "filter_correlation"} <= set(recorder.run.groups)
    for step, oracle in enumerate(oracles):
        assert check(recorder.run, oracle, step) > 20
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_gradients_by_hand_leave_weights_out_and_inference_alone_is_reported() -> None:
    model, x, y = make_case("mlp")
    fast = compile_whole(model)

    def train() -> None:
        for _ in range(2):
            torch.autograd.grad(cross_entropy(x, y)(fast), list(model.parameters()))
            recorder.step()

    def infer() -> None:
        with torch.no_grad():
            fast(x)
        recorder.step()

    with propkit.attach(model) as recorder:
        said = what_is_said(train)
    assert len(said) == 1
    assert said[0].startswith("filter_correlation, weight: the weights of a compiled model")
    assert "weight" not in recorder.run.groups
    with propkit.attach(model) as recorder:
        assert "no observed module ran" in what_is_said(infer)[0]


def test_open_sizes_graph_breaks_and_transforms() -> None:
    model, x, y = make_case("mlp")
    oracle = brute_force(model, cross_entropy(x, y))
    optimizer = sgd(model)
    with propkit.attach(model, every=2) as recorder:
        fast = compile_whole(model, dynamic=True)
        for n in (8, 7, 6, 5, 8, 6):
            train_step(optimizer, cross_entropy(x[:n], y[:n])(fast))
        gradients = torch.func.grad(
            lambda p: torch.func.functional_call(model, p, (x,)).square().sum()
        )
        torch.compile(gradients, backend="aot_eager")(dict(model.named_parameters()))
    assert count_graphs() <= 4
    assert recorder.run["error_moment"]["output_shape"].values.tolist()[-1] == "(?, 3)"
    assert check(recorder.run, oracle) > 20

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.shared(x).relu()
            torch._dynamo.graph_break()
            return self.head(self.shared(x))

    net, x = Broken(), torch.randn(4, 6)
    oracle = brute_force(net, cross_entropy(x, LABELS))
    optimizer = sgd(net)
    with propkit.attach(net, every=2) as recorder:
        fast = torch.compile(net, backend="aot_eager")
        for size in (4, 4, 3, 3, 2):  # the later frame is traced again, and goes on counting
            train_step(optimizer, cross_entropy(x[:size], LABELS[:size])(fast))
    assert recorder.run["error_moment"]["site"].values.tolist() == ["shared", "shared#1", "head"]
    assert recorder.run["error_moment"]["depth"].values.tolist() == [1, 2, 3]
    assert check(recorder.run, oracle) > 10


def test_an_older_pytorch_leaves_gradients_out_and_says_so(monkeypatch) -> None:
    monkeypatch.setattr("propkit.hooks.compiled._GRADIENT_HOOKS", False)
    model, x, y = make_case("mlp")
    oracle = brute_force(model, cross_entropy(x, y))
    optimizer = sgd(model)
    with propkit.attach(model) as recorder:
        said = what_is_said(
            lambda: train_step(optimizer, cross_entropy(x, y)(compile_whole(model)))
        )
    assert len(said) == 2
    assert all("does not compile hooks on gradients" in text for text in said)
    assert set(recorder.run.groups) == {"activation", "filter_correlation", "weight"}
    assert check(recorder.run, oracle) > 20


def test_a_fault_of_ours_in_a_trace_ends_the_recording_and_not_the_training(monkeypatch) -> None:
    def fail(*_):
        raise RuntimeError("oops")

    monkeypatch.setattr(Compiled, "arrive", fail)
    model, x, y = make_case("mlp")
    optimizer = sgd(model)
    recorder = propkit.attach(model)
    with pytest.warns(PropkitWarning, match="ended at step 0 by a fault in propkit.*oops"):
        train_step(optimizer, cross_entropy(x, y)(compile_whole(model)))
    assert recorder.run.state == "failed"
    assert count_hooks(model) == 0


class Branching(nn.Module):
    """One of two layers is chosen by the data, inside an operator that holds graphs of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.yes, self.no, self.head = (
            nn.Linear(6, 6),
            nn.Linear(6, 6),
            nn.Linear(6, 6),
            nn.Linear(6, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.cond(x.sum() > 0, lambda x: self.yes(x).relu(), lambda x: self.no(x).relu(), (x,))
        return self.head(x)


@pytest.mark.parametrize("compiled", [True, False])
def test_layers_inside_a_cond_are_left_out_and_it_is_said(compiled: bool) -> None:
    model, x = Branching(), torch.randn(4, 6)
    twin = copy.deepcopy(model)

    def train(net: nn.Module) -> None:
        optimizer, call = sgd(net), compile_whole(net) if compiled else net
        for step in range(8):
            train_step(optimizer, cross_entropy(x * (-1) ** step, LABELS)(call))

    train(twin)
    torch._dynamo.reset()
    counters.clear()
    with propkit.attach(model, every=2, probes=["error_moment", "activation"]) as recorder:
        said = what_is_said(lambda: train(model))
    assert len(said) == 1
    assert "cond: yes and what else" in said[0]
    assert count_graphs() <= 4  # with the hooks and without
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
    ds = recorder.run["error_moment"]
    assert ds["site"].values.tolist() == ["stem", "head"]
    assert ds["step"].values.tolist() == [0, 2, 4, 6]
    assert np.isfinite(ds["output"].values).all()


def test_frames_that_are_given_up_count_no_calls() -> None:
    """A break inside a loop: the outer frames are traced, given up, and the inner ones are compiled."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.o = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q = self.q(x)
            torch._dynamo.graph_break()
            return self.o(q)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.fc = Attention(), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(1):
                x = x + self.attention(x)
            return x + self.fc(x)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.layers = nn.ModuleList([Block(), Block()])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            for layer in self.layers:
                x = layer(x)
            return x

    torch.manual_seed(0)
    found = []
    model = Net()
    for watched in (copy.deepcopy(model), copy.deepcopy(model)):
        with propkit.attach(watched, probes="error_moment") as recorder:
            run = torch.compile(watched, backend="aot_eager") if found else watched
            for _ in range(3):
                run(torch.ones(2, 4)).square().mean().backward()
                recorder.step()
        moments = recorder.run["error_moment"]
        found.append({s: moments.sel(site=s) for s in moments["site"].values.tolist()})
    eager, compiled = found
    assert compiled.keys() == eager.keys()
    for site, values in eager.items():
        np.testing.assert_allclose(compiled[site]["output"], values["output"], **EXACT)
        assert int(compiled[site]["depth"]) == int(values["depth"]), site
