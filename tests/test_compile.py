"""Recording from compiled models: the same values, no graph break, no recompilation, no trace of it when it is over."""

import copy
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import propkit
from propkit.hooks.compiled import Compiled
from propkit.notices import PropkitWarning
from propkit.testing import Signals, TinyResNet, brute_force
from tests.conftest import Case, cross_entropy, make_case, sgd

pytestmark = [  # raised inside torch, which hides them from users
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]
EXACT = {"rtol": 1e-5, "atol": 1e-9}
LABELS = torch.tensor([0, 1, 2, 0])
GROUPS = {
    ("error_moment", "output"): lambda s: _mean_square(s.grad_output),
    ("error_moment", "input"): lambda s: _mean_square(s.grad_input),
    ("gradient_norm", "output"): lambda s: _norm(s.grad_output),
    ("gradient_norm", "input"): lambda s: _norm(s.grad_input),
    ("activation", "mean"): lambda s: float(s.output.detach().double().mean()),
    ("activation", "mean_square"): lambda s: _mean_square(s.output),
    ("activation", "max"): lambda s: float(s.output.detach().max()),
    ("activation", "zeros"): lambda s: float((s.output == 0).double().mean()),
    ("weight", "norm"): lambda s: _norm(s.module.weight),
}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def _mean_square(t: torch.Tensor | None) -> float:
    return float("nan") if t is None else float((t.detach().double() ** 2).mean())


def _norm(t: torch.Tensor | None) -> float:
    return float("nan") if t is None else float((t.detach().double() ** 2).sum().sqrt())


def _check(run, oracle: dict[str, list[Signals]], step: int = 0, rename=None, **tolerance) -> int:
    """Compare every value of one step that `GROUPS` defines; returns how many are finite."""
    finite = 0
    for (group, variable), expected in GROUPS.items():
        if group not in run:
            continue
        ds = run[group].sel(step=step)
        for i, site in enumerate(ds["site"].values.tolist()):
            name, _, call = site.partition("#")
            signals = oracle[(rename or {}).get(name, name)][int(call or 0)]
            value = ds[variable].values[i]
            finite += bool(np.isfinite(value))
            np.testing.assert_allclose(
                value,
                expected(signals),
                err_msg=f"{group}/{variable} {site}",
                **(tolerance or EXACT),
            )
    return finite


