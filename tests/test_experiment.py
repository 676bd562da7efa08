import json

import pytest
import torch
import xarray

from propkit import experiment, recipes
from propkit.data import Augmentation, ImageSet
from propkit.experiment import run_recipe
from propkit.models import plain
from propkit.training import (
    DivergenceError,
    generator,
    initialize,
    max_norm,
    modulate,
    project,
    train,
)

RECIPE = recipes.find("plain8-ortho").override({"steps": "5", "every": "2", "batch_size": "8"})


def tiny(flip=False):
    source = torch.Generator().manual_seed(0)
    images, labels = torch.rand(40, 1, 8, 8, generator=source), torch.arange(40) % 3
    return ImageSet.from_tensors("tiny", (images, labels), (images[:12], labels[:12]), 3, flip)


class FakeRecorder:
    def __init__(self):
        self.log_calls = []
        self.exits = []

    def log(self, *, step, **scalars):
        self.log_calls.append((step, {k: float(v) for k, v in scalars.items()}))

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.exits.append(kind)


@pytest.fixture
def attached(monkeypatch):
    """Stands for `propkit.attach`: remembers what it was called with."""
    calls = []

    def attach(model, store, **arguments):
        recorder = FakeRecorder()
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        calls.append((recorder, store, arguments, weights))
        return recorder

    monkeypatch.setattr(experiment, "_attach", attach)
    return calls


def test_probes_are_attached_as_the_recipe_says(attached, tmp_path):
    run_recipe(RECIPE, tiny(), tmp_path / "run.zarr", seed=3, progress=False)
    ((recorder, store, arguments, _),) = attached
    assert store == str(tmp_path / "run.zarr")
    optimizer, config = arguments.pop("optimizer"), arguments.pop("config")
    assert arguments == {
        "probes": list(RECIPE.probes),
        "every": 2,
        "blocks": r"layer\d\.\d+",
        "label": "plain8-ortho",
        "seed": 3,
        "overwrite": False,
    }
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["weight_decay"] == 0.0
    config = json.loads(json.dumps(config))
    assert config["recipe"] == RECIPE.config() | {"milestones": [32000, 48000]}
    assert config["data"] == {
        "name": "tiny",
        "shape": [1, 8, 8],
        "train": 40,
        "test": 12,
        "flip": False,
    }
    assert (config["seed"], config["device"]) == (3, "cpu")
    assert recorder.exits == [None]


def test_curves_are_logged_for_every_step(attached):
    outcome = run_recipe(RECIPE, tiny(), progress=False)
    *calls, (last, test) = attached[0][0].log_calls
    assert (last, test["test_accuracy"]) == (4, pytest.approx(outcome.test_accuracy))
    assert test["test_loss"] == pytest.approx(outcome.test_loss)
    assert [step for step, _ in calls] == list(range(5))
    assert all(set(values) == {"loss", "accuracy"} for _, values in calls)
    assert outcome.loss == pytest.approx(sum(v["loss"] for _, v in calls) / 5, rel=1e-5)
    assert outcome.accuracy == pytest.approx(sum(v["accuracy"] for _, v in calls) / 5, rel=1e-5)


def test_every_setting_reaches_the_trainer(attached):
    """The curves are those of the trainer called by hand with the recipe's numbers."""
    recipe = recipes.find("plain8-ortho").override(
        {
            "steps": "6",
            "batch_size": "8",
            "milestones": "2,4",
            "gamma": "0.3",
            "lr": "0.03",
            "momentum": "0.6",
            "orthonormality": "0.5",
            "weight_decay": "0.3",
            "decay": "all",
            "init": "he",
            "crop": "0.25",
            "normalization": "channel",
        }
    )
    run_recipe(recipe, tiny(flip=True), seed=3, progress=False)
    found = [values["loss"] for _, values in attached[0][0].log_calls if "loss" in values]

    model = initialize(plain(8, 3, 1), "he", generator(3, "init"))
    expected = []

    class Losses:
        def on_step(self, step, loss, accuracy):
            expected.append(float(loss))

    train(
        model,
        tiny(flip=True).normalized_by("channel"),
        steps=6,
        optimizer=torch.optim.SGD(model.parameters(), 0.03, 0.6, weight_decay=0.3),
        batch_size=8,
        augmentation=Augmentation(True, 2),
        milestones=(2, 4),
        gamma=0.3,
        orthonormality=0.5,
        seed=3,
        callbacks=[Losses()],
        progress=False,
    )
    assert found == pytest.approx(expected, rel=1e-5)


