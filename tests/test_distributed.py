"""Two processes (gloo, CPU) under torchrun: the run is that of one process on the whole batch."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import propkit
from propkit.testing import mlp

SCRIPT = Path(__file__).parent / "distributed_script.py"
PROBES = ["error_moment", "gradient_norm", "activation", "weight", "filter_correlation"]
PROBES += ["singular_values", "singular_value_quantiles"]


def _torchrun(store: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    return subprocess.run(
        [*command, str(SCRIPT), str(store), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def _one_process(steps: int) -> propkit.Run:
    torch.manual_seed(0)
    model = mlp()
    x, y = batches(steps)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with propkit.attach(model, probes=PROBES) as recorder:
        for step in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(x[step]), y[step]).backward()
            optimizer.step()
    return recorder.run


def batches(steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(steps, 8, 12, generator=generator)
    return x, torch.randint(0, 3, (steps, 8), generator=generator)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_ranks_record_the_global_batch(kind: str, tmp_path: Path) -> None:
    done = _torchrun(tmp_path / "run.zarr", kind, "4")
    assert done.returncode == 0, done.stderr
    run, expected = propkit.open(tmp_path / "run.zarr"), _one_process(4)
    assert run.state == "complete"
    assert set(run.groups) == {*expected.groups, "log"}
    assert run["log"]["rank"].values.tolist() == [0, 0, 0, 0]  # one writer
    for group in expected.groups:
        ours, theirs = run[group], expected[group]
        assert ours["site"].values.tolist() == theirs["site"].values.tolist()
        assert ours["type"].values.tolist() == theirs["type"].values.tolist()
        assert ours["step"].values.tolist() == [0, 1, 2, 3]
        for name in theirs.data_vars:
            if name == "dead":  # known as an upper bound where the batch is split
                assert (ours[name].values >= theirs[name].values).all()
                continue
            np.testing.assert_allclose(
                ours[name].values,
                theirs[name].values,
                rtol=1e-5,
                atol=1e-12,
                err_msg=f"{group}/{name}",
            )


@pytest.mark.slow
def test_two_ranks_with_a_budget_measure_the_same_steps(tmp_path: Path) -> None:
    store, steps = tmp_path / "run.zarr", 500
    done = _torchrun(store, "ddp", str(steps), "budget")
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(Path(f"{store}.{rank}.json").read_text()) for rank in (0, 1))
    run = propkit.open(store)
    assert run["slow"]["step"].values.tolist() == first == second
    expected = _one_process(steps)["activation"].sel(step=first)
    for name in ("mean", "mean_square"):
        ours = run["activation"][name].values
        np.testing.assert_allclose(ours, expected[name].values, rtol=1e-5, atol=1e-7)
    kept = run.attributes["budget"]
    (trial, change, *_) = kept["history"]
    assert (trial["factor"], trial["share_found"]) == (2, None)
    assert change["factor"] > 2
    assert change["share_found"] > 0.5
    # Decided at one flush of 64 rows, adopted by all ranks at the next one, for the steps after.
    assert first[:129] == list(range(129))
    assert trial["step"] == 129
    assert np.diff(first[129:257]).tolist() == [2] * 127
    late = [step for step in first if step >= change["step"]]
    assert set(np.diff(late)) <= {change["factor"]}
    assert len(first) < 300


@pytest.mark.slow
def test_a_rank_that_dies_leaves_a_readable_store(tmp_path: Path) -> None:
    done = _torchrun(tmp_path / "run.zarr", "ddp", "300", "die")
    assert done.returncode != 0
    run = propkit.open(tmp_path / "run.zarr")
    assert run.state in ("failed", "died")
    steps = run["error_moment"]["step"].values
    assert len(steps) >= 64  # the flushes before it died
    np.testing.assert_array_equal(steps, np.arange(len(steps)))
    assert np.isfinite(run["error_moment"]["output"].values).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("beside", ["fault", "alone"])
def test_a_probe_that_fails_on_one_rank_is_off_and_training_goes_on(
    kind: str, beside: str, tmp_path: Path
) -> None:
    # Sharded weights are gathered by all ranks, and rows are: which has to go on where nothing is measured any more.
    done = _torchrun(tmp_path / "run.zarr", kind, "300", beside)
    assert done.returncode == 0, done.stderr
    run = propkit.open(tmp_path / "run.zarr")
    assert run.state == "complete"
    assert run["log"]["step"].size == 300
    for probe in ("fragile", "partial", "both"):  # before, it had the values of the whole batch
        assert run[probe]["step"].values.tolist() == [0, 2]
        assert "rank 1, step 4: ArithmeticError: on one rank" in run.attributes["faults"][probe]
    assert not run.attributes["notes"]
    if beside == "fault":
        expected = _one_process(300)
        assert run["weight"]["step"].values.tolist() == list(range(0, 300, 2))
        for group, name in (("weight", "norm"), ("weight", "update_ratio"), ("activation", "mean")):
            theirs = expected[group][name].sel(step=run[group]["step"])
            np.testing.assert_allclose(run[group][name], theirs, rtol=1e-4, atol=1e-6)


def test_data_parallel_wrappers_are_looked_through() -> None:
    model = mlp()
    wrapped = torch.nn.DataParallel(copy.deepcopy(model))
    with propkit.attach(wrapped, probes="weight", include="0|2") as recorder:
        wrapped(torch.randn(2, 12)).sum().backward()
        torch.optim.SGD(wrapped.parameters(), lr=0.1).step()
    assert recorder.run["weight"]["site"].values.tolist() == ["0", "2"]
