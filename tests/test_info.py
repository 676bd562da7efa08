"""`python -m propkit info`: every fact of a run, in text and as JSON."""

import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import propkit
from propkit import __main__ as cli
from propkit.info import print_info, summary
from propkit.schema import Group, Variable
from propkit.store.memory import MemoryWriter
from propkit.store.run import Run
from propkit.store.writer import ZarrWriter


def group(name, sites, *variables):
    coords = {
        "site": np.array(sites),
        "depth": np.arange(1, len(sites) + 1),
        "type": np.array(["Conv2d"] * len(sites)),
        "input_shape": np.array(["(8, 3)"] * len(sites)),
        "output_shape": np.array([f"(8, {i})" for i in range(len(sites))]),
    }
    return Group(name, variables or (Variable("output", "loss^2", "moment of the error"),), coords)


@pytest.fixture
def make(tmp_path):
    def made(name="a", sites=("conv1", "conv2"), close="complete", **attributes):
        attributes = {"label": "plain44", "seed": 3, "config": {"lr": 0.1}, **attributes}
        writer = ZarrWriter.create(tmp_path / f"{name}.zarr", attributes)
        if sites:
            writer.define(group("error_moment", sites))
            writer.append("error_moment", np.array([0, 10]), {"output": np.ones((2, len(sites)))})
            writer.define(group("weight", sites[:1], Variable("norm", dtype="float32")))
            writer.define(Group("log", (Variable("loss", "nat"),)))
            writer.commit()
        if close:
            writer.close(close, attributes.get("why", ""))
        return writer.path

    return made


def info(*arguments):
    return cli.main(["info", *map(str, arguments)])


def lines_of(*paths, **options):
    out = io.StringIO()
    assert print_info(paths, out=out, **options) == []
    return [" ".join(line.split()) for line in out.getvalue().splitlines()]


def test_every_fact_is_there(make):
    facts = {
        "command": "train.py --lr 0.1",
        "torch_version": "2.13.0",
        "device": "cuda",
        "model": "ResNet",
        "model_summary": "ResNet: 42 parameters",
        "sampling": {"error_moment": 1, "weight": 50, "log": "log_spaced(10)"},
        "notes": ["no value from fc"],
        "faults": {"weight": "step 3: ValueError: broke"},
        "not_finite": {"error_moment": "step 7, conv1: output is inf"},
        "git_commit": "abc",
        "something_new": [1, 2],
        "config": {"lr": 0.1, "recipe": {"depth": 44}},
    }
    path = make(**facts)
    lines = lines_of(path)
    for line in (
        "plain44 complete",
        f"path {path}",
        "last step 10",
        "command train.py --lr 0.1",
        "git commit abc",
        "model summary ResNet: 42 parameters",
        "seed 3",
        "device cuda",
        "schema version 1",
        f"propkit version {propkit.__version__}",
        "torch version 2.13.0",
        "something new [1, 2]",
        "config.lr 0.1",
        'config.recipe {"depth": 44}',
        "3 groups",
        "error_moment (step: 2, site: 2) last step 10; every step",
        "output (step, site) float64 [loss^2] moment of the error",
        "weight (step: 0, site: 1) no rows yet; every 50 steps",
        "norm (step, site) float32 [1] norm",
        "log (step: 0) no rows yet; steps: log_spaced(10)",
        "loss (step) float64 [nat] loss",
        "2 sites",
        "site depth type input output recorded in",
        "conv1 1 Conv2d (8, 3) (8, 0) error_moment, weight",
        "conv2 2 Conv2d (8, 3) (8, 1) error_moment",
        "faults",
        "weight step 3: ValueError: broke",
        "not finite",
        "error_moment step 7, conv1: output is inf",
        "notes",
        "no value from fc",
    ):
        assert line in lines, line
    assert "model ResNet" not in lines  # its summary says it


def test_size_on_disk_is_what_the_files_take(make):
    path = make()
    files = [p for p in path.rglob("*") if p.is_file()]
    expected = sum(p.stat().st_blocks * 512 for p in files)
    found = summary(propkit.open(path))
    assert (found["bytes_on_disk"], found["files"]) == (expected, len(files))
    length = sum(p.stat().st_size for p in files)
    if expected < length:  # the tail of a chunk is a hole
        assert found["bytes_on_disk"] < 200_000 < length


def test_long_tables_of_sites_are_shortened(make):
    path = make(sites=[f"layer{i}" for i in range(30)])
    short, whole = lines_of(path), lines_of(path, all_sites=True)
    dots = "... 18 more: --sites shows all"
    assert dots in short
    shown = [line.split()[0] for line in short if line.startswith("layer")]
    assert shown == [f"layer{i}" for i in (*range(8), *range(26, 30))]
    assert dots not in whole
    assert [w.split()[0] for w in whole if w.startswith("layer")] == [
        f"layer{i}" for i in range(30)
    ]
    assert "30 sites" in short


