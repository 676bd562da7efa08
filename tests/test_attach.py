"""Every recorded value against brute force, and training that never notices."""

import copy
import io
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import propkit
from propkit.notices import PropkitWarning
from propkit.recording import lifetime
from propkit.testing import Signals, TinyPlain, TinyResNet, brute_force, mlp
from tests.conftest import Case, cross_entropy, make_case, sgd

EXACT = {"rtol": 1e-5, "atol": 1e-30}


def _mean_square(t: torch.Tensor | None) -> float:
    return float("nan") if t is None else float((t.detach().double() ** 2).mean())


def _norm(t: torch.Tensor | None) -> float:
    return float("nan") if t is None else float((t.detach().double() ** 2).sum().sqrt())


def _expected(group: str, signals: Signals) -> dict[str, float]:
    """The values of a group at one site, each from its definition."""
    if group == "error_moment":
        return {
            "output": _mean_square(signals.grad_output),
            "input": _mean_square(signals.grad_input),
        }
    if group == "gradient_norm":
        return {"output": _norm(signals.grad_output), "input": _norm(signals.grad_input)}
    if group == "activation":
        out = signals.output.detach().double()
        units = out.transpose(0, 1).flatten(1)
        return {
            "mean": float(out.mean()),
            "mean_square": float((out**2).mean()),
            "mean_abs": float(out.abs().mean()),
            "max": float(out.max()),
            "zeros": float((out == 0).double().mean()),
            "dead": float((units == 0).all(1).double().mean()),
        }
    w = signals.module.weight.detach().double().flatten(1)
    m = len(w)
    if group == "filter_correlation":
        pairs = [F.cosine_similarity(w[i], w[j], dim=0) for i in range(m) for j in range(i + 1, m)]
        return {"correlation": float(sum(pairs)) / len(pairs), "pairs": len(pairs)}
    return {
        "norm": float(w.norm()),
        "spectral_norm": float(torch.linalg.svdvals(w)[0]),
        "orthonormality": float((w @ w.T - torch.eye(m)).norm()),
    }


def test_every_recorded_value_equals_brute_force(case: Case) -> None:
    model, x, y = case
    optimizer = sgd(model)
    blocks = r"blocks\.\d" if isinstance(model, TinyResNet) else None
    oracles, before, after = [], [], []
    with propkit.attach(model, blocks=blocks) as recorder:
        for step in range(3):
            batch = x + 0.1 * step
            before.append(copy.deepcopy(model))
            oracles.append(brute_force(model, cross_entropy(batch, y)))
            optimizer.zero_grad()
            cross_entropy(batch, y)(model).backward()
            optimizer.step()
            after.append(copy.deepcopy(model))
    run = recorder.run
    assert set(run.groups) == set(propkit.registry.DEFAULT_PROBES)
    for group in run.groups:
        ds = run[group]
        assert ds.sizes["site"] > 0
        for step, oracle in enumerate(oracles):
            for i, site in enumerate(ds["site"].values.tolist()):
                name, _, call = site.partition("#")
                signals = oracle[name][int(call or 0)]
                here = {v: float(ds[v].values[step, i]) for v in ds.data_vars}
                expected = _expected(group, signals)
                if group == "weight":
                    ends = [
                        net.get_submodule(name).weight.detach()
                        for net in (before[step], after[step])
                    ]
                    expected["update_ratio"] = _norm(ends[1] - ends[0]) / expected["norm"]
                assert here.keys() == expected.keys()
                for variable, value in expected.items():
                    np.testing.assert_allclose(
                        here[variable], value, err_msg=f"{group}/{variable} {site}", **EXACT
                    )


@pytest.mark.parametrize("kind", ["plain", "residual", "mlp"])
@pytest.mark.parametrize("every", [1, 3])
def test_training_is_bit_identical(kind: str, every: int, tmp_path) -> None:
    model, x, y = make_case(kind)
    twin = copy.deepcopy(model)

    def train(net: nn.Module) -> list[float]:
        optimizer, losses = sgd(net), []
        for _ in range(20):
            optimizer.zero_grad()
            loss = cross_entropy(x, y)(net)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    bare = train(twin)
    random_state = torch.get_rng_state()
    with propkit.attach(model, tmp_path / "run.zarr", every=every):
        watched = train(model)
    assert watched == bare
    assert torch.equal(torch.get_rng_state(), random_state)
    for (name, a), b in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def _train(model: nn.Module, loss, steps: int = 1, **options) -> propkit.Recorder:
    optimizer = sgd(model)
    with propkit.attach(model, **options) as recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model).backward()
            optimizer.step()
    return recorder