def _step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _said(action: Callable[[], None]) -> list[str]:
    """What propkit says while `action` runs."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    return [str(w.message) for w in caught if issubclass(w.category, PropkitWarning)]


def _compiled(model, backend="aot_eager", **options):
    return torch.compile(model, backend=backend, fullgraph=True, **options)


def _graphs() -> int:
    return counters["stats"]["unique_graphs"]


def _hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_values_equal_brute_force(case: Case) -> None:
    model, x, y = case
    optimizer = sgd(model)
    oracles = []
    with propkit.attach(model) as recorder:
        fast = _compiled(model)
        for step in range(3):
            batch = x + 0.1 * step
            oracles.append(brute_force(model, cross_entropy(batch, y)))
            _step(optimizer, cross_entropy(batch, y)(fast))
    run = recorder.run
    assert set(run.groups) == set(propkit.registry.DEFAULT_PROBES)
    assert not counters["graph_break"]
    assert _graphs() == 1
    for step, oracle in enumerate(oracles):
        assert _check(run, oracle, step) > 20


def test_the_places_are_those_of_an_eager_run(case: Case) -> None:
    model, x, y = case
    twin = copy.deepcopy(model)
    runs = []
    for net, call in ((model, _compiled(model)), (twin, twin)):
        with propkit.attach(net) as recorder:
            _step(sgd(net), cross_entropy(x, y)(call))
        runs.append(recorder.run)
    for group in runs[1].groups:
        a, b = (run[group] for run in runs)
        for name in ("site", "depth", "type", "input_shape", "output_shape", "fan_in", "fan_out"):
            assert a[name].values.tolist() == b[name].values.tolist(), (group, name)
        assert list(a.data_vars) == list(b.data_vars)


def test_training_is_bit_identical(case: Case) -> None:
    model, x, y = case
    twin = copy.deepcopy(model)

    def train(net: nn.Module) -> list[float]:
        optimizer, losses, fast = sgd(net), [], _compiled(net)
        for _ in range(8):
            loss = cross_entropy(x, y)(fast)
            _step(optimizer, loss)
            losses.append(loss.item())
        return losses

    bare = train(twin)
    with propkit.attach(model, every=3) as recorder:
        assert train(model) == bare
    assert recorder.run["error_moment"]["step"].values.tolist() == [0, 3, 6]
    for (name, a), b in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_two_graphs_and_no_recompilation_when_steps_alternate() -> None:
    model, x, y = make_case("residual")
    optimizer, counter = sgd(model), CompileCounterWithBackend("aot_eager")
    with propkit.attach(model, every=2) as recorder:
        fast = _compiled(model, backend=counter)
        for step in range(42):
            _step(optimizer, cross_entropy(x, y)(fast))
            if step == 1:
                assert counter.frame_count == 2
    assert counter.frame_count == 2
    sampled, other = (len(g.graph.nodes) for g in counter.graphs)
    bare = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    _compiled(model, backend=bare)(x)
    assert sampled > other == len(bare.graphs[0].graph.nodes)  # nothing of propkit's is in it
    values = recorder.run["error_moment"]
    assert values["step"].values.tolist() == list(range(0, 42, 2))
    assert np.isfinite(values["output"].values).all()


def test_evaluation_keeps_one_graph_and_is_left_out() -> None:
    model, x, y = make_case("mlp")
    oracle = brute_force(model, cross_entropy(x, y))
    optimizer = sgd(model)
    with propkit.attach(model, every=2) as recorder:
        fast = _compiled(model)
        for _ in range(4):
            _step(optimizer, cross_entropy(x, y)(fast))
            model.eval()
            with torch.no_grad():
                fast(100 * x)
            model.train()
    assert _graphs() == 3
    assert _check(recorder.run, oracle) > 20


def test_no_more_than_three_training_graphs_whatever_the_schedules() -> None:
    model, x, y = make_case("mlp")
    optimizer = sgd(model)
    every = {"error_moment": 1, "gradient_norm": 2, "activation": 3, "weight": 4}
    with propkit.attach(model, every=every) as recorder:
        fast = _compiled(model)
        for _ in range(13):
            _step(optimizer, cross_entropy(x, y)(fast))
    assert _graphs() <= 3
    for name, n in every.items():
        ds = recorder.run[name]
        assert ds["step"].values.tolist() == list(range(0, 13, n))
        assert np.isfinite(ds[next(iter(ds.data_vars))].values).all()


class Structured(nn.Module):
    """Modules that return a dict and a tuple, are called with keywords and run twice."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, *, hidden: torch.Tensor) -> dict[str, object]:
            return {"label": "x", "state": (self.fc(hidden), 1)}

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
            return self.fc(x).mean(1), 0

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.inner, self.outer = self.Inner(), self.Outer()
        self.inplace = inplace

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            x = self.inner(hidden=x)["state"][0]  # a view: the linear layer's output on 3-D input
            x = torch.relu_(x) if self.inplace else torch.relu(x)
        return self.outer(x)[0]


def test_structured_outputs_views_changed_in_place_and_modules_that_run_twice() -> None:
    model, x = Structured(), torch.randn(4, 5, 6)
    oracle = brute_force(model, cross_entropy(x, LABELS))  # out of place in the copy
    optimizer = sgd(model)
    probes = ["error_moment", "gradient_norm"]
    with propkit.attach(model, probes=probes, blocks="outer") as recorder:
        fast = _compiled(model)
        _step(optimizer, cross_entropy(x, LABELS)(fast))
    run = recorder.run
    assert run["error_moment"]["site"].values.tolist() == ["inner.fc", "inner.fc#1", "outer.fc"]
    assert run["error_moment"]["depth"].values.tolist() == [1, 2, 3]
    assert run["gradient_norm"]["site"].values.tolist() == ["outer"]
    assert _check(run, oracle) == 7  # the first input needs no gradient