def test_outcome(attached):
    outcome = run_recipe(RECIPE, tiny(), steps=3, every=1, label="mine", progress=False)
    assert attached[0][2]["every"] == 1
    assert attached[0][2]["label"] == "mine"
    assert (outcome.steps, outcome.data, outcome.store) == (3, "tiny", None)
    assert outcome.recipe.steps == 3
    assert 0 <= outcome.test_accuracy <= 1
    assert str(outcome).startswith("plain8-ortho on tiny: 3 steps in ")


def test_seed_decides_the_initial_weights_and_nothing_global(attached):
    before = torch.random.get_rng_state()
    for seed in (0, 0, 1):
        run_recipe(RECIPE, tiny(), seed=seed, progress=False)
    assert torch.equal(before, torch.random.get_rng_state())
    first, again, other = (weights for *_, weights in attached)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    expected = initialize(RECIPE.build(3, 1), "orthonormal", generator(0, "init"))
    assert torch.equal(first, torch.cat([p.detach().flatten() for p in expected.parameters()]))
    logs = [recorder.log_calls for recorder, *_ in attached]
    assert logs[0] == logs[1] != logs[2]


def test_existing_store_is_left_as_it_was(attached, tmp_path):
    store = tmp_path / "run.zarr"
    store.write_text("precious")
    with pytest.raises(FileExistsError, match=r"run.zarr exists"):
        run_recipe(RECIPE, tiny(), store, progress=False)
    assert attached == []
    assert store.read_text() == "precious"
    run_recipe(RECIPE, tiny(), store, overwrite=True, progress=False)
    assert attached[0][2]["overwrite"] is True


def test_interrupt_reaches_the_recorder(attached, monkeypatch):
    def stop(self, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeRecorder, "log", stop)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(RECIPE, tiny(), progress=False)
    assert attached[0][0].exits == [KeyboardInterrupt]


def test_divergence_reaches_the_recorder(attached):
    recipe = RECIPE.override({"lr": "1e30", "steps": "50"})
    with pytest.raises(DivergenceError):
        run_recipe(recipe, tiny(), progress=False)
    assert attached[0][0].exits == [DivergenceError]


@pytest.mark.parametrize("device", ["tpu", "cuda:99"])
def test_device_that_is_not_there(attached, device):
    with pytest.raises(ValueError, match=f"device '{device}' cannot be used"):
        run_recipe(RECIPE, tiny(), device=device)
    assert attached == []


def test_real_recording(tmp_path):
    """With `propkit.attach` itself: steps, sites and values that do not depend on the recording."""
    import propkit

    store = tmp_path / "run.zarr"
    outcome = run_recipe(RECIPE, tiny(), store, progress=False)
    run = propkit.open(store)
    assert run.state == "complete"
    assert run.label == "plain8-ortho"
    assert run.attributes["config"]["data"]["name"] == "tiny"
    assert run["log"]["step"].values.tolist() == [0, 1, 2, 3, 4]
    assert float(run["log"]["loss"].mean()) == pytest.approx(outcome.loss, rel=1e-6)
    moments = run["error_moment"]
    assert moments["step"].values.tolist() == [0, 2, 4]
    assert moments["type"].values.tolist() == ["Conv2d"] * 7 + ["Linear"]
    assert run["gradient_norm"]["site"].values.tolist() == ["layer1.0", "layer2.0", "layer3.0"]
    # Kernels that begin orthonormal: cosines of zero, but for the first layer's 16 kernels of 9 weights.
    assert abs(run["filter_correlation"]["correlation"].values[0, 1:7]).max() < 1e-6


def test_settings_that_cannot_be_recorded(tmp_path):
    for settings in ({"probes": "error_momentum"}, {"blocks": "["}, {"blocks": "nothing"}):
        with pytest.raises(experiment.RecordingError, match="cannot be recorded: "):
            run_recipe(RECIPE.override(settings), tiny(), tmp_path / "run.zarr", progress=False)
        assert not (tmp_path / "run.zarr").exists()