def _output_moments(recorder: propkit.Recorder, step: int = 0) -> dict[str, float]:
    ds = recorder.run["error_moment"]
    return dict(zip(ds["site"].values.tolist(), ds["output"].values[step].tolist(), strict=True))


class Attention(nn.Module):
    """Linear layers on 3-D input, whose outputs are views, followed by an in-place operation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, inplace: bool = True) -> torch.Tensor:
        hidden = self.first(x)
        hidden = hidden.relu_() if inplace else hidden.relu()
        return self.second(hidden).mean(1)


def test_a_view_changed_in_place_keeps_its_error() -> None:
    model, x, y = Attention(), torch.randn(4, 5, 6), torch.tensor([0, 1, 2, 0])
    oracle = brute_force(model, lambda m: F.cross_entropy(m(x, inplace=False), y))
    moments = _output_moments(_train(model, lambda m: F.cross_entropy(m(x), y)))
    for name in ("first", "second"):
        np.testing.assert_allclose(
            moments[name], _mean_square(oracle[name][0].grad_output), **EXACT
        )


class Structured(nn.Module):
    """Modules that return a dict, a tuple, and are called with keywords."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, *, hidden: torch.Tensor) -> dict[str, object]:
            return {"label": "x", "state": (self.fc(hidden), 1)}

    def __init__(self) -> None:
        super().__init__()
        self.inner = self.Inner()
        self.lstm = nn.LSTM(6, 3, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.inner(hidden=x)["state"][0]
        return self.lstm(hidden)[0][:, -1]


def test_dicts_tuples_keywords_and_recurrent_layers() -> None:
    model, x, y = Structured(), torch.randn(4, 5, 6), torch.tensor([0, 1, 2, 0])
    oracle = brute_force(model, cross_entropy(x, y))
    recorder = _train(
        model, cross_entropy(x, y), probes=["error_moment", "gradient_norm"], blocks="inner"
    )
    moments = _output_moments(recorder)
    for name in ("inner.fc", "lstm"):
        np.testing.assert_allclose(
            moments[name], _mean_square(oracle[name][0].grad_output), **EXACT
        )
    norms = recorder.run["gradient_norm"]
    np.testing.assert_allclose(
        norms["output"].item(), _norm(oracle["inner"][0].grad_output), **EXACT
    )


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.shared(self.shared(x).tanh()).tanh())


def test_a_module_called_twice_has_two_sites() -> None:
    model, x, y = Twice(), torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    oracle = brute_force(model, cross_entropy(x, y))
    recorder = _train(model, cross_entropy(x, y), steps=2)
    moments = _output_moments(recorder)
    assert list(moments) == ["shared", "shared#1", "head"]
    assert recorder.run["error_moment"]["depth"].values.tolist() == [1, 2, 3]
    for call in (0, 1):
        name = "shared#1" if call else "shared"
        np.testing.assert_allclose(
            moments[name], _mean_square(oracle["shared"][call].grad_output), **EXACT
        )
    # the weight is one and the same, so it is measured once
    assert recorder.run["weight"]["site"].values.tolist() == ["shared", "head"]


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
    model, x, y = Checkpointed(reentrant), torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    plain = nn.Sequential(model.stem, *model.body, model.head)
    oracle = brute_force(plain, cross_entropy(x, y))
    names = {"stem": "0", "body.0": "1", "body.2": "3", "head": "5"}
    run = _train(model, cross_entropy(x, y), steps=2, probes=["error_moment", "activation"]).run
    errors, outputs = run["error_moment"].isel(step=0), run["activation"].isel(step=0)
    assert errors["site"].values.tolist() == list(names)
    for site, index in names.items():
        signals = oracle[index][0]
        for variable, expected in (("output", signals.grad_output), ("input", signals.grad_input)):
            np.testing.assert_allclose(
                errors[variable].sel(site=site), _mean_square(expected), err_msg=site, **EXACT
            )
        np.testing.assert_allclose(
            outputs["mean_square"].sel(site=site), _mean_square(signals.output), **EXACT
        )


