"""Runs: read while they are written, after a crash, and when there is nothing to read."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
import zarr

import propkit
from propkit.schema import SCHEMA_VERSION, Group, Variable
from propkit.store.memory import MemoryWriter
from propkit.store.run import Run
from propkit.store.writer import ZarrWriter

MOMENT = Group(
    "error_moment",
    (Variable("output", "1", "moment of the error", "arXiv:1703.01827"), Variable("input")),
    {
        "site": np.array(["conv1", "layer1.0.conv", "fc"]),
        "depth": np.arange(1, 4),
        "type": np.array(["Conv2d", "Conv2d", "Linear"], object),
    },
    {"threshold": float("nan"), "blocks": ["layer1.0"]},
)
LOG = Group("log", (Variable("loss", "nat"), Variable("accuracy")))


def write(writer, rows=5):
    generator = np.random.default_rng(0)
    writer.define(MOMENT)
    writer.define(LOG)
    steps = np.arange(rows) * 10
    columns = {name: generator.normal(size=(rows, 3)) for name in ("output", "input")}
    writer.append("error_moment", steps, columns)
    writer.append("log", steps[:2], {"loss": np.array([2.0, 1.0])[:rows]} if rows else {})
    writer.commit()
    return writer


@pytest.fixture(params=["zarr", "memory"])
def kind(request):
    return request.param


@pytest.fixture
def make(kind, tmp_path):
    """A writer of either kind, and the way to its run."""

    def made(**attributes):
        if kind == "memory":
            writer = MemoryWriter(attributes)
            return writer, lambda: Run.from_memory(writer)
        writer = ZarrWriter.create(tmp_path / "plain44.zarr", attributes)
        return writer, lambda: propkit.open(writer.path)

    return made


def test_both_kinds_of_runs_read_the_same(tmp_path):
    writers = ZarrWriter.create(tmp_path / "run.zarr", {}), MemoryWriter({})
    stored, kept = (write(writer) for writer in writers)
    stored, kept = propkit.open(stored.path), Run.from_memory(kept)
    assert stored.groups == kept.groups == ("error_moment", "log")
    for group in stored:
        xr.testing.assert_identical(stored[group].load(), kept[group])
        for name in stored[group].variables:
            assert stored[group][name].dtype == kept[group][name].dtype, name
    assert stored.contents == kept.contents
    assert stored["error_moment"].attrs == {"threshold": "NaN", "blocks": ["layer1.0"]}
    varying = {"created", "commit"}
    assert {k: v for k, v in stored.attributes.items() if k not in varying} == {
        k: v for k, v in kept.attributes.items() if k not in varying
    }
    assert stored.tree.identical(stored.refresh().tree)
    assert stored.tree.children.keys() == kept.tree.children.keys()
    assert stored.tree.attrs == stored.attributes


def test_a_run_is_a_mapping_of_datasets(make):
    writer, look = make(label="plain 44", seed=3)
    run = look()
    assert (len(run), list(run), run.groups) == (0, [], ())
    assert isinstance(run.tree, xr.DataTree)
    write(writer)
    assert (len(run), "log" in run) == (0, False)
    run = run.refresh()
    assert (len(run), list(run)) == (2, ["error_moment", "log"])
    assert "log" in run
    assert "singular_values" not in run
    dataset = run["error_moment"]
    assert dataset.sizes == {"step": 5, "site": 3}
    assert set(dataset.coords) == {"step", "site", "depth", "type"}
    assert dataset.output.attrs["reference"] == "arXiv:1703.01827"
    assert dataset.output.sel(site="fc", step=20).dtype == np.float64
    assert list(run["log"].data_vars) == ["loss", "accuracy"]
    np.testing.assert_array_equal(run["log"].accuracy, [np.nan, np.nan])
    assert (run.label, run.state, run.attributes["seed"]) == ("plain 44", "running", 3)


def test_no_rows_yet(make):
    writer, look = make()
    write(writer, rows=0)
    run = look()
    assert run["error_moment"].sizes == {"step": 0, "site": 3}
    assert run["log"].sizes == {"step": 0}
    assert "no rows yet" in repr(run)
    assert set(run.tree.children) == {"error_moment", "log"}


def test_strings_join_and_plot(make):
    """The strings are of NumPy's plain kind: other kinds neither outer-join nor plot."""
    writer, look = make()
    write(writer)
    dataset = look()["error_moment"]
    _, right = xr.align(dataset, dataset.isel(site=slice(2)), join="outer")
    assert set(right.site.values) == set(MOMENT.coords["site"])
    assert dataset.site.dtype.kind == dataset.type.dtype.kind == "U"
    assert dataset.isel(site=dataset.type == "Linear").site.item() == "fc"


