import signal
import subprocess
import sys
import time

import pytest
import torch
import xarray as xr

import propkit
from propkit import __main__ as cli
from propkit import data as data_package
from propkit.data import ImageSet
from propkit.training import DivergenceError, Execution


def tiny():
    source = torch.Generator().manual_seed(0)
    images, labels = torch.rand(40, 1, 8, 8, generator=source), torch.arange(40) % 3
    return ImageSet.from_tensors("tiny", (images, labels), (images[:12], labels[:12]), 3)


@pytest.fixture
def loaded(monkeypatch):
    """Tiny data in place of any named; remembers the names."""
    names = []

    def load(name, size=None):
        names.append(name)
        return tiny()

    monkeypatch.setattr(data_package, "load", load)
    return names


def train(*arguments):
    return cli.main(["train", *map(str, arguments)])


SHORT = ("--steps", 3, "--set", "batch_size=8", "--quiet")


def test_a_run_and_the_commands_that_draw_it(loaded, tmp_path, capsys):
    store = tmp_path / "ortho.zarr"
    assert train("plain8-ortho", "--data", "digits8", "-o", store, "--every", 1, *SHORT) == 0
    assert loaded == ["digits8"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("plain8-ortho on tiny: 3 steps in ")
    assert lines[1] == f"Run: {store}"
    assert [line.split() for line in lines[3:]] == [
        ["python", "-m", "propkit.figures", name, str(store)] for name in ("fig2", "fig3", "fig4")
    ]
    import propkit

    run = propkit.open(store)
    assert run.state == "complete"
    assert run["error_moment"]["step"].values.tolist() == [0, 1, 2]
    assert run.attributes["config"]["recipe"]["batch_size"] == 8


def test_arguments_reach_the_run(loaded, tmp_path, monkeypatch):
    from propkit import experiment

    calls = []

    def run_recipe(recipe, data, store, **arguments):
        calls.append((recipe, data.name, store, arguments))

    monkeypatch.setattr(experiment, "run_recipe", run_recipe)
    monkeypatch.chdir(tmp_path)
    assert train("plain20-l2", "--seed", 7, "--label", "L2", "--set", "lr=0.05", *SHORT) == 0
    ((recipe, name, store, arguments),) = calls
    assert (recipe.name, recipe.lr, recipe.batch_size) == ("plain20-l2", 0.05, 8)
    assert (name, store) == ("tiny", "plain20-l2.zarr")
    assert loaded == ["digits"]
    assert arguments == {
        "steps": 3,
        "seed": 7,
        "device": "cpu",
        "every": None,
        "label": "L2",
        "overwrite": False,
        "progress": False,
        "execution": Execution(),
        "checkpoint_every": None,
        "resume": False,
    }
    more = [
        "--bf16",
        "--channels-last",
        "--compile",
        "--deterministic",
        "--checkpoint-every",
        "7",
        "--resume",
    ]
    assert train("plain20-l2", *more, *SHORT) == 0
    assert calls[1][3] == arguments | {
        "seed": 0,
        "label": None,
        "execution": Execution(True, True, True, True),
        "checkpoint_every": 7,
        "resume": True,
    }


def test_threads(loaded, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assert train("plain8-l2", "-o", tmp_path / "a.zarr", *SHORT) == 0
    assert asked == []
    assert train("plain8-l2", "-o", tmp_path / "b.zarr", "--threads", 1, *SHORT) == 0
    assert asked == [1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plain44-orto"], "no recipe 'plain44-orto'; did you mean plain44-ortho"),
        ([], "which recipe? --list shows them"),
        (["plain20-l2", "--set", "speed=1"], "no setting speed; there are init"),
        (["plain20-l2", "--set", "lr"], "--set takes KEY=VALUE, found 'lr'"),
        (["plain20-l2", "--set", "lr=x"], "lr takes a number, found 'x'"),
        (["plain20-l2", "--data", "nowhere"], "'nowhere': no such folder"),
        (["plain20-l2", "--data", "digits7"], "size must be 8, 16 or 32, found 7"),
        (["plain20-l2", "--device", "tpu"], "device 'tpu' cannot be used"),
        (["plain20-l2", "--data", "digits8", "--set", "blocks=["], "cannot be recorded"),
        (["plain20-l2", "--data", "digits8", "--set", "probes=x"], "cannot be recorded"),
    ],
)
def test_wrong_command_lines_are_answered_in_one_line(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert train(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("propkit train: ")
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "plain20-l2", "--steps", "0"], "--steps: an integer of at least 1 is needed"),
        (["train", "plain20-l2", "--every", "x"], "--every: an integer of at least 1 is needed"),
        (["train", "plain20-l2", "--seed", "-1"], "--seed"),
        (["train", "plain20-l2", "--bogus"], "unrecognized arguments: --bogus"),
        (["trian"], "invalid choice: 'trian'"),
    ],
)
def test_what_argparse_refuses_is_one_line_too(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err


def test_existing_store_is_left_as_it_was(loaded, tmp_path, capsys):
    store = tmp_path / "run.zarr"
    store.mkdir()
    (store / "zarr.json").write_text("precious")
    assert train("plain8-l2", "-o", store, *SHORT) == 2
    assert f"{store} exists; name another with -o or replace it with --overwrite" in (
        capsys.readouterr().err
    )
    assert loaded == []  # refused before anything was loaded
    assert [p.name for p in store.iterdir()] == ["zarr.json"]
    assert (store / "zarr.json").read_text() == "precious"


def test_overwrite(loaded, tmp_path):
    store = tmp_path / "run.zarr"
    for seed in (1, 2):
        assert train("plain8-l2", "-o", store, "--overwrite", "--seed", seed, *SHORT) == 0
    import propkit

    assert propkit.open(store).attributes["seed"] == 2


def test_interrupt_keeps_a_readable_run(loaded, tmp_path, monkeypatch, capsys):
    from propkit.recording.recorder import Recorder

    log = Recorder.log

    def interrupted(self, *, step=None, **scalars):
        log(self, step=step, **scalars)
        if step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Recorder, "log", interrupted)
    store = tmp_path / "run.zarr"
    assert train("plain8-l2", "-o", store, "--every", 1, *SHORT, "--steps", 50) == 130
    err = capsys.readouterr().err
    assert f"Interrupted. The run up to there is in {store}." in err
    assert f"python -m propkit.figures fig3 {store}" in err
    import propkit

    run = propkit.open(store)
    assert run.state == "interrupted"
    assert run["log"]["step"].values.tolist() == [0, 1, 2, 3, 4]
    assert run["error_moment"]["step"].values.tolist() == [0, 1, 2, 3, 4]