def test_gradient_accumulation_equals_the_whole_batch() -> None:
    model, x, y = make_case("mlp")
    whole = brute_force(model, cross_entropy(x, y))
    optimizer = sgd(model)
    with propkit.attach(model) as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            for part in (slice(0, 2), slice(2, 8)):  # unequal parts: the mean is weighted
                (F.cross_entropy(model(x[part]), y[part], reduction="sum") / 8).backward()
            optimizer.step()
    run = recorder.run
    assert run["error_moment"].sizes["step"] == 2
    for name, moment in _output_moments(recorder).items():
        np.testing.assert_allclose(moment, _mean_square(whole[name][0].grad_output), **EXACT)
    norms = run["gradient_norm"].isel(step=0)
    for name in norms["site"].values.tolist():
        np.testing.assert_allclose(
            norms["output"].sel(site=name), _norm(whole[name][0].grad_output), **EXACT
        )
    stats = run["activation"].isel(step=0)
    for name in stats["site"].values.tolist():
        out = whole[name][0].output.detach()
        np.testing.assert_allclose(
            stats["mean"].sel(site=name), float(out.double().mean()), **EXACT
        )
        np.testing.assert_allclose(stats["max"].sel(site=name), float(out.max()), **EXACT)


def test_evaluation_between_steps_is_left_out() -> None:
    model, x, y = make_case("plain")
    oracle = brute_force(model, cross_entropy(x, y))
    optimizer = sgd(model)
    with propkit.attach(model, probes="activation") as recorder:
        model.eval()
        with torch.no_grad():
            model(100 * x)
        model.train()
        cross_entropy(x, y)(model).backward()
        optimizer.step()
    stats = recorder.run["activation"]
    assert stats.sizes["step"] == 1
    for name in stats["site"].values.tolist():
        if name.endswith(("0", "3", "6", "9")):  # convolutions; the ReLUs are in place in the model
            expected = _mean_square(oracle[name][0].output)
            np.testing.assert_allclose(
                stats["mean_square"].sel(site=name).item(), expected, **EXACT
            )


def test_inference_alone_is_recorded() -> None:
    model, x, _ = make_case("mlp")
    with propkit.attach(model.eval(), probes=["activation", "error_moment"]) as recorder:
        with torch.no_grad():
            model(x)
        recorder.step()
    assert recorder.run.groups == ("activation",)
    assert np.isfinite(recorder.run["activation"]["mean"].values).all()


def test_steps_without_an_optimiser_and_never_counted_twice() -> None:
    model, x, y = make_case("mlp")
    with propkit.attach(model, probes="weight") as recorder:
        for _ in range(3):
            cross_entropy(x, y)(model).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
                    p.grad = None
            recorder.step()
    assert recorder.run["weight"]["step"].values.tolist() == [0, 1, 2]
    assert (recorder.run["weight"]["update_ratio"].values > 0).all()
    optimizer = sgd(model)
    with propkit.attach(model) as recorder:
        cross_entropy(x, y)(model).backward()
        optimizer.step()
        with pytest.raises(RuntimeError, match="SGD have been found"):
            recorder.step()


def test_other_optimisers_do_not_count() -> None:
    model, x, y = make_case("mlp")
    other = sgd(mlp())
    optimizer = sgd(model)
    with propkit.attach(model, probes="error_moment") as recorder:
        for _ in range(2):
            other.step()
            cross_entropy(x, y)(model).backward()
            optimizer.step()
    assert recorder.run["error_moment"]["step"].values.tolist() == [0, 1]


