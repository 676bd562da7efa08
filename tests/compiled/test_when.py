"""When a model is compiled: before it is attached and after, between samples, beside others of its class."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.fx.experimental.proxy_tensor import make_fx

import propkit
from propkit.testing import brute_force
from tests.compiled.support import (
    HIDDEN_BY_TORCH,
    check,
    compile_whole,
    count_graphs,
    count_hooks,
    train_step,
    what_is_said,
)
from tests.conftest import cross_entropy, make_case, sgd

pytestmark = HIDDEN_BY_TORCH


def test_compiled_between_two_samples_hooks_go_in_by_themselves() -> None:
    model, x, y = make_case("plain")
    optimizer = sgd(model)
    with propkit.attach(model, every=4) as recorder:
        train_step(optimizer, cross_entropy(x, y)(model))  # eager
        assert count_hooks(model) == 0
        fast = compile_whole(model)
        for _ in range(3):
            train_step(optimizer, cross_entropy(x, y)(fast))
        assert count_hooks(model) > 0
        oracle = brute_force(model, cross_entropy(x, y))
        train_step(optimizer, cross_entropy(x, y)(fast))
    assert recorder.run["error_moment"]["step"].values.tolist() == [0, 4]
    assert check(recorder.run, oracle, step=4) > 20


def test_compiling_something_else_leaves_no_hook_on_unsampled_steps() -> None:
    model, x, y = make_case("mlp")
    optimizer = sgd(model)
    with propkit.attach(model, every=2) as recorder:
        for step in range(4):
            if step == 1:
                torch.compile(lambda t: t + 1, backend="aot_eager")(x)
                assert count_hooks(model) == 0
            train_step(optimizer, cross_entropy(x, y)(model))
            if step == 2:
                assert count_hooks(model) == 0
    assert recorder.run["error_moment"]["step"].values.tolist() == [0, 2]


def test_after_detaching_the_graph_is_the_bare_one() -> None:
    model, x, y = make_case("plain")
    optimizer, counter = sgd(model), CompileCounterWithBackend("aot_eager")
    callbacks = torch._dynamo.callback.callback_handler.start_callbacks
    listening = len(callbacks)
    fast = compile_whole(model, backend=counter)
    with propkit.attach(model) as recorder:
        train_step(optimizer, cross_entropy(x, y)(fast))
        late = cross_entropy(x, y)(fast)
    assert count_hooks(model) == 0
    assert len(callbacks) == listening
    late.backward()  # through a graph that measured
    for _ in range(2):
        train_step(optimizer, cross_entropy(x, y)(fast))
    assert counter.frame_count == 2
    bare = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compile_whole(model, backend=bare)(x)
    assert len(counter.graphs[1].graph.nodes) == len(bare.graphs[0].graph.nodes)
    assert recorder.run["error_moment"].sizes["step"] == 1


def test_copies_of_a_compiled_model_measure_nothing() -> None:
    model, x, y = make_case("plain")
    optimizer = sgd(model)
    with propkit.attach(model, probes="gradient_norm") as recorder:
        fast = compile_whole(model)
        oracle = brute_force(model, cross_entropy(x, y))
        loss = cross_entropy(x, y)(fast)
        twin = copy.deepcopy(model)
        cross_entropy(x, y)(compile_whole(twin)).backward()
        train_step(optimizer, loss)
    assert check(recorder.run, oracle) > 5


def test_functions_and_models_compiled_before_attach_are_compiled_again() -> None:
    model, x, y = make_case("mlp")
    twin = copy.deepcopy(model)
    loss = compile_whole(lambda x, y, m=model: F.cross_entropy(m(x), y))
    loss(x, y)
    compile_whole(twin)(x)  # the same classes without hooks: its graph would fit this model
    oracle = brute_force(model, cross_entropy(x, y))
    optimizer = sgd(model)
    with propkit.attach(model, every=2) as recorder:
        for _ in range(3):
            train_step(optimizer, loss(x, y))
    assert check(recorder.run, oracle) > 20
    assert "forward" not in {name for m in model.modules() for name in vars(m)}
    graphs = count_graphs()
    loss(x, y)
    assert count_graphs() == graphs  # the first one is there still
    part = nn.Sequential(torch.compile(nn.Linear(2, 2), backend="aot_eager"))
    with pytest.raises(ValueError, match="compiled already"):
        propkit.attach(part)


def test_steps_in_which_nothing_is_observed_any_more_are_reported_once() -> None:
    model, x, y = make_case("mlp")
    optimizer = sgd(model)
    with propkit.attach(model) as recorder:
        train_step(optimizer, cross_entropy(x, y)(compile_whole(model)))

        def past_the_modules() -> None:
            for _ in range(3):
                train_step(optimizer, F.linear(x, model[0].weight).square().mean())

        said = what_is_said(past_the_modules)
    assert len(said) == 1
    assert "step 1 was to be measured" in said[0]
    assert recorder.run["error_moment"]["step"].values.tolist() == [0]


@pytest.mark.parametrize(
    ("how", "bare_first"), [("model", True), ("blocks", True), ("function", False)]
)
def test_a_bare_twin_changes_nothing_whoever_is_compiled_first(how: str, bare_first: bool) -> None:
    """Models of one class share the compiler's cache."""
    forward = torch.compile(lambda net, x: net(x), backend="aot_eager", fullgraph=True)

    def compiled(net: nn.Module):
        if how == "blocks":
            for block in net.blocks:
                block.compile(backend="aot_eager", fullgraph=True)
            return net
        return compile_whole(net) if how == "model" else lambda x: forward(net, x)

    model, x, y = make_case("residual")
    twin, _, _ = make_case("residual")
    nets = {"twin": (twin, compiled(twin), sgd(twin))}
    if bare_first:
        train_step(nets["twin"][2], cross_entropy(x, y)(nets["twin"][1]))
    oracles = []
    with propkit.attach(model, every=2, probes=["error_moment", "activation"]) as recorder:
        nets["model"] = model, compiled(model), sgd(model)
        for _ in range(4):
            for name in ("model", "twin"):
                net, call, optimizer = nets[name]
                if name == "model":
                    oracles.append(brute_force(net, cross_entropy(x, y)))
                train_step(optimizer, cross_entropy(x, y)(call))
    assert count_graphs() == 3  # measuring, not measuring, bare
    for step in (0, 2):
        assert check(recorder.run, oracles[step], step) > 20


