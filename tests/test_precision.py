"""Mixed precision: what is recorded carries no loss scale, and a skipped step is marked."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import propkit
from propkit.notices import PropkitWarning
from propkit.testing import brute_force
from tests.conftest import cross_entropy, make_case, sgd

EXACT = {"rtol": 1e-5, "atol": 1e-30}


@propkit.probe(reduce="max", units="loss")
def largest_error(grad_output):
    """A probe that says nothing of how it grows with the loss."""
    return grad_output.abs().max()


@pytest.mark.parametrize("given", [True, False])
def test_a_gradient_scaler_leaves_no_trace(given: bool) -> None:
    model, x, y = make_case("plain")
    twin = copy.deepcopy(model)
    probes = ["error_moment", "gradient_norm", largest_error]

    optimizer = sgd(twin)
    with propkit.attach(twin, probes=probes) as plain:
        for _ in range(3):
            optimizer.zero_grad()
            cross_entropy(x, y)(twin).backward()
            optimizer.step()

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    optimizer = sgd(model)
    with propkit.attach(model, probes=probes, scaler=scaler if given else None) as scaled:
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(cross_entropy(x, y)(model)).backward()
            scaler.step(optimizer)
            scaler.update()
    for group in plain.run.groups:
        assert scaled.run[group].sizes == plain.run[group].sizes
        for name in plain.run[group].data_vars:
            np.testing.assert_allclose(
                scaled.run[group][name].values, plain.run[group][name].values, **EXACT
            )
    assert "update" not in vars(scaler)  # detach left the scaler as it was
    assert "log" not in scaled.run.groups


def test_a_skipped_step_is_a_row_of_its_own_and_marked() -> None:
    model, x, y = make_case("mlp")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    optimizer = sgd(model)
    weights = []
    with propkit.attach(model, probes="error_moment") as recorder:
        for step in range(4):
            optimizer.zero_grad()
            loss = cross_entropy(x, y)(model)
            scaler.scale(loss * (float("inf") if step == 2 else 1)).backward()
            scaler.step(optimizer)
            scaler.update()
            weights.append(model[0].weight.detach().clone())
    assert torch.equal(weights[1], weights[2])  # skipped indeed
    errors = recorder.run["error_moment"]
    assert errors["step"].values.tolist() == [0, 1, 2, 3]
    finite = np.isfinite(errors["output"].values).all(axis=1)
    assert finite.tolist() == [True, True, False, True]
    assert recorder.run["log"]["step"].values.tolist() == [2]
    assert recorder.run["log"]["skipped"].values.tolist() == [1.0]


@pytest.mark.parametrize("compiled", [True, False])
def test_errors_of_a_skipped_step_carry_the_scale_that_was_in_force(compiled: bool) -> None:
    """The scaler makes its scale smaller before the step is known to be over."""
    model, x, y = make_case("mlp")
    model.register_parameter("extra", torch.nn.Parameter(torch.zeros(())))
    oracle = brute_force(model, cross_entropy(x, y))
    torch._dynamo.reset()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    optimizer = sgd(model)
    with propkit.attach(model, probes="error_moment", scaler=scaler) as recorder:
        call = torch.compile(model, backend="aot_eager") if compiled else model
        for step in range(3):
            optimizer.zero_grad()
            loss = cross_entropy(x, y)(call)
            if step < 2:  # the gradient of this one overflows, all others are as ever
                loss = loss + model.extra * 1e38
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    assert scaler.get_scale() == 2.0**10
    assert recorder.run["log"]["step"].values.tolist() == [0, 1]
    errors = recorder.run["error_moment"]
    for i, name in enumerate(errors["site"].values.tolist()):
        expected = float(oracle[name][0].grad_output.double().square().mean())
        np.testing.assert_allclose(errors["output"].values[:, i], expected, rtol=1e-5)


def test_several_scalers_have_to_be_told_apart() -> None:
    model, x, y = make_case("mlp")
    mine, other = (torch.amp.GradScaler("cpu", init_scale=2.0**k) for k in (3, 5))
    recorder = propkit.attach(model)
    loss = mine.scale(other.scale(cross_entropy(x, y)(model)))
    with pytest.warns(PropkitWarning, match="2 gradient scalers"):
        loss.backward()
    recorder.detach()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["plain", "mlp"])
def test_autocast(kind: str, dtype: torch.dtype) -> None:
    model, x, y = make_case(kind)

    def loss(net):
        with torch.autocast("cpu", dtype=dtype):
            return F.cross_entropy(net(x), y)

    oracle = brute_force(model, loss)
    optimizer = sgd(model)
    with propkit.attach(model) as recorder:
        loss(model).backward()
        optimizer.step()
    errors = recorder.run["error_moment"].isel(step=0)
    outputs = recorder.run["activation"].isel(step=0)
    for name in errors["site"].values.tolist():
        s = oracle[name][0]
        assert s.output.dtype == dtype
        expected = float(s.grad_output.double().square().mean())
        np.testing.assert_allclose(errors["output"].sel(site=name), expected, **EXACT)
        expected = float(s.output.detach().double().square().mean())
        np.testing.assert_allclose(outputs["mean_square"].sel(site=name), expected, **EXACT)


def test_half_precision_errors_beyond_its_range_are_exact() -> None:
    """Squares of fp16 values overflow beyond 256 and vanish below 2e-4; the moments do neither."""
    for scale in (1e3, 1e-4):
        model = torch.nn.Linear(64, 32).half()
        x = torch.randn(16, 64).half()
        weight = (scale * torch.randn(16, 32)).half()
        with propkit.attach(model, probes="error_moment") as recorder:
            (model(x).float() * weight.float()).sum().backward()
            recorder.step()
        expected = float(weight.double().square().mean())
        np.testing.assert_allclose(recorder.run["error_moment"]["output"].item(), expected, **EXACT)