def test_frozen_parts_and_unused_modules() -> None:
    model, x, y = make_case("mlp")
    model.unused = nn.Linear(2, 2)
    model.forward = lambda x: nn.Sequential(*list(model.children())[:-1])(x)
    model[0].requires_grad_(False)
    recorder = _train(model, cross_entropy(x, y), probes=["error_moment", "activation"])
    assert "unused" not in recorder.run["activation"]["site"].values
    moments = _output_moments(recorder)
    assert "0" not in moments or np.isnan(moments["0"])  # no gradient reaches a frozen first layer
    assert moments["2"] > 0


def test_deepcopy_pickle_and_state_dict_of_an_attached_model(tmp_path) -> None:
    model, x, y = make_case("plain")
    keys = list(model.state_dict())
    with propkit.attach(model) as recorder:
        assert list(model.state_dict()) == keys
        twin = copy.deepcopy(model)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        loaded = torch.load(buffer, weights_only=False)
        for net in (twin, loaded):
            cross_entropy(x, y)(net).backward()  # the copies' hooks do nothing
        cross_entropy(x, y)(model).backward()
        sgd(model).step()
    assert recorder.run["error_moment"].sizes["step"] == 1
    path = tmp_path / "model.pickle"
    net = nn.Sequential(nn.Linear(2, 2))
    with propkit.attach(net):
        path.write_bytes(pickle.dumps(net))
    code = (
        "import pickle, sys, torch; sys.modules['propkit'] = None;"
        f"m = pickle.load(open({str(path)!r}, 'rb')); print(m(torch.ones(1, 2)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "[1, 2]" in done.stdout


def _hooks(model: nn.Module) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for m in model.modules()
    )


def test_detach_removes_its_own_hooks_only_and_twice_is_once() -> None:
    from torch.optim.optimizer import _global_optimizer_post_hooks

    model, x, _ = make_case("residual")
    calls = []
    model.stem.register_forward_hook(lambda *a: calls.append(1))
    listening = len(_global_optimizer_post_hooks)
    recorder = propkit.attach(model)
    assert _hooks(model) > 1
    recorder.detach()
    recorder.remove()
    assert _hooks(model) == 1
    assert len(_global_optimizer_post_hooks) == listening
    model(x)
    assert calls == [1]
    assert "detached" in repr(recorder)


def test_hooks_are_there_on_sampled_steps_only() -> None:
    model, x, y = make_case("plain")
    optimizer = sgd(model)
    seen = []
    with propkit.attach(model, every=3) as recorder:
        for _ in range(7):
            seen.append(_hooks(model) > 0)
            cross_entropy(x, y)(model).backward()
            optimizer.step()
    assert seen == [True, False, False, True, False, False, True]
    assert recorder.run["error_moment"]["step"].values.tolist() == [0, 3, 6]


def test_each_probe_may_have_its_own_schedule() -> None:
    model, x, y = make_case("mlp")
    recorder = _train(
        model, cross_entropy(x, y), steps=12, probes=["error_moment", "weight"], every={"weight": 5}
    )
    assert recorder.run["error_moment"]["step"].values.tolist() == list(range(12))
    assert recorder.run["weight"]["step"].values.tolist() == [0, 5, 10]
    assert np.isfinite(recorder.run["weight"]["norm"].values).all()
    with pytest.raises(ValueError, match="'wieght', which is not recorded"):
        propkit.attach(model, every={"wieght": 5})


def test_two_recorders_on_one_model() -> None:
    model, x, y = make_case("plain")
    optimizer = sgd(model)
    with propkit.attach(model) as one, propkit.attach(model, every=2) as two:
        for _ in range(4):
            optimizer.zero_grad()
            cross_entropy(x, y)(model).backward()
            optimizer.step()
    a, b = one.run["error_moment"]["output"], two.run["error_moment"]["output"]
    np.testing.assert_array_equal(a.values[::2], b.values)


@pytest.mark.parametrize(
    ("error", "state"), [(KeyboardInterrupt, "interrupted"), (RuntimeError, "failed")]
)
def test_exceptions_leave_a_readable_run_and_no_hook(error, state, tmp_path) -> None:
    model, x, y = make_case("mlp")
    optimizer = sgd(model)

    def train() -> None:
        with propkit.attach(model, tmp_path / "run.zarr") as recorder:
            for i in range(5):
                cross_entropy(x, y)(model).backward()
                optimizer.step()
                recorder.log(loss=float(i))
                if i == 2:
                    raise error("stop")

    with pytest.raises(error):
        train()
    assert _hooks(model) == 0
    run = propkit.open(tmp_path / "run.zarr")
    assert run.state == state
    assert run["error_moment"]["step"].values.tolist() == [0, 1, 2]
    assert run["log"]["loss"].values.tolist() == [0, 1, 2]


