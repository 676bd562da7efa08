"""A training that goes on in the same run: no gap, no duplicate, and nothing of another model."""

import contextlib
import copy
import itertools
import os
import re
import warnings

import pytest
import torch
import xarray as xr
from torch import nn

import propkit
from propkit.notices import PropkitWarning
from propkit.recording import outbox
from propkit.store.attributes import to_json
from propkit.testing import mlp
from tests.conftest import cross_entropy, make_case, sgd
from tests.test_recovery import _fast_disk  # noqa: F401 - a fixture


@propkit.probe(
    dims={"quantiles": "quantile"}, coords={"quantile": (0.0, 0.5, 1.0)}, sites="filters"
)
def quantiles(grad_output):
    """Quantiles of the error."""
    return torch.quantile(grad_output.flatten(), torch.tensor([0.0, 0.5, 1.0]))


@propkit.probe(dims={"rows": "row"}, sites="filters")
def rows(weight):
    """Norm of each filter."""
    return weight.flatten(1).norm(dim=1)


class Late(nn.Module):
    """A part of it runs from the third step on."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.first, self.late, self.last = nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        x = self.first(x)
        if self.count >= 3:
            x = self.late(x)
        self.count += 1
        return self.last(x)


class Training:
    """A training that can be saved, and goes on from there."""

    def __init__(self, kind: str) -> None:
        torch.manual_seed(3)
        self.model, x, y = (Late(), None, None) if kind == "late" else make_case(kind)
        self.optimizer = sgd(self.model)
        self.loss = (
            (lambda m: m(torch.arange(20.0).view(5, 4) / 20).square().mean())
            if kind == "late"
            else cross_entropy(x, y)
        )

    def state(self):
        count = getattr(self.model, "count", 0)
        return copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict(), count))

    def load(self, state) -> None:
        self.model.load_state_dict(state[0])
        self.optimizer.load_state_dict(copy.deepcopy(state[1]))
        self.model.count = state[2]

    def train(self, recorder, steps: int, log_first: bool = True) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = self.loss(self.model)
            loss.backward()
            if log_first:
                recorder.log(loss=loss)
            self.optimizer.step()
            if not log_first:
                recorder.log(loss=loss)


OPTIONS = {
    "probes": ["error_moment", "weight", "activation", quantiles, rows],
    "every": {"weight": 3, "rows": 2},
}


def kill(recorder) -> None:
    """As if its process had been killed just now: what is buffered is lost, nothing is closed."""
    recorder._outbox._worker.stop()
    recorder._detached = True
    recorder._stop_listening()
    recorder._hooks.remove()
    os.close(recorder._outbox._writer._writer._hold)


@pytest.mark.parametrize(("kind", "log_first"), [("residual", True), ("late", False)])
def test_a_resumed_run_equals_one_that_was_never_interrupted(
    tmp_path, monkeypatch, kind, log_first
):
    monkeypatch.setattr(outbox, "FLUSH_ROWS", 2)
    whole = Training(kind)
    with propkit.attach(whole.model, tmp_path / "whole.zarr", **OPTIONS) as recorder:
        whole.train(recorder, 20, log_first)
    path = tmp_path / "parts.zarr"
    training = Training(kind)
    recorder = propkit.attach(training.model, path, **OPTIONS)
    training.train(recorder, 2, log_first)
    recorder.flush()
    checkpoint = training.state()
    training.train(recorder, 7, log_first)  # and these are done again
    kill(recorder)
    for first, steps in ((2, 7), (9, 6), (15, 5)):
        training = Training(kind)
        training.load(checkpoint)
        with (
            pytest.warns(PropkitWarning, match=r"resumed at step \d+:"),
        ):
            recorder = propkit.attach(training.model, path, resume=True, step=first, **OPTIONS)
        assert recorder.steps == first
        training.train(recorder, steps, log_first)
        recorder.flush()
        checkpoint = training.state()
        if first < 15:
            training.train(recorder, 2, log_first)
            kill(recorder)
    recorder.detach()
    run, expected = propkit.open(path), propkit.open(tmp_path / "whole.zarr")
    assert (run.state, run.attributes["steps"]) == ("complete", 20)
    assert set(run) == set(expected)
    for group in expected:
        xr.testing.assert_identical(run[group].load(), expected[group].load())
    assert [s["first_step"] for s in run.attributes["segments"]] == [0, 2, 9, 15]
    for part in run.attributes["segments"]:
        assert {"command", "torch_version", "propkit_version", "host", "pid", "time"} <= set(part)


def test_resume_goes_on_where_the_recording_stopped(tmp_path):
    path = tmp_path / "run.zarr"
    training = Training("mlp")
    options = {"probes": "error_moment", "every": 5}
    for steps in (7, 6, 0, 1):
        with propkit.attach(training.model, path, resume=True, **options) as recorder:
            training.train(recorder, steps)
    run = propkit.open(path)
    assert run.attributes["steps"] == recorder.steps == 14
    assert run["error_moment"].step.values.tolist() == [0, 5, 10]
    assert run["log"].step.values.tolist() == list(range(14))
    assert run.attributes["notes"] == []


def test_steps_that_are_missing_are_said(tmp_path):
    path = tmp_path / "run.zarr"
    training = Training("mlp")
    recorder = propkit.attach(training.model, path, probes="error_moment")
    training.train(recorder, 3)
    recorder.flush()
    training.train(recorder, 4)
    kill(recorder)  # a checkpoint was saved at step 7, and the rows from 3 on were not written
    with (
        pytest.warns(PropkitWarning, match=r"steps 3 to 6 are missing.*recorder\.flush\(\)"),
        pytest.warns(PropkitWarning, match="it ended without closing the run"),
    ):
        recorder = propkit.attach(training.model, path, probes="error_moment", resume=True, step=7)
    training.train(recorder, 1)
    assert recorder.run["error_moment"].step.values.tolist() == [0, 1, 2, 7]
    assert any("steps 3 to 6 are missing" in note for note in recorder.run.attributes["notes"])
    recorder.detach()


@propkit.probe(dims={"sample_means": "sample"})
def sample_means(output):
    """Mean of each sample: as many as the batch has."""
    return output.mean(1)


def test_spectra_keep_their_length_over_parts(tmp_path):
    model, path = _mlp(4, 3), tmp_path / "run.zarr"
    for size in (5, 5, 6):
        with propkit.attach(
            model, path, probes=[sample_means, "activation"], resume=True
        ) as recorder:
            if size == 5:
                model(torch.ones(size, 4))
            else:
                with pytest.warns(
                    PropkitWarning, match="expected 5 values of 'sample_means' at 0, found 6"
                ):
                    model(torch.ones(size, 4))
            recorder.step()
    run = propkit.open(path)
    assert run["sample_means"].sizes["step"] == 2
    assert run["activation"].sizes["step"] == 3
    assert "expected 5 values" in run.attributes["faults"]["sample_means"]


def test_a_site_that_ran_in_an_earlier_part_only_stays_described(tmp_path):
    """The group grows by another site, and its coordinates are written again."""
    model, path = nn.ModuleDict({n: nn.Linear(3, 3) for n in "abc"}), tmp_path / "run.zarr"
    found = []
    for names in ("ab", "ac"):
        with propkit.attach(model, path, probes="activation", resume=True) as recorder:
            x = torch.ones(2, 3)
            for name in names:
                x = model[name](x)
            recorder.step()
        dataset = propkit.open(path)["activation"]
        described = dataset[["depth", "type", "input_shape", "output_shape"]]
        found.append(described.reset_coords(drop=False).sel(site="b").to_dict())
        assert dataset.site.values.tolist() == ["a", "b", "c"][: len(names) + len(found) - 1]
    assert found[0]["data_vars"] == found[1]["data_vars"]
    assert dataset["mean"].isnull().values.tolist() == [[False, False, True], [False, True, False]]


def test_faults_and_flags_of_earlier_parts_stay(tmp_path):
    model, path = _mlp(4, 3), tmp_path / "run.zarr"

    @propkit.probe
    def broken(output):
        raise RuntimeError("bug")

    with propkit.attach(model, path, probes=[broken, "activation"]) as recorder:
        for x in (1.0, float("nan")):
            with warnings.catch_warnings(record=True):
                model(torch.full((2, 4), x))
                recorder.step()
    before = propkit.open(path).attributes
    assert set(before["faults"]) == {"broken"}
    assert before["not_finite"]["activation"].startswith("step 1,")
    options = {"probes": [broken, "activation"], "resume": True}
    propkit.attach(model, path, **options).detach()
    for name in ("faults", "not_finite"):
        assert propkit.open(path).attributes[name] == before[name]
    with pytest.warns(PropkitWarning, match="dropped"):
        propkit.attach(model, path, step=1, **options).detach()
    assert propkit.open(path).attributes["not_finite"] == {}


def _mlp(*sizes: int) -> nn.Module:
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*layers)


@propkit.probe(name="rows", dims={"rows": "row"}, sites="filters", units="K")
def other_units(weight):
    """The same name, another variable."""
    return weight.flatten(1).norm(dim=1)


@pytest.mark.parametrize(
    ("model", "options", "match"),
    [
        (_mlp(4, 3), {}, r"site '1' of the run is missing now"),
        (_mlp(4, 3, 2, 2), {}, r"site '2' is not in the run"),
        (_mlp(4, 5, 2), {}, r"site 0 was a Linear of 4 to 3, and is a Linear of 4 to 5"),
        (_mlp(4, 3, 2), {"exclude": "1"}, r"site '1' of the run is missing now"),
        (_mlp(4, 3, 2), {"probes": [rows]}, r"probe 'error_moment' of the run is missing now"),
        (
            _mlp(4, 3, 2),
            {"probes": ["error_moment", rows, "weight"]},
            r"probe 'weight' is not in the run",
        ),
        (
            _mlp(4, 3, 2),
            {"probes": ["error_moment", other_units]},
            r"variable rows/rows was along row, in 1, float32.*function of rows 'rows' of",
        ),
        (
            nn.Sequential(nn.Linear(4, 3), nn.Bilinear(3, 3, 2)),
            {},
            r"Linear of 3 to 2, and is a Bil",
        ),
    ],
)
def test_a_run_of_something_else_is_not_continued(tmp_path, model, options, match):
    path = tmp_path / "run.zarr"
    options = {"probes": ["error_moment", rows], **options}
    first = _mlp(4, 3, 2)
    with propkit.attach(first, path, probes=["error_moment", rows]) as recorder:
        first(torch.ones(2, 4)).sum().backward()
        recorder.step()
    before = {f: f.read_bytes() for f in path.rglob("*") if f.is_file()}
    with pytest.raises(ValueError, match=r"cannot be continued.*Attach as before") as error:
        propkit.attach(model, path, resume=True, **options)
    assert str(path) in str(error.value)
    for part in match.split(".*"):
        assert re.search(part, str(error.value)), error.value
    assert {f: f.read_bytes() for f in path.rglob("*") if f.is_file()} == before
    propkit.attach(first, path, resume=True, probes=["error_moment", rows]).detach()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"overwrite": True, "resume": True}, ValueError, "overwrite=True replaces.*one of them"),
        ({"resume": True, "store": None}, ValueError, r"attach\(model, 'run.zarr', resume=True\)"),
        ({"step": 3}, ValueError, "add resume=True"),
        ({"takeover": True}, ValueError, "add resume=True"),
        ({"resume": True, "step": -1}, ValueError, "step=-1: expected the number of steps"),
        ({"resume": True, "step": 1.5}, ValueError, "step=1.5: expected the number of steps"),
        ({"resume": True, "step": 5}, FileNotFoundError, "no run at .*run.zarr"),
    ],
)
def test_arguments_that_contradict_each_other(tmp_path, options, error, match):
    with pytest.raises(error, match=match):
        propkit.attach(mlp(), **{"store": tmp_path / "run.zarr", **options})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ({"steps": 100, "lr": 0.1}, {"steps": 200, "lr": 0.1}, ""),
        ({"recipe": {"steps": 100}}, {"recipe": {"steps": 200}}, ""),
        ({"recipe": {"betas": (0.9, 0.99)}}, {"recipe": {"betas": (0.9, 0.99)}}, ""),
        ({"steps": 200}, {"steps": 100}, "'steps'"),
        ({"recipe": {"steps": 1, "lr": 1}}, {"recipe": {"steps": 2, "lr": 2}}, "'recipe.lr'"),
        ({"warm_up": 1}, {"warm_up": 2}, "'warm_up'"),
        ({"a": {"b": 1}, "c": 1}, {"a": 1, "d": 1}, "'a', 'c', 'd'"),
    ],
)
def test_which_changes_of_the_configuration_are_noted(tmp_path, before, after, named):
    path = tmp_path / "run.zarr"
    propkit.attach(mlp(), path, probes="weight", config=before).detach()
    words = rf"resumed at step 0: the configuration differs .* in {named}$"
    with pytest.warns(PropkitWarning, match=words) if named else contextlib.nullcontext():
        propkit.attach(mlp(), path, probes="weight", config=after, resume=True).detach()
    last = propkit.open(path).attributes["segments"][-1]
    assert last.get("config") == (None if to_json(before) == to_json(after) else to_json(after))


def test_provenance_of_a_part_with_another_configuration(tmp_path):
    path = tmp_path / "run.zarr"
    first = {"probes": "weight", "config": {"lr": 0.1, "seed": 1}}
    propkit.attach(mlp(), path, **first).detach()
    with pytest.warns(PropkitWarning, match="configuration differs.*'lr'"):
        propkit.attach(
            mlp(), path, probes="weight", config={"lr": 0.2, "seed": 1}, resume=True
        ).detach()
    attributes = propkit.open(path).attributes
    assert attributes["config"] == first["config"]
    assert [part.get("config") for part in attributes["segments"]] == [None, {"lr": 0.2, "seed": 1}]
