"""Exceptions and faulty probes: training goes on, and the run says so."""

import copy

import numpy as np
import pytest
import torch

import propkit
from propkit.notices import PropkitWarning
from propkit.testing import brute_force, mlp
from tests.attached.support import EXACT, count_hooks, mean_square, output_moments, train_mlp
from tests.conftest import cross_entropy, make_case, sgd


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
    assert count_hooks(model) == 0
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
    for name, moment in output_moments(recorder).items():
        np.testing.assert_allclose(moment, mean_square(oracle[name][0].grad_output), **EXACT)


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
        recorder = train_mlp(
            model, cross_entropy(x, y), steps=3, probes=[broken, wrong_shape, "error_moment"]
        )
    assert sorted(str(w.message).split("'")[1] for w in caught) == ["broken", "wrong_shape"]
    run = recorder.run
    assert run.groups == ("error_moment",)
    assert run["error_moment"].sizes["step"] == 3
    assert "no luck" in run.attributes["faults"]["broken"]
    assert "expected a 0-d tensor" in run.attributes["faults"]["wrong_shape"]
    train_mlp(twin, cross_entropy(x, y), steps=3, probes="error_moment")
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True)
    )


def test_where_all_probes_are_off_the_model_is_not_taken_for_another() -> None:
    @propkit.probe
    def broken(output):
        raise ZeroDivisionError("no luck")

    model, x, y = make_case("mlp")
    with pytest.warns(PropkitWarning) as caught:
        recorder = train_mlp(model, cross_entropy(x, y), steps=3, probes=broken)
    (said,) = (str(w.message) for w in caught)
    assert "no luck" in said
    assert not recorder.run.attributes["notes"]


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
    assert count_hooks(model) == 0


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