def test_an_exception_in_forward_or_backward_does_not_confuse_the_next_step() -> None:
    model, x, y = make_case("mlp")
    oracle = brute_force(model, cross_entropy(x, y))
    optimizer = sgd(model)
    with propkit.attach(model, probes="error_moment") as recorder:
        with pytest.raises(RuntimeError):
            model(torch.randn(4, 5))
        cross_entropy(x, y)(model).backward()
        optimizer.step()
    for name, moment in _output_moments(recorder).items():
        np.testing.assert_allclose(moment, _mean_square(oracle[name][0].grad_output), **EXACT)


def test_a_faulty_probe_is_switched_off_and_training_goes_on() -> None:
    @propkit.probe
    def broken(output):
        raise ZeroDivisionError("no luck")

    @propkit.probe
    def wrong_shape(grad_output):
        return grad_output

    model, x, y = make_case("mlp")
    twin = copy.deepcopy(model)
    with pytest.warns(PropkitWarning) as caught:
        recorder = _train(
            model, cross_entropy(x, y), steps=3, probes=[broken, wrong_shape, "error_moment"]
        )
    assert sorted(str(w.message).split("'")[1] for w in caught) == ["broken", "wrong_shape"]
    run = recorder.run
    assert run.groups == ("error_moment",)
    assert run["error_moment"].sizes["step"] == 3
    assert "no luck" in run.attributes["faults"]["broken"]
    assert "expected a 0-d tensor" in run.attributes["faults"]["wrong_shape"]
    _train(twin, cross_entropy(x, y), steps=3, probes="error_moment")
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True)
    )


def test_a_probe_of_several_signals_waits_for_all_of_them() -> None:
    @propkit.probe(reduce="sum", units="loss")
    def saliency(output, grad_output):
        return (output * grad_output).sum()

    for kind in ("mlp", "plain"):  # the plain one changes the outputs in place
        model, x, y = make_case(kind)
        oracle = brute_force(model, cross_entropy(x, y))
        ds = _train(model, cross_entropy(x, y), steps=2, probes=saliency).run["saliency"]
        for i, name in enumerate(ds["site"].values.tolist()):
            s = oracle[name][0]
            expected = (s.output.double() * s.grad_output.double()).sum().item()
            np.testing.assert_allclose(ds["saliency"].values[0, i], expected, rtol=1e-4, atol=1e-7)


def test_two_backward_passes_through_one_graph_are_combined() -> None:
    model, x, y = make_case("mlp")
    oracle = brute_force(model, cross_entropy(x, y))
    optimizer = sgd(model)
    with propkit.attach(model, probes="gradient_norm") as recorder:
        loss = cross_entropy(x, y)(model)
        loss.backward(retain_graph=True)
        loss.backward()
        optimizer.step()
    norms = recorder.run["gradient_norm"]["output"]
    for name in norms["site"].values.tolist():
        expected = _norm(oracle[name][0].grad_output) * 2**0.5
        np.testing.assert_allclose(norms.sel(site=name).item(), expected, **EXACT)