def test_gradient_accumulation_equals_the_whole_batch() -> None:
    model, x, y = make_case("mlp")
    whole = brute_force(model, cross_entropy(x, y))
    optimizer = sgd(model)
    with propkit.attach(model) as recorder:
        fast = _compiled(model)
        for _ in range(2):
            optimizer.zero_grad()
            for part in (slice(0, 2), slice(2, 8)):  # unequal parts: the mean is weighted
                (F.cross_entropy(fast(x[part]), y[part], reduction="sum") / 8).backward()
            optimizer.step()
    assert recorder.run["error_moment"].sizes["step"] == 2
    assert _check(recorder.run, whole) > 20


def test_two_forwards_before_a_backward_and_two_backwards_after_a_forward() -> None:
    model, x, y = make_case("plain")
    oracle = brute_force(model, cross_entropy(x, y))
    optimizer = sgd(model)
    with propkit.attach(model, probes="gradient_norm", every=2) as recorder:
        fast = _compiled(model)
        _step(optimizer, cross_entropy(x, y)(fast) + cross_entropy(x, y)(fast))
        _step(optimizer, cross_entropy(x, y)(fast))
        again = brute_force(model, cross_entropy(x, y))
        torch._dynamo.reset()  # PyTorch wants a graph's backward passes all to retain it, or none
        loss = cross_entropy(x, y)(fast)
        optimizer.zero_grad()
        loss.backward(retain_graph=True)
        loss.backward()
        optimizer.step()
    ds = recorder.run["gradient_norm"]
    for step, signals in ((0, oracle), (2, again)):
        for name in ds["site"].values.tolist():
            np.testing.assert_allclose(
                ds["output"].sel(step=step, site=name),
                _norm(signals[name][0].grad_output) * 2**0.5,
                **EXACT,
            )


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.stem, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.body = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(checkpoint(self.body, self.stem(x), use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_counts_nothing_twice(reentrant: bool) -> None:
    model, x = Checkpointed(reentrant), torch.randn(4, 6)
    plain = nn.Sequential(model.stem, *model.body, model.head)
    oracle = brute_force(plain, cross_entropy(x, LABELS))
    rename = {"stem": "0", "body.0": "1", "body.2": "3", "head": "5"}
    optimizer = sgd(model)
    probes = ["error_moment", "activation"]
    with propkit.attach(model, probes=probes, exclude=r"body\.[13]") as recorder:
        fast = _compiled(model)
        _step(optimizer, cross_entropy(x, LABELS)(fast))
    assert _check(recorder.run, oracle, rename=rename) == 4 + 3 + 4 * 4


def test_frozen_layers_and_autocast() -> None:
    model, x, y = make_case("plain")
    model.features[0].requires_grad_(False)
    twin = copy.deepcopy(model)
    runs = []
    for net, call in ((model, _compiled(model)), (twin, twin)):
        with propkit.attach(net, probes=["error_moment", "activation"]) as recorder:
            with torch.autocast("cpu", torch.bfloat16):
                loss = cross_entropy(x, y)(call)
            _step(sgd(net), loss)
        runs.append(recorder.run)
    for group, variable in (("error_moment", "output"), ("activation", "mean_square")):
        values = [
            run[group][variable].sel(site=["features.3", "head"]).values.squeeze() for run in runs
        ]
        np.testing.assert_allclose(values[0], values[1], rtol=0.02)  # bfloat16
        assert np.isfinite(values[0]).all()


def test_the_scale_of_the_loss_is_divided_out() -> None:
    model, x, y = make_case("plain")
    oracle = brute_force(model, cross_entropy(x, y))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = sgd(model)
    probes = ["error_moment", "gradient_norm"]
    with propkit.attach(model, probes=probes, scaler=scaler) as recorder:
        scaler.scale(cross_entropy(x, y)(_compiled(model))).backward()
        scaler.step(optimizer)
        scaler.update()
    assert _check(recorder.run, oracle) > 10


def test_model_compile_and_a_compiled_loss() -> None:
    for kind in ("method", "function"):
        torch._dynamo.reset()
        model, x, y = make_case("mlp")
        oracle = brute_force(model, cross_entropy(x, y))
        optimizer = sgd(model)
        with propkit.attach(model) as recorder:
            if kind == "method":
                model.compile(backend="aot_eager", fullgraph=True)
                loss = cross_entropy(x, y)(model)
            else:
                loss = _compiled(lambda x, y, m=model: F.cross_entropy(m(x), y))(x, y)
            _step(optimizer, loss)
        assert _check(recorder.run, oracle) > 20


def test_a_compiled_training_step_has_no_break_of_ours() -> None:
    breaks = []
    for attached in (False, True):
        torch._dynamo.reset()
        counters.clear()
        model, x, y = make_case("mlp")
        oracle = brute_force(model, cross_entropy(x, y))
        optimizer = sgd(model)
        recorder = propkit.attach(model, every=2) if attached else None

        @torch.compile(backend="aot_eager")
        def train(x, y, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

        for _ in range(5):
            train(x, y)
        breaks.append(dict(counters["graph_break"]))
        if recorder is not None:
            recorder.detach()
            assert recorder.run["error_moment"]["step"].values.tolist() == [0, 2, 4]
            assert _check(recorder.run, oracle) > 20
    # How often the optimiser's own code breaks depends on what the process has compiled before. With propkit, backward
    # is reached in two graphs, and what PyTorch calls after the step is not compiled: nothing else may break.
    ours = {why: n - breaks[0].get(why, 0) for why, n in breaks[1].items()}
    ours = {why.splitlines()[0]: n for why, n in ours.items() if n > 0}
    allowed = (
        "Unsupported Tensor.backward() call",
        "Skip calling `torch.compiler.disable()`d function",
    )
    assert set(ours) <= set(allowed)
    assert all(n == 1 for n in ours.values())


def test_blocks_compiled_one_by_one_share_their_graphs() -> None:
    model, x, y = make_case("residual")
    oracle = brute_force(model, cross_entropy(x, y))
    optimizer = sgd(model)
    with propkit.attach(model, every=2) as recorder:
        for block in model.blocks:
            block.compile(backend="aot_eager", fullgraph=True)
        for _ in range(5):
            _step(optimizer, cross_entropy(x, y)(model))
    bare = TinyResNet()
    graphs = _graphs()
    counters.clear()
    for block in bare.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    bare(x)
    assert graphs == 2 * _graphs()  # one more for sampled steps
    run = recorder.run
    assert _check(run, oracle) > 40
    assert run["error_moment"]["site"].values.tolist()[-1] == "head"
    assert run["error_moment"]["depth"].values.tolist() == list(range(1, 9))


def test_compiled_between_two_samples_hooks_go_in_by_themselves() -> None:
    model, x, y = make_case("plain")
    optimizer = sgd(model)
    with propkit.attach(model, every=4) as recorder:
        _step(optimizer, cross_entropy(x, y)(model))  # eager
        assert _hooks(model) == 0
        fast = _compiled(model)
        for _ in range(3):
            _step(optimizer, cross_entropy(x, y)(fast))
        assert _hooks(model) > 0
        oracle = brute_force(model, cross_entropy(x, y))
        _step(optimizer, cross_entropy(x, y)(fast))
    assert recorder.run["error_moment"]["step"].values.tolist() == [0, 4]
    assert _check(recorder.run, oracle, step=4) > 20


def test_compiling_something_else_leaves_no_hook_on_unsampled_steps() -> None:
    model, x, y = make_case("mlp")
    optimizer = sgd(model)
    with propkit.attach(model, every=2) as recorder:
        for step in range(4):
            if step == 1:
                torch.compile(lambda t: t + 1, backend="aot_eager")(x)
                assert _hooks(model) == 0
            _step(optimizer, cross_entropy(x, y)(model))
            if step == 2:
                assert _hooks(model) == 0
    assert recorder.run["error_moment"]["step"].values.tolist() == [0, 2]


def test_after_detaching_the_graph_is_the_bare_one() -> None:
    model, x, y = make_case("plain")
    optimizer, counter = sgd(model), CompileCounterWithBackend("aot_eager")
    callbacks = torch._dynamo.callback.callback_handler.start_callbacks
    listening = len(callbacks)
    fast = _compiled(model, backend=counter)
    with propkit.attach(model) as recorder:
        _step(optimizer, cross_entropy(x, y)(fast))
        late = cross_entropy(x, y)(fast)
    assert _hooks(model) == 0
    assert len(callbacks) == listening
    late.backward()  # through a graph that measured
    for _ in range(2):
        _step(optimizer, cross_entropy(x, y)(fast))
    assert counter.frame_count == 2
    bare = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    _compiled(model, backend=bare)(x)
    assert len(counter.graphs[1].graph.nodes) == len(bare.graphs[0].graph.nodes)
    assert recorder.run["error_moment"].sizes["step"] == 1


def test_copies_of_a_compiled_model_measure_nothing() -> None:
    model, x, y = make_case("plain")
    optimizer = sgd(model)
    with propkit.attach(model, probes="gradient_norm") as recorder:
        fast = _compiled(model)
        oracle = brute_force(model, cross_entropy(x, y))
        loss = cross_entropy(x, y)(fast)
        twin = copy.deepcopy(model)
        cross_entropy(x, y)(_compiled(twin)).backward()
        _step(optimizer, loss)
    assert _check(recorder.run, oracle) > 5


def test_functions_and_models_compiled_before_attach_are_compiled_again() -> None:
    model, x, y = make_case("mlp")
    twin = copy.deepcopy(model)
    loss = _compiled(lambda x, y, m=model: F.cross_entropy(m(x), y))
    loss(x, y)
    _compiled(twin)(x)  # the same classes without hooks: its graph would fit this model
    oracle = brute_force(model, cross_entropy(x, y))
    optimizer = sgd(model)
    with propkit.attach(model, every=2) as recorder:
        for _ in range(3):
            _step(optimizer, loss(x, y))
    assert _check(recorder.run, oracle) > 20
    assert "forward" not in {name for m in model.modules() for name in vars(m)}
    graphs = _graphs()
    loss(x, y)
    assert _graphs() == graphs  # the first one is there still
    part = nn.Sequential(torch.compile(nn.Linear(2, 2), backend="aot_eager"))
    with pytest.raises(ValueError, match="compiled already"):
        propkit.attach(part)


def test_steps_in_which_nothing_is_observed_any_more_are_reported_once() -> None:
    model, x, y = make_case("mlp")
    optimizer = sgd(model)
    with propkit.attach(model) as recorder:
        _step(optimizer, cross_entropy(x, y)(_compiled(model)))

        def past_the_modules() -> None:
            for _ in range(3):
                _step(optimizer, F.linear(x, model[0].weight).square().mean())

        said = _said(past_the_modules)
    assert len(said) == 1
    assert "step 1 was to be measured" in said[0]
    assert recorder.run["error_moment"]["step"].values.tolist() == [0]


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
        fast = _compiled(model)
        for _ in range(2):
            _step(optimizer, cross_entropy(x, y)(fast))

    said = sorted(_said(train))
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
    fast, oracles = _compiled(model), []
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
        assert _check(recorder.run, oracle, step) > 20
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_gradients_by_hand_leave_weights_out_and_inference_alone_is_reported() -> None:
    model, x, y = make_case("mlp")
    fast = _compiled(model)

    def train() -> None:
        for _ in range(2):
            torch.autograd.grad(cross_entropy(x, y)(fast), list(model.parameters()))
            recorder.step()

    def infer() -> None:
        with torch.no_grad():
            fast(x)
        recorder.step()

    with propkit.attach(model) as recorder:
        said = _said(train)
    assert len(said) == 1
    assert said[0].startswith("filter_correlation, weight: the weights of a compiled model")
    assert "weight" not in recorder.run.groups
    with propkit.attach(model) as recorder:
        assert "no observed module ran" in _said(infer)[0]


def test_open_sizes_graph_breaks_and_transforms() -> None:
    model, x, y = make_case("mlp")
    oracle = brute_force(model, cross_entropy(x, y))
    optimizer = sgd(model)
    with propkit.attach(model, every=2) as recorder:
        fast = _compiled(model, dynamic=True)
        for n in (8, 7, 6, 5, 8, 6):
            _step(optimizer, cross_entropy(x[:n], y[:n])(fast))
        gradients = torch.func.grad(
            lambda p: torch.func.functional_call(model, p, (x,)).square().sum()
        )
        torch.compile(gradients, backend="aot_eager")(dict(model.named_parameters()))
    assert _graphs() <= 4
    assert recorder.run["error_moment"]["output_shape"].values.tolist()[-1] == "(?, 3)"
    assert _check(recorder.run, oracle) > 20

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
            _step(optimizer, cross_entropy(x[:size], LABELS[:size])(fast))
    assert recorder.run["error_moment"]["site"].values.tolist() == ["shared", "shared#1", "head"]
    assert recorder.run["error_moment"]["depth"].values.tolist() == [1, 2, 3]
    assert _check(recorder.run, oracle) > 10


def test_two_recorders_and_an_input_that_needs_a_gradient() -> None:
    model, x, y = make_case("mlp")
    twin = copy.deepcopy(model)
    x.requires_grad_()
    optimizer = sgd(model)
    with propkit.attach(model) as one, propkit.attach(model, every=2) as two:
        fast = _compiled(model)
        for _ in range(3):
            _step(optimizer, cross_entropy(x, y)(fast))
    optimizer = sgd(twin)
    with propkit.attach(twin) as eager:
        for _ in range(3):
            _step(optimizer, cross_entropy(x, y)(twin))
    for variable in ("output", "input"):
        a, b, c = (r.run["error_moment"][variable].values for r in (one, two, eager))
        np.testing.assert_array_equal(a[::2], b)
        np.testing.assert_allclose(a, c, rtol=1e-4)
        assert np.isfinite(a).all()


def test_an_export_holds_nothing_of_ours() -> None:
    model, x, y = make_case("mlp")
    bare = torch.export.export(model, (x,))
    optimizer = sgd(model)
    with propkit.attach(model) as recorder:
        for strict in (False, True):
            program = torch.export.export(model, (x,), strict=strict)
            assert len(program.graph.nodes) == len(bare.graph.nodes)
            assert not program.graph_signature.buffers_to_mutate
        _step(optimizer, cross_entropy(x, y)(model))
    assert recorder.run["error_moment"].sizes["step"] == 1


def test_an_older_pytorch_leaves_gradients_out_and_says_so(monkeypatch) -> None:
    monkeypatch.setattr("propkit.hooks.compiled._GRADIENT_HOOKS", False)
    model, x, y = make_case("mlp")
    oracle = brute_force(model, cross_entropy(x, y))
    optimizer = sgd(model)
    with propkit.attach(model) as recorder:
        said = _said(lambda: _step(optimizer, cross_entropy(x, y)(_compiled(model))))
    assert len(said) == 2
    assert all("does not compile hooks on gradients" in text for text in said)
    assert set(recorder.run.groups) == {"activation", "filter_correlation", "weight"}
    assert _check(recorder.run, oracle) > 20


def test_a_fault_of_ours_in_a_trace_ends_the_recording_and_not_the_training(monkeypatch) -> None:
    def fail(*_):
        raise RuntimeError("oops")

    monkeypatch.setattr(Compiled, "arrive", fail)
    model, x, y = make_case("mlp")
    optimizer = sgd(model)
    recorder = propkit.attach(model)
    with pytest.warns(PropkitWarning, match="ended at step 0 by a fault in propkit.*oops"):
        _step(optimizer, cross_entropy(x, y)(_compiled(model)))
    assert recorder.run.state == "failed"
    assert _hooks(model) == 0


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
        return _compiled(net) if how == "model" else lambda x: forward(net, x)

    model, x, y = make_case("residual")
    twin, _, _ = make_case("residual")
    nets = {"twin": (twin, compiled(twin), sgd(twin))}
    if bare_first:
        _step(nets["twin"][2], cross_entropy(x, y)(nets["twin"][1]))
    oracles = []
    with propkit.attach(model, every=2, probes=["error_moment", "activation"]) as recorder:
        nets["model"] = model, compiled(model), sgd(model)
        for _ in range(4):
            for name in ("model", "twin"):
                net, call, optimizer = nets[name]
                if name == "model":
                    oracles.append(brute_force(net, cross_entropy(x, y)))
                _step(optimizer, cross_entropy(x, y)(call))
    assert _graphs() == 3  # measuring, not measuring, bare
    for step in (0, 2):
        assert _check(recorder.run, oracles[step], step) > 20


def test_models_of_one_class_one_after_the_other_reach_no_limit() -> None:
    """Each takes three graphs of one function, of which the compiler makes eight."""
    for _ in range(3):
        model, x, y = make_case("mlp")
        optimizer, fast = sgd(model), _compiled(model)
        oracle = brute_force(model, cross_entropy(x, y))
        with propkit.attach(model, every=2, probes=["error_moment", "activation"]) as recorder:
            for _ in range(2):
                _step(optimizer, cross_entropy(x, y)(fast))
                with torch.no_grad():
                    fast(x)
        assert _check(recorder.run, oracle) > 10


@pytest.mark.parametrize("isolated", [True, False])
def test_models_of_one_class_at_the_same_time_are_told_of_the_limit(isolated: bool) -> None:
    recorders, said = [], []
    options = {"isolate_recompiles": True} if isolated else {}
    with torch._dynamo.config.patch(recompile_limit=4):
        for _ in range(3 if isolated else 2):
            model, x, y = make_case("mlp")
            optimizer, fast = sgd(model), _compiled(model, **options)
            recorders.append(propkit.attach(model, every=2, probes="error_moment"))

            def train(fast=fast, optimizer=optimizer, x=x, y=y) -> None:
                for _ in range(4):
                    _step(optimizer, cross_entropy(x, y)(fast))

            said.append(_said(train))
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
    optimizer, fast = sgd(model), _compiled(model)
    oracles = []
    model.eval()
    with propkit.attach(model, every=3) as recorder:
        for step in range(7):
            if step != 0:
                with torch.no_grad():
                    fast(100 * x)
            oracles.append(brute_force(model, cross_entropy(x, y)))
            _step(optimizer, cross_entropy(x, y)(model))
            assert recorder.run.state == "running"  # places are known from here on
    assert _graphs() == 1
    for step in (0, 3, 6):
        assert _check(recorder.run, oracles[step], step) > 20


def test_means_of_graphs_and_of_eager_calls_are_weighted_by_their_elements() -> None:
    model, x, y = make_case("mlp")
    whole = brute_force(model, cross_entropy(x, y))
    optimizer = sgd(model)
    with propkit.attach(model) as recorder:
        calls = _compiled(model), model, model
        optimizer.zero_grad()
        for call, part in zip(calls, (slice(0, 5), slice(5, 6), slice(6, 8)), strict=True):
            (F.cross_entropy(call(x[part]), y[part], reduction="sum") / 8).backward()
        optimizer.step()
    assert _check(recorder.run, whole) > 20


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
        optimizer, call = sgd(net), _compiled(net) if compiled else net
        for step in range(8):
            _step(optimizer, cross_entropy(x * (-1) ** step, LABELS)(call))

    train(twin)
    torch._dynamo.reset()
    counters.clear()
    with propkit.attach(model, every=2, probes=["error_moment", "activation"]) as recorder:
        said = _said(lambda: train(model))
    assert len(said) == 1
    assert "cond: yes and what else" in said[0]
    assert _graphs() <= 4  # with the hooks and without
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
    ds = recorder.run["error_moment"]
    assert ds["site"].values.tolist() == ["stem", "head"]
    assert ds["step"].values.tolist() == [0, 2, 4, 6]
    assert np.isfinite(ds["output"].values).all()


@pytest.mark.slow
def test_inductor_gives_the_same_values_and_never_recompiles() -> None:
    model, x, y = make_case("plain")
    optimizer = sgd(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the code generator
        with propkit.attach(model, every=2) as recorder:
            fast = _compiled(model, backend="inductor")
            oracle = brute_force(model, cross_entropy(x, y))
            for step in range(12):
                _step(optimizer, cross_entropy(x, y)(fast))
                if step == 1:
                    assert _graphs() == 2
        assert _graphs() == 2
    assert not counters["graph_break"]
    # the graph itself rounds differently from eager PyTorch, which shows in means close to 0
    assert _check(recorder.run, oracle, rtol=1e-5, atol=1e-6) > 20


@pytest.mark.parametrize("nested", [False, True])
def test_a_leaf_is_the_input_of_a_layer(nested: bool) -> None:
    """A hook in a graph would be put on it again in every run."""

    class Generator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.z, self.layer = nn.Parameter(torch.ones(1, 4)), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * (self.layer(input=self.z) if nested else self.layer(self.z))

    torch.manual_seed(0)
    model, x = Generator(), torch.ones(2, 3)
    bare = copy.deepcopy(model)
    with propkit.attach(model, probes="gradient_norm", blocks="layer") as recorder:
        compiled = _compiled(model)
        for _ in range(4):
            model.zero_grad()
            compiled(x).sum().backward()
            assert not model.z._backward_hooks
            recorder.step()
    bare(x).sum().backward()
    assert torch.equal(model.z.grad, bare.z.grad)
    norms = recorder.run["gradient_norm"]
    np.testing.assert_allclose(norms["output"], float(torch.ones(2, 3).sum(0).norm()), rtol=1e-6)
    if not nested:
        np.testing.assert_allclose(norms["input"], float(bare.z.grad.norm()), rtol=1e-6)
    else:  # given by its name, it has no place where a copy could go in
        assert "input" not in norms or norms["input"].isnull().all()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize(
    "layer", [nn.SiLU, nn.Mish, lambda: nn.GroupNorm(2, 8)], ids=["SiLU", "Mish", "group norm"]
)
def test_layers_whose_backward_has_two_formulas_are_bit_identical(layer, backend: str) -> None:
    """Where gradients are enabled in a backward pass, some have one that can be differentiated again."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), layer(), nn.Linear(8, 4))
    bare, x = copy.deepcopy(model), torch.randn(16, 6)
    with propkit.attach(model, probes=["error_moment", "activation"]):
        for m in (model, bare):
            torch._dynamo.reset()
            run, optimizer = _compiled(m, backend), sgd(m)
            for _ in range(3):
                _step(optimizer, run(x).square().mean())
    for ours, theirs in zip(model.parameters(), bare.parameters(), strict=True):
        assert torch.equal(ours, theirs)


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


def test_weights_of_a_step_that_the_scaler_skips() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)), torch.randn(8, 4)
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=4.0)
    norms = []
    with propkit.attach(model, probes="weight", scaler=scaler) as recorder:
        run = _compiled(model)
        for step in range(5):
            optimizer.zero_grad()
            loss = run(x).square().mean()
            scaler.scale(loss * (float("inf") if step == 3 else 1.0)).backward()
            norms.append([_norm(layer.weight) for layer in model])
            scaler.step(optimizer)
            scaler.update()
    np.testing.assert_allclose(recorder.run["weight"]["norm"], norms, rtol=1e-6)
    assert float(recorder.run["weight"]["update_ratio"][3].max()) == 0


def test_a_program_recorded_between_forward_and_step_costs_no_row() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), torch.randn(8, 4)
    optimizer = sgd(model)
    with propkit.attach(model, probes=["error_moment", "weight"]) as recorder:
        run = _compiled(model)
        for step in range(3):
            optimizer.zero_grad()
            loss = run(x).square().mean()
            if step == 1:
                make_fx(lambda x: model(x))(x)
            loss.backward()
            optimizer.step()
    for group in ("error_moment", "weight"):
        assert recorder.run[group]["step"].values.tolist() == [0, 1, 2]
