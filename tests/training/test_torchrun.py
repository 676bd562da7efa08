"""``torchrun -m propkit train``: one run and one checkpoint, what a killed process leaves, and going on from there."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import propkit
from propkit import recipes
from propkit.data import load
from propkit.experiment import run_recipe
from propkit.sweep import checkpoint_of
from propkit.training.checkpoint import read

pytest.importorskip("sklearn")
pytestmark = pytest.mark.slow

# Without batch norm: the network does not see how the batch is shared.
RECIPE = "procrustes-grid-4x8-projected"
SETTINGS = {"batch_size": "16", "crop": "0.125", "evaluate_every": "3", "probes": "gradient_norm"}
DYING = Path(__file__).with_name("dying_script.py")


def torchrun(program, store, *arguments):
    pairs = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"),
            *(*program, "train", RECIPE, "--data", "digits", "-o", str(store), "--threads", "1"),
            *("--every", "1", "--steps", "6", "--checkpoint-every", "3", *pairs, *arguments),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_killed_and_resumed_it_is_the_run_of_one_process(tmp_path):
    store = tmp_path / "two.zarr"
    done = torchrun([str(DYING)], store)
    assert done.returncode != 0
    left = propkit.open(store)
    assert left.state in ("failed", "died", "interrupted")
    steps = left["gradient_norm"]["step"].values.tolist()
    assert steps == list(range(len(steps)))
    assert len(steps) >= 3  # the rows before the checkpoint
    assert np.isfinite(left["gradient_norm"]["output"].values).all()

    done = torchrun(["-m", "propkit"], store, "--resume")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Run: ") == 1  # one of them speaks
    assert sorted(p.name for p in tmp_path.iterdir()) == ["two.zarr", "two.zarr.checkpoint"]

    alone = tmp_path / "alone" / "one.zarr"
    alone.parent.mkdir()
    outcome = run_recipe(
        recipes.find(RECIPE).override(SETTINGS), load("digits"), alone, steps=6, every=1,
        checkpoint_every=3, progress=False,
    )  # fmt: skip
    weights, expected = (read(checkpoint_of(s))["model"] for s in (store, alone))
    for name, value in expected.items():
        np.testing.assert_allclose(weights[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    run, whole = propkit.open(store), propkit.open(alone)
    assert run.state == "complete"
    assert run.attributes["config"]["processes"] == 2
    for group in ("log", "gradient_norm"):
        assert run[group]["step"].values.tolist() == list(range(6))
        for name in whole[group].data_vars:
            np.testing.assert_allclose(
                run[group][name], whole[group][name], rtol=1e-4, err_msg=name
            )
    assert float(run["log"]["test_accuracy"][-1]) == pytest.approx(outcome.test_accuracy)
