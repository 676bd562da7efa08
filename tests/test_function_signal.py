"""The signal `function`: blocks and the whole network as maps, while a training goes on."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import propkit
from propkit.probe import probe
from propkit.testing import TinyResNet, brute_force
from tests.conftest import cross_entropy, make_case, sgd


@probe(sites="block", reference="test")
def mapped(function, input, module):
    """The function's value: it has to be that of the module."""
    y = function(input)
    return {"value": y.double().square().sum(), "again": function(input).double().square().sum()}


@probe(sites="block", reference="test")
def seen(output):
    """What the module gives."""
    return {"value": output.double().square().sum()}


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 6)
        self.blocks = nn.ModuleList([Block() for _ in range(2)])
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.linear = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))
        self.other = nn.utils.spectral_norm(nn.Linear(6, 6))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.drop(self.other(self.linear(self.norm(x.relu_()))))


def test_the_function_is_the_forward_that_is_about_to_run() -> None:
    """Dropout masks, running statistics, power iterations and in-place changes of the input included."""
    model, x = Noisy(), torch.randn(8, 6)
    with propkit.attach(model, probes=[mapped, seen], blocks=r"blocks\.\d|\(model\)") as recorder:
        for _ in range(2):
            model(x)
            recorder.step()
    a, b = recorder.run["mapped"], recorder.run["seen"]
    assert a["site"].values.tolist() == ["blocks.0", "blocks.1", "(model)"]
    np.testing.assert_array_equal(a["value"], b["value"])
    np.testing.assert_array_equal(a["again"], b["value"])


def test_training_is_bit_identical() -> None:
    results = []
    for watched in (True, False):
        torch.manual_seed(1)
        model, x, y = Noisy(), torch.randn(8, 6), torch.arange(8) % 3
        optimizer = sgd(model)
        recorder = (
            propkit.attach(model, probes=["jacobian_spectrum", "error_moment"], every=1)
            if watched
            else None
        )
        for _ in range(3):
            optimizer.zero_grad()
            cross_entropy(x, y)(model).backward()
            optimizer.step()
        if recorder:
            recorder.detach()
        results.append((model.state_dict(), torch.get_rng_state()))
    for name, value in results[0][0].items():
        assert torch.equal(value, results[1][0][name]), name
    assert torch.equal(results[0][1], results[1][1])


def test_the_spectra_are_those_of_dense_jacobians() -> None:
    model, x, y = make_case("residual")
    model.double()
    x, y = x[:2].double(), y[:2]
    twin = copy.deepcopy(model)
    inputs = {n: s[0].input.detach() for n, s in brute_force(model, cross_entropy(x, y)).items()}
    found = propkit.measure(model, x, probes="jacobian_spectrum")["jacobian_spectrum"].isel(step=0)
    assert found["site"].values.tolist() == ["blocks.0", "blocks.1", "blocks.2", "(model)"]
    for site in found["site"].values.tolist():
        name = "" if site == "(model)" else site
        z = inputs[name]
        jacobian = torch.autograd.functional.jacobian(twin.get_submodule(name), z)
        sigma = torch.linalg.svdvals(jacobian.reshape(-1, z.numel()))
        largest = float(found["largest"].sel(site=site))
        assert largest == pytest.approx(float(sigma[0]), rel=1e-3)
        mean = float(sigma.square().sum()) / z.numel()
        assert float(found["mean_square"].sel(site=site)) == pytest.approx(mean, rel=0.1)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_calls_checkpoints_evaluation_and_autocast() -> None:
    model = TinyResNet()
    inner = model.blocks[0]
    model.blocks.forward = lambda x: checkpoint(
        inner, checkpoint(inner, x, use_reentrant=False), use_reentrant=True
    )
    x = torch.randn(4, 3, 5, 5)
    with propkit.attach(
        model, probes=["jacobian_spectrum"], every=1, blocks=r"blocks\.0", exclude=r"\(model\)"
    ) as recorder:
        with torch.autocast("cpu", torch.bfloat16):
            model(x).sum().backward()
        recorder.step()
        with torch.no_grad():
            model.eval()(x)
        recorder.step()
    ds = recorder.run["jacobian_spectrum"]
    assert ds["site"].values.tolist() == ["blocks.0", "blocks.0#1"]
    assert np.isfinite(ds["largest"].values).all()


def test_a_fault_in_the_map_switches_the_probe_off_and_is_said() -> None:
    class Opaque(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x):
            return checkpoint(self.linear, x, use_reentrant=True)

    model = nn.Sequential(Opaque(), Opaque())

    def train() -> propkit.Recorder:
        names = ["jacobian_spectrum", "activation"]
        with propkit.attach(model, probes=names, every=1) as recorder:
            model(torch.randn(2, 6, requires_grad=True)).sum().backward()
            recorder.step()
        return recorder

    with pytest.warns(UserWarning, match="use_reentrant=False"):
        recorder = train()
    assert recorder.run.groups == ("activation",)


def test_compatibility_says_where_it_applies() -> None:
    model = nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 6))
    report = propkit.compatibility(model, torch.arange(5), probes="jacobian_spectrum", blocks="0|1")
    applies = dict(
        zip(report.table["site"].values.tolist(), report.table["applies"].values[:, 0], strict=True)
    )
    assert applies == {"0": "no", "1": "yes", "(model)": "no"}
    assert report.table["calls"].values.tolist() == [1, 1, 1]  # the map's own are not counted
    assert "floating-point" in str(report.table["reason"].sel(site="0").values)


def test_a_compiled_graph_has_no_function_and_it_is_said() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    why = "in a compiled graph function, input are not there together"
    names = ["jacobian_spectrum", "activation"]

    def train() -> None:
        with propkit.attach(model, probes=names, every=1) as recorder:
            compiled = torch.compile(model, backend="aot_eager")
            compiled(torch.randn(2, 3)).sum().backward()
            recorder.step()

    with pytest.warns(UserWarning, match=why):
        train()


def test_signals_that_are_not_there_with_it() -> None:
    with pytest.raises(TypeError, match="'function' is known just before"):
        probe(lambda function, output: 0)