def test_spectral_normalisation_is_not_disturbed() -> None:
    def build() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)), nn.Linear(6, 3)
        )

    x, y = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    watched, bare = build(), build()
    _train(watched, cross_entropy(x, y), steps=5)
    optimizer = sgd(bare)
    for _ in range(5):
        optimizer.zero_grad()
        cross_entropy(x, y)(bare).backward()
        optimizer.step()
    for (name, a), b in zip(watched.state_dict().items(), bare.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"include": "con"}, ValueError, r"include='con' matches no module.*features, features.0"),
        ({"exclude": "["}, ValueError, "not a regular expression"),
        ({"blocks": "layer9"}, ValueError, "blocks='layer9' matches no module"),
        ({"blocks": ["layer9"]}, ValueError, "blocks names 'layer9', which is no module"),
        (
            {"probes": ["error_momnt"]},
            ValueError,
            "Did you mean 'error_moment'.*There are: activation",
        ),
        ({"probes": [3]}, TypeError, "expected a probe's name"),
        ({"probes": ["weight", "weight"]}, ValueError, "given twice"),
        ({"probes": []}, ValueError, "nothing to observe"),
        ({"every": 0}, ValueError, "every=0"),
        ({"every": "2"}, ValueError, "every='2'"),
        ({"optimizer": "sgd"}, TypeError, "expected a torch.optim.Optimizer"),
        ({"config": {"a": object()}}, TypeError, r"config\['a'\] cannot be written as JSON"),
        ({"config": [1]}, TypeError, r"config: expected a dict of settings, found list \[1\]; "),
        ({"config": dict}, TypeError, "config: expected a dict.*found the class dict, not an"),
        ({"scaler": 3}, TypeError, r"scaler: expected.*GradScaler, found int 3; leave it out"),
        ({"scaler": torch.amp.GradScaler}, TypeError, "scaler: .*found the class GradScaler, not"),
        ({"scaler": {}}, TypeError, "scaler: expected.*GradScaler, found dict"),
        ({"probes": 123}, TypeError, "probes: expected names of probes.*found int 123"),
        ({"probes": len}, TypeError, "probes: expected names.*decorated with @propkit.probe"),
        ({"include": 1}, TypeError, "include: expected a regular expression.*found int 1"),
        ({"include": ["0"]}, TypeError, r"include: .*found list \['0'\]; .*'first\|second'"),
        ({"exclude": b"x"}, TypeError, "exclude: expected a regular expression.*found bytes"),
        ({"blocks": 5}, TypeError, "blocks: expected a regular expression.*found int 5"),
        ({"blocks": [5]}, TypeError, r"blocks: expected a regular expression.*found list \[5\]"),
        ({"budget": 5}, ValueError, "budget=5: expected the share"),
        ({"every": {"weight": 0}}, ValueError, r"every\['weight'\]=0: expected a number of steps"),
        ({"every": {"weight": 2, 3: 4}}, ValueError, "every names 3, which is not recorded"),
        ({"every": lambda: True}, ValueError, r"every: .*<lambda>, which raises TypeError.*0 pos"),
        ({"every": lambda s: 1 / s}, ValueError, "every: expected a function step -> bool.*raises"),
        ({"every": lambda s: torch.ones(2)}, ValueError, "every: .*raises RuntimeError at step 0"),
        ({"every": propkit.log_spaced}, ValueError, "every: .*log_spaced, which raises ValueError"),
        ({"every": lambda _: propkit.log_spaced()}, ValueError, "gives _LogSpaced log_spaced"),
        ({"every": {"weight": lambda s: "no"}}, ValueError, r"every\['weight'\]: .*gives str 'no'"),
    ],
)
def test_wrong_arguments_are_refused_and_leave_nothing_behind(
    arguments, kind, message, tmp_path
) -> None:
    model, path = TinyPlain(), tmp_path / "run.zarr"
    before = _left()
    with pytest.raises(kind, match=message):
        propkit.attach(model, path, **arguments)
    assert _hooks(model) == 0
    assert list(tmp_path.iterdir()) == []
    propkit.attach(model, path, label="mine").detach()
    with pytest.raises(kind, match=message):
        propkit.attach(model, path, overwrite=True, **arguments)
    assert propkit.open(path).label == "mine"
    assert _left() == before


def _left() -> tuple[object, ...]:
    """What an attachment has beside the hooks on modules."""
    from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

    hooks = [*_global_optimizer_pre_hooks, *_global_optimizer_post_hooks]
    threads = [t.name for t in threading.enumerate() if t.name == "propkit-writer"]
    return hooks, threads, len(lifetime._running)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda s: np.bool_(s != 1),
        lambda s: torch.tensor(s != 1),
        lambda s: (s != 1) or None,
        lambda s: int(s != 1),
    ],
)
def test_whatever_is_true_or_false_may_be_what_a_schedule_gives(schedule) -> None:
    recorder = _train(mlp(), _mlp_loss, steps=3, probes="weight", every=schedule)
    assert recorder.run["weight"]["step"].values.tolist() == [0, 2]


