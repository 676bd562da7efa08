"""Which steps are recorded, and when hooks are there."""

import copy
import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import propkit
from propkit.notices import PropkitWarning
from propkit.testing import brute_force, mlp
from tests.attached.support import EXACT, count_hooks, mean_square, output_moments, train_mlp
from tests.conftest import cross_entropy, make_case, sgd


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
            expected = mean_square(oracle[name][0].output)
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
    recorder = train_mlp(model, cross_entropy(x, y), probes=["error_moment", "activation"])
    assert "unused" not in recorder.run["activation"]["site"].values
    moments = output_moments(recorder)
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


def test_detach_removes_its_own_hooks_only_and_twice_is_once() -> None:
    from torch.optim.optimizer import _global_optimizer_post_hooks

    model, x, _ = make_case("residual")
    calls = []
    model.stem.register_forward_hook(lambda *a: calls.append(1))
    listening = len(_global_optimizer_post_hooks)
    recorder = propkit.attach(model)
    assert count_hooks(model) > 1
    recorder.detach()
    recorder.remove()
    assert count_hooks(model) == 1
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
            seen.append(count_hooks(model) > 0)
            cross_entropy(x, y)(model).backward()
            optimizer.step()
    assert seen == [True, False, False, True, False, False, True]
    assert recorder.run["error_moment"]["step"].values.tolist() == [0, 3, 6]


def test_each_probe_may_have_its_own_schedule() -> None:
    model, x, y = make_case("mlp")
    recorder = train_mlp(
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


def test_spectral_normalisation_is_not_disturbed() -> None:
    def build() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)), nn.Linear(6, 3)
        )

    x, y = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    watched, bare = build(), build()
    train_mlp(watched, cross_entropy(x, y), steps=5)
    optimizer = sgd(bare)
    for _ in range(5):
        optimizer.zero_grad()
        cross_entropy(x, y)(bare).backward()
        optimizer.step()
    for (name, a), b in zip(watched.state_dict().items(), bare.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


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
