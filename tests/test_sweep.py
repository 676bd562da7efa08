"""Sweeps: what runs, what is skipped, what goes on. Processes are replaced but for one test."""

import csv
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import propkit
from propkit import __main__ as cli
from propkit import recipes, sweep
from propkit.data import load
from propkit.experiment import run_recipe
from propkit.recipes import Job, Sweep
from propkit.sweep import checkpoint_of, jobs_of, run_sweep

PAIR = Sweep(
    "pair", "two", "none",
    paper=(Job("plain44-l2"), Job("plain44-ortho")),
    demo=(Job("plain8-l2", {"steps": "3", "batch_size": "8"}), Job("plain8-ortho", {"steps": "3"})),
    seeds=4,
)  # fmt: skip


@pytest.fixture
def called(monkeypatch):
    """Trainings that do nothing; those of seed 1 fail."""
    calls = []

    def run(command, **_):
        calls.append(command[3:])
        failed = command[command.index("--seed") + 1] == "1"
        return SimpleNamespace(returncode=int(failed), stdout="fine\n", stderr="bad\n")

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_scale_and_seeds():
    def names(data, seeds=None):
        return [(job.recipe, seed) for job, seed in jobs_of(PAIR, data, seeds)]

    assert names("digits") == names("digits16") == [("plain8-l2", 0), ("plain8-ortho", 0)]
    assert len(names("cifar")) == 8
    assert names("cifar", 1) == [("plain44-l2", 0), ("plain44-ortho", 0)]
    assert names("digits", 2)[2:] == [("plain8-l2", 1), ("plain8-ortho", 1)]


def test_every_run_is_a_training_of_its_own(called, tmp_path):
    told = []
    results = run_sweep(
        PAIR, "digits", tmp_path / "runs", seeds=2, settings={"steps": "9"}, options=["--bf16"],
        checkpoint_every=7, report=lambda *arguments: told.append(arguments),
    )  # fmt: skip
    assert [r.store.name for r in results] == [
        "plain8-l2-seed0.zarr", "plain8-ortho-seed0.zarr", "plain8-l2-seed1.zarr", "plain8-ortho-seed1.zarr",
    ]  # fmt: skip
    assert [(r.state, r.text) for r in results] == [("complete", "fine")] * 2 + [
        ("failed", "bad")
    ] * 2
    assert " ".join(called[0]) == (
        f"train plain8-l2 -o {tmp_path}/runs/plain8-l2-seed0.zarr --seed 0 --data digits --quiet "
        "--checkpoint-every 7 --threads 1 --bf16 --set steps=9 --set batch_size=8 --overwrite"
    )
    assert [(done, count) for _, done, count in told] == [(i, 4) for i in (1, 2, 3, 4)]


def test_complete_is_skipped_and_the_rest_goes_on(called, tmp_path, monkeypatch):
    stores = [tmp_path / f"{name}-seed0.zarr" for name in ("plain8-l2", "plain8-ortho")]
    for store in stores:
        store.mkdir()
    checkpoint_of(stores[1]).write_bytes(b"")
    monkeypatch.setattr(sweep, "is_complete", lambda store: store == stores[0])
    assert [r.state for r in run_sweep(PAIR, "digits", tmp_path)] == ["skipped", "complete"]
    (command,) = called
    assert command[1] == "plain8-ortho"
    assert command[-1] == "--resume"
    checkpoint_of(stores[1]).unlink()
    run_sweep(PAIR, "digits", tmp_path)
    assert called[1][-1] == "--overwrite"


def test_several_at_a_time(monkeypatch, tmp_path):
    both = threading.Barrier(2, timeout=20)

    def run(command, **_):
        both.wait()
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    assert len(run_sweep(PAIR, "digits", tmp_path, processes=2)) == 2


def test_what_cannot_run_is_said_before_anything_does(called, tmp_path):
    with pytest.raises(ValueError, match="lr takes a number, found 'x'"):
        run_sweep(PAIR, "digits", tmp_path, settings={"lr": "x"})
    with pytest.raises(ValueError, match="processes must be at least 1"):
        run_sweep(PAIR, "digits", tmp_path, processes=0)
    assert called == []