def _mlp_loss(model: nn.Module) -> torch.Tensor:
    _, x, y = make_case("mlp")
    return cross_entropy(x, y)(model)


@pytest.mark.parametrize(
    "where", ["taps.Taps.__init__", "taps.Taps.install", "steps.OptimizerSteps.__init__"]
)
@pytest.mark.parametrize("place", ["memory", "directory", "url"])
def test_an_attachment_that_fails_leaves_nothing_behind(
    where, place, tmp_path, monkeypatch
) -> None:
    url = f"memory://{tmp_path.name}-{where}.zarr"
    store = {"memory": None, "directory": tmp_path / "run.zarr", "url": url}[place]
    model, scaler = mlp(), torch.amp.GradScaler("cpu")
    before = _left()

    def fails(*_, **__):
        raise RuntimeError("cannot")

    with monkeypatch.context() as patch:
        patch.setattr(f"propkit.hooks.{where}", fails)
        with pytest.raises(RuntimeError, match="cannot"):
            propkit.attach(model, store, scaler=scaler)
    assert _hooks(model) == 0
    assert _left() == before
    assert "update" not in vars(scaler)
    assert list(tmp_path.iterdir()) == []
    recorder = _train(model, _mlp_loss, 2, store=store, scaler=scaler)
    assert recorder.run["weight"].sizes["step"] == 2
    if store is None:
        return
    with monkeypatch.context() as patch:
        patch.setattr(f"propkit.hooks.{where}", fails)
        with pytest.raises(RuntimeError, match="cannot"):
            propkit.attach(model, store, resume=True)
    assert _left() == before
    assert propkit.open(store).state == "failed"
    assert propkit.open(store)["weight"].sizes["step"] == 2
    _train(model, _mlp_loss, 2, store=store, resume=True)
    assert propkit.open(store)["weight"]["step"].values.tolist() == [0, 1, 2, 3]


def test_no_module_compiled_and_existing_stores_are_refused(tmp_path) -> None:
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, found list"):
        propkit.attach([TinyPlain()])
    with pytest.raises(ValueError, match="compiled already"):
        propkit.attach(torch.compile(TinyPlain(), backend="eager"))
    path = tmp_path / "run.zarr"
    model = mlp()
    propkit.attach(model, path, label="first").detach()
    with pytest.raises(FileExistsError, match=r"run\.zarr"):
        propkit.attach(model, path)
    assert propkit.open(path).label == "first"
    assert _hooks(model) == 0
    propkit.attach(model, path, label="second", overwrite=True).detach()
    assert propkit.open(path).label == "second"


def test_a_model_that_is_not_the_trained_one_is_reported() -> None:
    recorder = propkit.attach(mlp())
    with pytest.warns(PropkitWarning, match="no observed module ran"):
        recorder.step()
    recorder.step()  # said once
    recorder.detach()
    assert any("no observed module ran" in note for note in recorder.run.attributes["notes"])


def test_a_fault_of_propkit_itself_ends_the_recording_and_not_the_training(monkeypatch) -> None:
    model, x, y = make_case("mlp")
    optimizer = sgd(model)
    recorder = propkit.attach(model)

    def fails(*_):
        raise ArithmeticError("a bug")

    monkeypatch.setattr("propkit.recording.recorder.make_row", fails)
    cross_entropy(x, y)(model).backward()
    with pytest.warns(PropkitWarning, match="recording ended at step 0 by a fault in propkit"):
        optimizer.step()
    optimizer.step()
    assert recorder.run.state == "failed"
    assert _hooks(model) == 0


def test_a_probe_that_gives_nothing_but_nan_is_switched_off() -> None:
    @propkit.probe
    def undefined(output):
        return (output.sum() * 0) / 0

    model, x, y = make_case("mlp")
    optimizer = sgd(model)
    with propkit.attach(model, probes=[undefined, "error_moment"]) as recorder:
        for step in range(4):
            cross_entropy(x, y)(model).backward()
            optimizer.step()
            if step == 1:
                with pytest.warns(PropkitWarning, match="'undefined'.*nothing but NaN"):
                    assert recorder.run["undefined"].sizes["step"] == 2
    run = recorder.run
    assert "nothing but NaN" in run.attributes["faults"]["undefined"]
    assert run["undefined"]["step"].values.tolist() == [0, 1]  # recorded as they were, until then
    assert run["error_moment"].sizes["step"] == 4