def test_recipe_s_components_and_schedule_reach_the_training(tmp_path):
    """Modulation, projection and max-norm by the recipe, against the same by hand."""
    recipe = RECIPE.override(
        {
            "modulation": "always", "modulation_steps": "3", "projection": "conv1", "projection_every": "2",
            "max_norm": "0.9", "warm_up": "2", "optimizer": "nesterov", "evaluate_every": "2",
            "probes": "modulation,weight",
        }
    )  # fmt: skip
    store = tmp_path / "run.zarr"
    outcome = run_recipe(recipe, tiny(), store, seed=3, every=1, progress=False)
    import propkit

    run = propkit.open(store)
    fired = run["modulation"]["fired"].sel(site="conv1").values.tolist()
    assert fired == [1, 1, 1, 0, 0]
    log = run["log"]
    assert log["test_accuracy"].notnull().values.tolist() == [False, True, False, True, True]
    assert float(log["test_accuracy"][-1]) == pytest.approx(outcome.test_accuracy)

    model = initialize(plain(8, 3, 1), "orthonormal", generator(3, "init"))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, nesterov=True)
    norms = []

    class Norms:
        def on_step(self, step, loss, accuracy):
            norms.append(float(model.conv1.weight.detach().norm()))

    with modulate(model, "always", 3), project(model, 2, "conv1"), max_norm(model, 0.9):
        train(
            model, tiny(), steps=5, optimizer=optimizer, batch_size=8, orthonormality=1e-4, seed=3,
            warm_up=2, callbacks=[Norms()], progress=False,
        )  # fmt: skip
    found = run["weight"]["norm"].sel(site="conv1").values[1:]  # before each step
    assert found == pytest.approx(norms[:4], rel=1e-6)
    assert not any(m._forward_hooks for m in model.modules())


def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path):
    recipe = RECIPE.override(
        {"steps": "9", "every": "1", "modulation": "decade", "projection": "conv1", "probes": "weight,modulation"}
    )  # fmt: skip
    whole, parts = tmp_path / "whole.zarr", tmp_path / "parts.zarr"
    expected = run_recipe(recipe, tiny(flip=True), whole, progress=False)

    class CrashError(Exception):
        pass

    original = experiment._Log.on_step

    def crash(self, step, loss, accuracy):
        if step == 7:
            raise CrashError
        original(self, step, loss, accuracy)

    experiment._Log.on_step = crash
    try:
        with pytest.raises(CrashError):
            run_recipe(recipe, tiny(flip=True), parts, checkpoint_every=3, progress=False)
    finally:
        experiment._Log.on_step = original
    import propkit

    assert propkit.open(parts).state == "failed"
    found = run_recipe(recipe, tiny(flip=True), parts, resume=True, progress=False)
    assert (found.test_loss, found.test_accuracy) == (expected.test_loss, expected.test_accuracy)
    a, b = propkit.open(whole), propkit.open(parts)
    assert b.state == "complete"
    for group in ("weight", "modulation", "log"):
        # Where the run is short, the shapes may be those of the evaluation's batch.
        shapes = ["input_shape", "output_shape"] if group != "log" else []
        xarray.testing.assert_equal(
            a[group].load().drop_vars(shapes), b[group].load().drop_vars(shapes)
        )
    with pytest.raises(ValueError, match="checkpoint of another training: seed was 0, now 1"):
        run_recipe(recipe, tiny(flip=True), parts, seed=1, resume=True, progress=False)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        run_recipe(recipe, tiny(), tmp_path / "none.zarr", resume=True, progress=False)
    checkpoint = tmp_path / "parts.zarr.checkpoint"
    assert checkpoint.exists()
    run_recipe(recipe, tiny(), parts, overwrite=True, progress=False)
    assert not checkpoint.exists()


def test_resuming_at_the_end(tmp_path):
    run_recipe(RECIPE, tiny(), tmp_path / "a.zarr", checkpoint_every=5, progress=False)
    with pytest.raises(experiment.ResumeError, match="at step 5: all 5 steps are done"):
        run_recipe(RECIPE, tiny(), tmp_path / "a.zarr", resume=True, progress=False)
    longer = run_recipe(RECIPE, tiny(), tmp_path / "a.zarr", steps=7, resume=True, progress=False)
    assert longer.steps == 7
    with pytest.raises(ValueError, match="beside the store"):
        run_recipe(RECIPE, tiny(), checkpoint_every=1)
