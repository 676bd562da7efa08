"""Every recorded value against brute force, and training that never notices."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import propkit
from propkit.testing import Signals, TinyResNet, brute_force
from tests.attached.support import EXACT, Checkpointed, mean_square, norm, output_moments, train_mlp
from tests.conftest import Case, cross_entropy, make_case, sgd


def _expected(group: str, signals: Signals) -> dict[str, float]:
    """The values of a group at one site, each from its definition."""
    if group == "error_moment":
        return {
            "output": mean_square(signals.grad_output),
            "input": mean_square(signals.grad_input),
        }
    if group == "gradient_norm":
        return {"output": norm(signals.grad_output), "input": norm(signals.grad_input)}
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
                    expected["update_ratio"] = norm(ends[1] - ends[0]) / expected["norm"]
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
    moments = output_moments(train_mlp(model, lambda m: F.cross_entropy(m(x), y)))
    for name in ("first", "second"):
        np.testing.assert_allclose(moments[name], mean_square(oracle[name][0].grad_output), **EXACT)


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
    recorder = train_mlp(
        model, cross_entropy(x, y), probes=["error_moment", "gradient_norm"], blocks="inner"
    )
    moments = output_moments(recorder)
    for name in ("inner.fc", "lstm"):
        np.testing.assert_allclose(moments[name], mean_square(oracle[name][0].grad_output), **EXACT)
    norms = recorder.run["gradient_norm"]
    np.testing.assert_allclose(
        norms["output"].item(), norm(oracle["inner"][0].grad_output), **EXACT
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
    recorder = train_mlp(model, cross_entropy(x, y), steps=2)
    moments = output_moments(recorder)
    assert list(moments) == ["shared", "shared#1", "head"]
    assert recorder.run["error_moment"]["depth"].values.tolist() == [1, 2, 3]
    for call in (0, 1):
        name = "shared#1" if call else "shared"
        np.testing.assert_allclose(
            moments[name], mean_square(oracle["shared"][call].grad_output), **EXACT
        )
    # the weight is one and the same, so it is measured once
    assert recorder.run["weight"]["site"].values.tolist() == ["shared", "head"]


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_counts_nothing_twice(reentrant: bool) -> None:
    model, x, y = Checkpointed(reentrant), torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    plain = nn.Sequential(model.stem, *model.body, model.head)
    oracle = brute_force(plain, cross_entropy(x, y))
    names = {"stem": "0", "body.0": "1", "body.2": "3", "head": "5"}
    run = train_mlp(model, cross_entropy(x, y), steps=2, probes=["error_moment", "activation"]).run
    errors, outputs = run["error_moment"].isel(step=0), run["activation"].isel(step=0)
    assert errors["site"].values.tolist() == list(names)
    for site, index in names.items():
        signals = oracle[index][0]
        for variable, expected in (("output", signals.grad_output), ("input", signals.grad_input)):
            np.testing.assert_allclose(
                errors[variable].sel(site=site), mean_square(expected), err_msg=site, **EXACT
            )
        np.testing.assert_allclose(
            outputs["mean_square"].sel(site=site), mean_square(signals.output), **EXACT
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
    for name, moment in output_moments(recorder).items():
        np.testing.assert_allclose(moment, mean_square(whole[name][0].grad_output), **EXACT)
    norms = run["gradient_norm"].isel(step=0)
    for name in norms["site"].values.tolist():
        np.testing.assert_allclose(
            norms["output"].sel(site=name), norm(whole[name][0].grad_output), **EXACT
        )
    stats = run["activation"].isel(step=0)
    for name in stats["site"].values.tolist():
        out = whole[name][0].output.detach()
        np.testing.assert_allclose(
            stats["mean"].sel(site=name), float(out.double().mean()), **EXACT
        )
        np.testing.assert_allclose(stats["max"].sel(site=name), float(out.max()), **EXACT)


def test_a_probe_of_several_signals_waits_for_all_of_them() -> None:
    @propkit.probe(reduce="sum", units="loss")
    def saliency(output, grad_output):
        return (output * grad_output).sum()

    for kind in ("mlp", "plain"):  # the plain one changes the outputs in place
        model, x, y = make_case(kind)
        oracle = brute_force(model, cross_entropy(x, y))
        ds = train_mlp(model, cross_entropy(x, y), steps=2, probes=saliency).run["saliency"]
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
        expected = norm(oracle[name][0].grad_output) * 2**0.5
        np.testing.assert_allclose(norms.sel(site=name).item(), expected, **EXACT)