def test_a_missing_group_names_those_there_are_and_the_way_to_get_it(make):
    writer, look = make(label="mine")
    with pytest.raises(KeyError, match="it has none yet"):
        look()["error_moment"]
    write(writer)
    with pytest.raises(KeyError) as error:
        look()["gradient_norm"]
    for part in (
        "run 'mine' has no group 'gradient_norm', it has error_moment, log",
        'propkit.attach(model, ..., probes=[..., "gradient_norm"])',
        "python -m propkit train RECIPE",
    ):
        assert part in str(error.value)
    writer, look = MemoryWriter({}), None
    with pytest.raises(KeyError, match=r"recorder\.log\(loss=loss\)"):
        Run.from_memory(writer)["log"]


def test_repr(make, kind, tmp_path):
    writer, look = make(label="a<b>&c", faults={"weight<": "it broke"})
    write(writer)
    writer.close("failed", "loss is NaN <script>")
    text = repr(look())
    first, moment, log = text.splitlines()
    place = str(tmp_path / "plain44.zarr") if kind == "zarr" else "in memory"
    assert first == (
        f"<propkit.Run 'a<b>&c', failed: loss is NaN <script>, {place}, faults in weight<>"
    )
    assert moment == "  error_moment  (step: 5, site: 3) output, input; last step 40"
    assert log == "  log           (step: 2) loss, accuracy; last step 10"
    markup = look()._repr_html_()
    assert "a&lt;b&gt;&amp;c" in markup
    assert "&lt;script&gt;" in markup
    assert not {"<script>", "<b>&c", "weight<"} & {
        markup[i : i + n] for n in (5, 7, 8) for i in range(len(markup))
    }
    for part in ("error_moment", "<td>5</td><td>3</td>", "output, input", "<td>40</td>"):
        assert part in markup


def test_label_falls_back_on_the_name(make, kind):
    _, look = make()
    assert look().label == ("plain44" if kind == "zarr" else "run")


@pytest.mark.parametrize("state", ["complete", "interrupted", "failed"])
def test_state(make, state):
    writer, look = make()
    assert look().state == "running"
    writer.close(state, "why")
    assert look().state == state
    assert look().attributes["reason"] == "why"


