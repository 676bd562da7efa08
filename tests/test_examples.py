"""The examples run as a user would run them."""

import os
import subprocess
import sys
from pathlib import Path

import propkit

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_first_look(tmp_path: Path) -> None:
    store = tmp_path / "run.zarr"
    command = [
        sys.executable,
        "-W",
        "error::UserWarning",
        str(EXAMPLES / "first_look.py"),
        str(store),
    ]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # its matrices are too small to share
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=alone
    )
    assert done.returncode == 0, done.stderr
    table = [line.split() for line in done.stdout.partition("at the last\n")[2].splitlines()]
    assert [int(step) for step, _ in table] == [0, 1, 10, 100, 252]
    assert all(
        0 < float(ratio) < 1e-6 for _, ratio in table
    )  # tanh at PyTorch's default weights: vanishing
    run = propkit.open(store)
    assert run.state == "complete"
    assert run["log"].sizes["step"] == 301
    assert (run["error_moment"]["step"].values[:5] == [0, 1, 2, 3, 4]).all()