def test_interrupt_before_anything_was_recorded(tmp_path, monkeypatch, capsys):
    def load(name, size=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(data_package, "load", load)
    assert train("plain8-l2", "-o", tmp_path / "run.zarr") == 130
    assert "Interrupted before anything was recorded." in capsys.readouterr().err


def test_divergence_is_an_answer_not_a_traceback(loaded, tmp_path, capsys):
    store = tmp_path / "run.zarr"
    status = train("plain8-l2", "-o", store, "--set", "lr=1e30", *SHORT, "--steps", 50)
    assert status == 1
    err = capsys.readouterr().err
    assert "training diverged: loss" in err
    assert f"The run up to there is in {store}." in err
    import propkit

    assert propkit.open(store).state == "failed"


def test_divergence_error_is_what_the_command_line_catches():
    assert issubclass(DivergenceError, ArithmeticError)


def test_list(capsys):
    assert train("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("plain20-l2 ")
    assert "arXiv:1703.01827, Figs. 2-4" in lines[0]
    assert lines[-1].startswith("Also: plain<6n+2>-{l2,ortho}, table2-<6n+2>-{sgd,")


def test_help_names_the_commands(capsys):
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert "train     train a network by a recipe of the papers" in out
    assert "info      show what runs contain" in out


def test_version(capsys):
    import propkit

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{propkit.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    ["--help", "train --help", "train --list", "info --help", "repair --help", "--version"],
)
def test_help_loads_nothing_heavy(arguments):
    code = (
        "import sys\nfrom propkit.__main__ import main\n"
        f"try: main({arguments.split()})\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'xarray', 'zarr', 'matplotlib', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert time.perf_counter() - start < 5


def test_as_a_module():
    result = subprocess.run(
        [sys.executable, "-m", "propkit", "train", "nothing"], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stderr.startswith("propkit train: no recipe 'nothing'")


def test_ctrl_c_of_a_process(tmp_path):
    """A real signal at a moment of its own choosing, in the middle of a step."""
    pytest.importorskip("sklearn")
    import propkit

    store = tmp_path / "run.zarr"
    # Whatever started the tests may ignore the signal, and children inherit that.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from propkit.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["train", "plain8-l2", "--steps", "1000000", "--every", "1", "-o", str(store)]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert _wait_for(lambda: store.exists() and "error_moment" in propkit.open(store))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.strip().splitlines()[0] == f"Interrupted. The run up to there is in {store}."
    assert "Traceback" not in err
    run = propkit.open(store)
    assert run.state == "interrupted"
    steps = run["error_moment"]["step"].values
    assert len(steps) > 2
    assert steps.tolist() == list(range(len(steps)))


def _wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_repair_restores_a_damaged_run(tmp_path, capsys):
    path = tmp_path / "run.zarr"
    model = torch.nn.Linear(2, 2)
    with propkit.attach(model, path, probes="weight") as recorder:
        for _ in range(3):
            model(torch.ones(1, 2))
            recorder.step()
    before = propkit.open(path)["weight"].load()
    (path / "zarr.json").write_text("{")
    assert cli.main(["repair", str(path)]) == 0
    assert "recovered weight (3 rows)" in capsys.readouterr().out
    xr.testing.assert_equal(propkit.open(path)["weight"].load(), before)
    assert cli.main(["repair", str(tmp_path / "none.zarr")]) == 2
    assert "none.zarr" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["file.txt", "run.zarr.zip"])
def test_repair_of_a_file_says_that_it_is_one(tmp_path, capsys, name):
    (tmp_path / name).write_text("no run")
    assert cli.main(["repair", str(tmp_path / name)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / name}: expected the directory of a run, found a file" in line


@pytest.mark.parametrize("option", ["--seeds", "--jobs"])
def test_options_of_sweeps_are_refused_for_one_run(loaded, tmp_path, capsys, option):
    assert train("plain8-l2", option, 3, "-o", tmp_path / "a.zarr", *SHORT) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{option} is for sweeps (fig2, " in line
    assert "plain8-l2 is one run" in line
    assert not loaded


def test_a_description_keeps_its_capitals(capsys):
    with pytest.raises(SystemExit):
        cli.main(["report", "--help"])
    assert "Write one HTML page about a run, or several." in capsys.readouterr().out