def test_a_run_whose_process_is_gone_has_died(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    here, gone = socket.gethostname(), process.pid
    for host, pid, state in [
        (here, gone, "died"),
        (here, os.getpid(), "running"),
        (here, 1, "running"),  # exists, whoever owns it
        ("elsewhere", gone, "running"),
    ]:
        writer = ZarrWriter.create(tmp_path / f"{host}-{pid}.zarr", {"host": host, "pid": pid})
        assert propkit.open(writer.path).state == state
        writer.close("complete")
        assert propkit.open(writer.path).state == "complete"


def test_values_are_read_when_they_are_used(tmp_path):
    writer = write(ZarrWriter.create(tmp_path / "run.zarr", {}))
    dataset = propkit.open(writer.path)["error_moment"]
    assert "dask" not in type(dataset.output.variable._data).__module__
    (writer.path / "error_moment/output/c.0.0").unlink()
    assert np.isnan(dataset.output.values).all()
    assert np.isfinite(dataset.input.values).all()


def test_a_run_stays_as_it_was_opened(make):
    """Groups read one after the other belong to one commit although the run grows in between."""
    writer, look = make()
    write(writer)
    run = look()
    before = run["error_moment"].copy(deep=True)
    for step in range(100, 400):
        one = np.full((1, 3), float(step))
        writer.append("error_moment", np.array([step]), {"output": one, "input": one})
    writer.define(Group("log", (Variable("momentum"),)))
    writer.append("log", np.array([100]), {"momentum": np.array([0.9])})
    writer.commit()
    xr.testing.assert_identical(run["error_moment"].load(), before)
    assert list(run["log"].data_vars) == ["loss", "accuracy"]
    assert run["log"].sizes["step"] == 2
    assert run.attributes["commit"]["last_step"] == {"error_moment": 40, "log": 10}
    later = run.refresh()
    assert later["error_moment"].sizes["step"] == 305
    assert list(later["log"].data_vars) == ["loss", "accuracy", "momentum"]


def test_arrays_of_a_run_in_memory_cannot_be_changed_by_accident():
    run = Run.from_memory(write(MemoryWriter({})))
    with pytest.raises(ValueError, match="Assignment destination is a view"):
        run["error_moment"].output[0, 0] = 1


# --- what cannot be opened --------------------------------------------------------------------


def test_nothing_there(tmp_path):
    ZarrWriter.create(tmp_path / "plain44.zarr", {}).close("complete")
    with pytest.raises(FileNotFoundError) as error:
        propkit.open(tmp_path / "plain4.zarr")
    for part in (str(tmp_path / "plain4.zarr"), "there are plain44.zarr", "propkit.attach"):
        assert part in str(error.value)


def test_not_a_run(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"notes.txt is a file, not the directory of a run"):
        propkit.open(file)
    with pytest.raises(FileNotFoundError, match="no run at"):
        propkit.open(file / "run.zarr")
    runs = tmp_path / "runs"
    ZarrWriter.create(runs / "a.zarr", {}).close("complete")
    with pytest.raises(
        ValueError, match=r"runs is not a propkit run \(in .*runs there are a.zarr\)"
    ):
        propkit.open(runs)
    zarr.create_group(tmp_path / "other.zarr", attributes={"a": 1})
    with pytest.raises(ValueError, match=r"other.zarr is not a propkit run"):
        propkit.open(tmp_path / "other.zarr")
    zarr.create_array(tmp_path / "array.zarr", shape=(2,), dtype="f8")
    with pytest.raises(ValueError, match=r"array.zarr is not a propkit run"):
        propkit.open(tmp_path / "array.zarr")
    broken = tmp_path / "broken.zarr"
    broken.mkdir()
    for text in ("", "{", "[]", "null"):
        (broken / "zarr.json").write_text(text)
        with pytest.raises(ValueError, match=r"broken.zarr is not a propkit run"):
            propkit.open(broken)
    with pytest.raises(ValueError, match=r"obstore or fsspec knows.*nowhere://bucket/run\.zarr"):
        propkit.open("nowhere://bucket/run.zarr")
    with pytest.raises(TypeError, match=r"expected a path, a URL such as .*, found list"):
        propkit.open([])


def test_a_run_of_a_newer_propkit(tmp_path):
    attributes = {"schema_version": SCHEMA_VERSION + 1, "propkit_version": "9.1"}
    path = ZarrWriter.create(tmp_path / "run.zarr", attributes).path
    with pytest.raises(ValueError, match=r"run.zarr.*propkit 9.1.*layout 2.*up to 1.*pip install"):
        propkit.open(path)


def test_a_run_that_lost_its_consolidated_metadata(tmp_path):
    writer = write(ZarrWriter.create(tmp_path / "run.zarr", {}))
    writer.close("complete")
    root = json.loads((writer.path / "zarr.json").read_text())
    del root["consolidated_metadata"]
    (writer.path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(ValueError, match=r"python -m propkit repair .*run.zarr"):
        propkit.open(writer.path)


def test_what_others_put_into_a_run_is_left_out(tmp_path):
    writer = write(ZarrWriter.create(tmp_path / "run.zarr", {}))
    writer.close("complete")
    root = zarr.open_group(writer.path, use_consolidated=False)
    root.create_group("notes/deep").create_array("a", shape=(), dtype="f8")
    root["log"].create_array("spectrum", shape=(2,), dtype="f8", dimension_names=["value"])
    with pytest.warns(match="Consolidated metadata"):
        zarr.consolidate_metadata(writer.path)
    run = propkit.open(writer.path)
    assert run.groups == ("error_moment", "log")
    assert set(run["log"].data_vars) == {"loss", "accuracy"}


def test_paths(tmp_path, monkeypatch):
    path = ZarrWriter.create(tmp_path / "run.zarr", {}).path
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for spelling in (path, str(path), "run.zarr", "run.zarr/", "./run.zarr", "~/run.zarr"):
        assert propkit.open(spelling).path == path


# --- readers while rows are written, and after a kill -----------------------------------------

WRITER = """
import os, random, sys, time
import numpy as np
from pathlib import Path
from propkit.store import arrays, writer
from propkit.schema import Group, Variable

def value(step, group, variable, sites):
    return step[:, None] * 1000.0 + np.arange(sites) * 10 + group * 3 + variable

def spectra(sites):
    # ragged and fixed axes; sites come one after the other
    size = np.arange(sites) % 4
    coords = {"site": np.array([f"layer{i}" for i in range(sites)]), "row_size": size}
    variables = (
        Variable("value", dim="sv", dtype="float32"), Variable("q", dim="quantile"), Variable("n")
    )
    axes = {"sv": None, "quantile": np.array([0.0, 1.0])}
    return Group("spectra", variables, coords, {}, axes)

def record(path, acknowledge, seed, stop=1e9):
    rng, start = random.Random(seed), time.monotonic()
    arrays.LONGEST_CHUNK = rng.choice([16, 64, 4096])
    run = writer.ZarrWriter.create(path, {})
    for group in range(2):
        sites = {"site": np.array([f"layer{i}" for i in range(7)])}
        run.define(Group(f"g{group}", (Variable("v0"), Variable("v1")), sites))
    run.define(Group("log", (Variable("loss"),)))
    sites = 3
    run.define(spectra(sites))
    step = 0
    while time.monotonic() - start < stop:
        rows = np.arange(step, step + rng.randint(1, 40))
        for group in range(2):
            columns = {f"v{v}": value(rows, group, v, 7) for v in range(2)}
            run.append(f"g{group}", rows, columns)
        run.append("log", rows, {"loss": rows + 0.5})
        width = spectra(sites).sizes["sv"]
        run.append("spectra", rows, {
            "value": rows[:, None] + np.arange(width) / 64,
            "q": value(rows, 0, 0, sites)[..., None] + np.array([0.0, 1.0]),
            "n": value(rows, 0, 0, sites),
        })
        if rng.random() < 0.05 and sites < 12:
            sites += rng.randint(1, 3)
            run.define(spectra(sites))
        if rng.random() < 0.05:
            run.define(Group("log", (Variable(f"curve{step}"),)))
        run.commit()
        step = int(rows[-1]) + 1
        acknowledge(step)
    run.close("complete")
"""

KILLER = (
    WRITER
    + """
import signal
import zarr
folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
for seed in range(rounds):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        record(folder / f"{seed}.zarr", lambda n: os.write(write, b"%d\\n" % n), seed)
    os.close(write)
    delay, first = random.Random(seed).random() * 0.3, b""
    if seed % 5:  # most are killed among commits, some while the store is created
        first = os.read(read, 1)
        delay /= 3
    else:
        delay /= 5
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        acknowledged = (first.decode() + pipe.read()).split("\\n")[:-1]
    print(seed, acknowledged[-1] if acknowledged else 0, flush=True)
"""
)


def check_whole(tree, least: int) -> int:
    """Every group has the same rows, and every value belongs where it is; returns the rows."""
    if not tree.children:
        assert least == 0
        return 0
    lengths = {group.sizes["step"] for group in tree.children.values()}
    assert len(lengths) == 1
    rows = lengths.pop()
    assert rows >= least
    for g in range(2):
        for v in range(2):
            values = tree[f"g{g}/v{v}"].values
            expected = np.arange(rows)[:, None] * 1000.0 + np.arange(7) * 10 + g * 3 + v
            np.testing.assert_array_equal(values, expected)
        np.testing.assert_array_equal(tree[f"g{g}/step"], np.arange(rows))
    np.testing.assert_array_equal(tree["log/loss"], np.arange(rows) + 0.5)
    for name in set(tree["log"].data_vars) - {"loss"}:
        assert np.isnan(tree["log"][name]).all()
    group = tree["spectra"]
    size = np.arange(group.sizes["site"]) % 4
    np.testing.assert_array_equal(group["row_size"], size)
    np.testing.assert_array_equal(group["site_index"], np.repeat(np.arange(len(size)), size))
    assert group.site.values.tolist() == [f"layer{i}" for i in range(len(size))]
    step = np.arange(rows)[:, None]
    for name, expected in {
        "value": (step + np.arange(size.sum()) / 64).astype(np.float32),
        "n": step * 1000.0 + np.arange(len(size)) * 10,
        "q": (step * 1000.0 + np.arange(len(size)) * 10)[..., None] + np.array([0.0, 1.0]),
    }.items():
        values = group[name].values
        begun = np.isfinite(values)  # sites that came later have NaN before
        assert (np.diff(begun.astype(int), axis=0) >= 0).all()
        assert begun[:, :3].all()
        np.testing.assert_array_equal(values[begun], expected[begun])
    return rows


def test_killed_at_random_moments(tmp_path):
    """kill -9: the store opens, no row is torn, every acknowledged row is there."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLER, str(tmp_path), "15"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    killed = [tuple(map(int, line.split())) for line in result.stdout.splitlines()]
    assert len(killed) == 15
    total = 0
    for seed, acknowledged in killed:
        path = tmp_path / f"{seed}.zarr"
        if not path.exists():
            assert acknowledged == 0
            continue
        run = propkit.open(path)
        assert run.state == "died"
        rows = check_whole(xr.open_datatree(path, engine="zarr", chunks=None), acknowledged)
        assert check_whole(run.tree, acknowledged) == rows
        assert rows <= acknowledged + 40  # the commit that was under way
        total += rows
        ZarrWriter.create(path, {}, overwrite=True).close("complete")
    assert total > 100


def test_a_reader_sees_whole_rows_at_any_moment(tmp_path):
    path = tmp_path / "run.zarr"
    code = f"{WRITER}\nrecord(Path(sys.argv[1]), lambda n: None, 1, stop=3)"
    writer = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, str(path)])
    try:
        rows, run = [0], None
        while writer.poll() is None:
            if path.exists():
                tree = xr.open_datatree(path, engine="zarr", chunks=None)
                rows.append(check_whole(tree, rows[-1]))
                run = run.refresh() if run else propkit.open(path)
                rows.append(check_whole(run.tree, rows[-1]))
    finally:
        writer.kill()
        writer.wait()
    assert propkit.open(path).state == "complete"
    assert len(set(rows)) > 2  # as many as a busy machine lets it see
    check_whole(propkit.open(path).tree, rows[-1])