def test_models_of_one_class_one_after_the_other_reach_no_limit() -> None:
    """Each takes three graphs of one function, of which the compiler makes eight."""
    for _ in range(3):
        model, x, y = make_case("mlp")
        optimizer, fast = sgd(model), compile_whole(model)
        oracle = brute_force(model, cross_entropy(x, y))
        with propkit.attach(model, every=2, probes=["error_moment", "activation"]) as recorder:
            for _ in range(2):
                train_step(optimizer, cross_entropy(x, y)(fast))
                with torch.no_grad():
                    fast(x)
        assert check(recorder.run, oracle) > 10


@pytest.mark.parametrize("isolated", [True, False])
def test_models_of_one_class_at_the_same_time_are_told_of_the_limit(isolated: bool) -> None:
    recorders, said = [], []
    options = {"isolate_recompiles": True} if isolated else {}
    with torch._dynamo.config.patch(recompile_limit=4):
        for _ in range(3 if isolated else 2):
            model, x, y = make_case("mlp")
            optimizer, fast = sgd(model), compile_whole(model, **options)
            recorders.append(propkit.attach(model, every=2, probes="error_moment"))

            def train(fast=fast, optimizer=optimizer, x=x, y=y) -> None:
                for _ in range(4):
                    train_step(optimizer, cross_entropy(x, y)(fast))

            said.append(what_is_said(train))
    for recorder in recorders:
        recorder.detach()
        assert recorder.run["error_moment"]["step"].values.tolist() == [0, 2]
    assert said[0] == []
    if isolated:
        assert said[2] == []
    else:
        assert len(said[1]) == 1
        assert "may make 1 more graphs" in said[1][0]
        assert "isolate_recompiles=True" in said[1][0]


def test_compiled_evaluation_of_a_model_that_is_trained_eagerly() -> None:
    """Its graph holds the hooks, which have to stay: without them it would be compiled again and again."""
    model, x, y = make_case("residual")
    optimizer, fast = sgd(model), compile_whole(model)
    oracles = []
    model.eval()
    with propkit.attach(model, every=3) as recorder:
        for step in range(7):
            if step != 0:
                with torch.no_grad():
                    fast(100 * x)
            oracles.append(brute_force(model, cross_entropy(x, y)))
            train_step(optimizer, cross_entropy(x, y)(model))
            assert recorder.run.state == "running"  # places are known from here on
    assert count_graphs() == 1
    for step in (0, 3, 6):
        assert check(recorder.run, oracles[step], step) > 20


def test_a_program_recorded_between_forward_and_step_costs_no_row() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), torch.randn(8, 4)
    optimizer = sgd(model)
    with propkit.attach(model, probes=["error_moment", "weight"]) as recorder:
        run = compile_whole(model)
        for step in range(3):
            optimizer.zero_grad()
            loss = run(x).square().mean()
            if step == 1:
                make_fx(lambda x: model(x))(x)
            loss.backward()
            optimizer.step()
    for group in ("error_moment", "weight"):
        assert recorder.run[group]["step"].values.tolist() == [0, 1, 2]