def test_runs_of_processes_are_found_complete_the_next_time(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    tiny = Sweep("tiny", "", "", (), (Job("plain8-l2", {"steps": "3", "batch_size": "8"}),))
    monkeypatch.setattr(recipes, "find_sweep", lambda name: tiny if name == "tiny" else None)
    arguments = ["train", "tiny", "-o", str(tmp_path), "--set", "evaluate_every=2"]
    assert cli.main(arguments) == 0
    assert "1/1 complete: " in capsys.readouterr().out
    run = propkit.open(tmp_path / "plain8-l2-seed0.zarr")
    assert run.state == "complete"
    assert run["log"]["test_accuracy"].notnull().values.tolist() == [False, True, True]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "1/1 skipped: " in out
    assert "1 of 1 runs are there" in out
    with (tmp_path / "results.csv").open() as file:
        (row,) = csv.DictReader(file)
    # One evaluation after two steps and one after the third: the gaps by hand.
    train, test = run["log"]["accuracy"].values, run["log"]["test_accuracy"].values
    gaps = [100 * (train[:2].mean() - test[1]), 100 * (train[2] - test[2])]
    expected = {
        "train_error": 100 * (1 - train.mean()), "test_error": 100 * (1 - test[2]),
        "best_test_error": 100 * (1 - np.nanmax(test)), "gap_mean": np.mean(gaps), "gap_max": max(gaps),
        "runs": 1, "diverged": 0, "steps": 3,
    }  # fmt: skip
    assert {k: float(row[k]) for k in expected} == pytest.approx(expected, abs=1e-3)
    assert (row["network"], row["test_error_std"]) == ("plain8-l2", "")

    assert cli.main([*arguments[:-1], "evaluate_every=3"]) == 2
    assert "evaluate_every was 2, now 3; name another folder" in capsys.readouterr().err
    assert cli.main([*arguments, "--set", "lr=1e30", "--overwrite"]) == 0
    out = capsys.readouterr().out
    assert "1/1 diverged: " in out
    assert out.splitlines()[-1] == f"1 of 1 runs are there in {tmp_path}"
    assert cli.main([*arguments, "--set", "lr=1e30"]) == 0  # that it diverged is the result
    assert "1/1 skipped: " in capsys.readouterr().out


def test_a_run_that_was_killed_goes_on_at_its_checkpoint(tmp_path, monkeypatch):
    """Killed in its sixth step, after a checkpoint at the third: then value by value the run never killed."""
    pytest.importorskip("sklearn")
    settings = {"steps": "8", "batch_size": "8", "every": "1", "evaluate_every": "4"}
    job = Job("plain8-ortho", settings)
    store = tmp_path / "killed" / "plain8-ortho-seed0.zarr"
    store.parent.mkdir()
    code = f"""if True:
        import os
        import torch
        from propkit import recipes
        from propkit.data import load
        from propkit.experiment import _Log, run_recipe
        torch.set_num_threads(1)
        log = _Log.on_step
        def die(self, step, loss, accuracy):
            if step == 5:
                os.kill(os.getpid(), 9)
            log(self, step, loss, accuracy)
        _Log.on_step = die
        recipe = recipes.find("plain8-ortho").override({settings!r})
        run_recipe(recipe, load("digits"), {str(store)!r}, checkpoint_every=3, progress=False)
    """
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert checkpoint_of(store).exists()
    assert not sweep.is_complete(store)
    one = Sweep("one", "", "", (), (job,))
    (result,) = run_sweep(one, "digits", store.parent, checkpoint_every=3)
    assert result.state == "complete", result.text
    run = propkit.open(store)
    assert len(run.attributes["segments"]) == 2
    recipe = recipes.find("plain8-ortho").override(settings)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run_recipe(recipe, load("digits"), tmp_path / "whole.zarr", progress=False)
    torch.set_num_threads(threads)
    whole = propkit.open(tmp_path / "whole.zarr")
    for group in ("log", "error_moment", "weight"):
        for name in whole[group].data_vars:
            np.testing.assert_array_equal(run[group][name], whole[group][name], err_msg=name)


def test_incomplete_stores(tmp_path):
    assert not sweep.is_complete(tmp_path / "none.zarr")
    (tmp_path / "empty.zarr").mkdir()
    assert not sweep.is_complete(tmp_path / "empty.zarr")


def test_wrong_setting_on_the_command_line(capsys, tmp_path):
    assert cli.main(["train", "table2", "-o", str(tmp_path / "x"), "--set", "lr=x"]) == 2
    assert "propkit train: lr takes a number" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