def test_values_that_are_not_finite_are_recorded_and_flagged(tmp_path) -> None:
    model, x, y = make_case("mlp")
    optimizer = sgd(model)
    with propkit.attach(
        model, tmp_path / "run.zarr", probes=["error_moment", "weight"]
    ) as recorder:
        for step in range(3):
            optimizer.zero_grad()
            (cross_entropy(x, y)(model) * (float("inf") if step == 1 else 1)).backward()
            optimizer.step()
    run = recorder.run
    assert not np.isfinite(run["error_moment"]["output"].values[1]).any()
    assert run.attributes["not_finite"]["error_moment"].startswith("step 1, ")
    assert run.attributes["not_finite"]["weight"].startswith("step 1, ")  # its update
    assert run.attributes["faults"] == {}  # the training diverged; the probes are well


def test_an_evaluation_before_the_first_flush_leaves_the_shapes_of_the_training() -> None:
    model, x, y = make_case("mlp")
    optimizer = sgd(model)
    with propkit.attach(model, probes="error_moment") as recorder:
        with torch.no_grad():
            model(torch.cat([x, x]))
        cross_entropy(x, y)(model).backward()
        optimizer.step()
        with torch.no_grad():
            model(torch.cat([x, x, x]))
    shapes = recorder.run["error_moment"]["output_shape"].values
    assert all(shape.startswith(f"({len(x)}, ") for shape in shapes)


def test_a_probe_without_a_site_makes_no_step_a_sampled_one() -> None:
    model, x, y = make_case("mlp")

    @propkit.probe(sites=lambda module: False)
    def nowhere(output):
        return output.mean()

    optimizer = sgd(model)
    every = {"error_moment": 2, "nowhere": 1}
    with pytest.warns(PropkitWarning, match="nowhere.*has no site.*<lambda>"):
        recorder = propkit.attach(model, probes=["error_moment", nowhere], every=every)
    for _ in range(4):
        cross_entropy(x, y)(model).backward()
        optimizer.step()
    recorder.detach()
    assert recorder.run["error_moment"]["step"].values.tolist() == [0, 2]
    assert not any("was to be measured" in note for note in recorder.run.attributes["notes"])


def test_a_probe_may_return_a_number_of_signals_on_the_cpu() -> None:
    model, x, y = make_case("mlp")

    @propkit.probe
    def as_number(output):
        return output.double().mean().item()

    @propkit.probe
    def as_tensor(output):
        return output.double().mean()

    optimizer = sgd(model)
    with propkit.attach(model, probes=[as_number, as_tensor]) as recorder:
        for half in (slice(0, 2), slice(2, None)):  # two micro-batches of different sizes
            cross_entropy(x[half], y[half])(model).backward()
        optimizer.step()
    number, tensor = (recorder.run[name][name].values for name in ("as_number", "as_tensor"))
    assert np.isfinite(number).all()
    np.testing.assert_array_equal(number, tensor)
    assert as_number(x).dtype == torch.float64


@pytest.mark.parametrize("signal", ["output", "weight"])
def test_a_number_that_was_read_from_another_device_is_refused(signal: str) -> None:
    model, _, _ = make_case("mlp")

    def read(output):
        return 1.0

    def read_weight(weight):
        return 1.0

    read = propkit.probe(read if signal == "output" else read_weight)
    with (
        pytest.warns(PropkitWarning, match="'read.*' failed.*expected a 0-d tensor"),
        propkit.attach(model.to("meta"), probes=read),
    ):
        model(torch.empty(4, 12, device="meta"))


def test_a_url_of_this_machine_is_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    with propkit.attach(mlp(), f"file://{tmp_path}/a%20folder/run.zarr", probes="weight"):
        pass
    assert propkit.open(folder / "run.zarr").state == "complete"