@pytest.mark.parametrize("state", ["failed", "interrupted", None])
def test_state(make, state):
    first = lines_of(make(close=state, why="loss is NaN"))[0]
    assert first == (f"plain44 {state}: loss is NaN" if state else "plain44 running")


def test_nothing_recorded_yet(make):
    assert "no groups yet" in lines_of(make(sites=(), close=None))


def test_names_cannot_steer_the_terminal(make):
    path = make(label="[red]x\x1b[2J", notes=["[/b] \r\n over"])
    lines = lines_of(path)
    assert lines[0] == r"[red]x\x1b[2J complete"
    assert r"[/b] \r\n over" in lines


def test_json(make, capsys):
    a, b = make("a"), make("b", close=None, label="other")
    assert info("--json", a, b) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["state"], second["state"], second["label"]) == ("complete", "running", "other")
    assert first["groups"]["error_moment"] == {
        "sizes": {"step": 2, "site": 2},
        "last_step": 10,
        "variables": {
            "output": {
                "dims": ["step", "site"],
                "dtype": "float64",
                "units": "loss^2",
                "long_name": "moment of the error",
                "reference": "",
            }
        },
    }
    assert first["sites"][0] == {
        "site": "conv1",
        "depth": 1,
        "type": "Conv2d",
        "input_shape": "(8, 3)",
        "output_shape": "(8, 0)",
        "groups": ["error_moment", "weight"],
    }
    assert first["attributes"] == propkit.open(a).attributes


def test_summary_of_a_run_in_memory():
    writer = MemoryWriter({})
    writer.define(group("error_moment", ["conv1"]))
    writer.commit()
    found = summary(Run.from_memory(writer))
    assert (found["path"], found["bytes_on_disk"], found["files"]) == (None, None, None)
    json.dumps(found)


def test_several_runs_and_paths_that_are_none(make, tmp_path, capsys):
    a, b = make("a"), make("b", label="other")
    (tmp_path / "notes.txt").write_text("")
    assert info(a, tmp_path / "gone.zarr", tmp_path / "notes.txt", b) == 2
    out, err = capsys.readouterr()
    assert out.count("\nplain44") + out.startswith("plain44") == 1
    assert "\n\nother" in out
    first, second = err.splitlines()
    assert first.startswith(
        f"propkit info: no run at {tmp_path / 'gone.zarr'} (in {tmp_path} there are"
    )
    assert "notes.txt is a file, not the directory of a run" in second
    assert info(a, b) == 0
    with pytest.raises(SystemExit) as caught:
        info()
    assert caught.value.code == 2


def test_json_is_valid_though_a_path_is_missing(tmp_path, capsys):
    assert info("--json", tmp_path / "gone.zarr") == 2
    assert json.loads(capsys.readouterr().out) == []


def test_as_a_module_in_a_narrow_terminal(make):
    path = make(sites=[f"layer{i}.0.conv" for i in range(4)])
    environment = {**os.environ, "COLUMNS": "60", "FORCE_COLOR": "1", "TERM": "xterm"}
    command = [sys.executable, "-m", "propkit", "info", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == ""
    assert "\x1b[1mplain44\x1b[0m" in done.stdout
    plain = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "TERM": "dumb"}
    )
    assert "\x1b" not in plain.stdout


def test_torch_is_not_needed(make):
    code = (
        "import sys\nfrom propkit.__main__ import main\n"
        f"assert main(['info', {str(make())!r}]) == 0\n"
        "sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_sites_are_in_the_order_of_execution(tmp_path):
    order = ["conv1", "bn1", "relu1", "conv2", "relu2"]
    writer = ZarrWriter.create(tmp_path / "a.zarr", {"sites": order})
    depths = {"conv1": 1, "bn1": 1, "relu1": 1, "conv2": 2, "relu2": 2, "more": 1}
    for name, sites in {"a": ["conv1", "relu1", "conv2", "relu2"], "b": ["bn1", "more"]}.items():
        held = group(name, sites)
        held.coords["depth"] = np.array([depths[s] for s in sites])
        writer.define(held)
    writer.commit()
    found = [s["site"] for s in summary(propkit.open(tmp_path / "a.zarr"))["sites"]]
    assert [site for site in found if site != "more"] == order
    assert found.index("more") < found.index("conv2")  # which the run does not name: by depth


@pytest.mark.parametrize("gone", ["error_moment", "error_moment/site"])
def test_a_group_whose_arrays_are_gone_is_said_to_be_damaged(make, capsys, gone):
    path = make()
    shutil.rmtree(path / gone)
    assert info("--json", path) == 2
    out, err = capsys.readouterr()
    (found,) = json.loads(out)
    assert list(found["damaged"]) == ["error_moment"]
    # of the other group, and none without a name
    assert [s["site"] for s in found["sites"]] == ["conv1"]
    (line,) = err.splitlines()
    assert line.startswith(f"propkit info: {path} is damaged: ")
    assert "error_moment/site" in line or "more are missing" in line
    assert info(path) == 2
    assert "last step 10  damaged" in capsys.readouterr().out
