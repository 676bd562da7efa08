# ruff: noqa: F811 - fixtures are imported
"""Studies and summaries of runs at URLs."""

import json
import sys

import fsspec
import numpy as np
import pytest
import xarray as xr

import propkit
from propkit.__main__ import main
from propkit.info import print_info, summary
from propkit.schema import Group, Variable
from propkit.store.object_writer import ObjectWriter
from propkit.store.search import matches
from propkit.store.writer import ZarrWriter
from tests.s3_server import s3, s3_server  # noqa: F401


@pytest.fixture(params=["memory", "s3"])
def base(request):
    """Where runs are put: a URL."""
    if request.param == "s3":
        request.getfixturevalue("s3")
    yield {"memory": "memory://", "s3": "s3://bucket/"}[request.param]
    fsspec.filesystem("memory").store.clear()


def make(where, seed, steps=5):
    """A run of one curve, in a directory or at a URL."""
    kind = ObjectWriter if "://" in str(where) else ZarrWriter
    writer = kind.create(where, {"seed": seed, "config": {"lr": seed / 10}})
    writer.define(Group("log", (Variable("loss"),)))
    writer.append("log", np.arange(steps), {"loss": np.arange(steps) + 100.0 * seed})
    writer.close("complete")
    return str(where)


def put(url, data=b"{}"):
    """Something that is no run."""
    import obstore

    if url.startswith("memory"):
        fsspec.filesystem("memory").pipe(url.removeprefix("memory:/"), data)
    else:
        bucket, _, key = url.removeprefix("s3://").partition("/")
        obstore.put(obstore.store.from_url(f"s3://{bucket}"), key, data)


def losses(study):
    return {label: study["log"].loss.sel(run=label).values.tolist() for label in study.runs}


def test_a_study_of_urls_is_one_of_paths(base, tmp_path):
    for seed in (2, 10, 1):
        make(f"{base}runs/seed{seed}.zarr", seed)
        make(tmp_path / f"runs/seed{seed}.zarr", seed)
    put(f"{base}runs/notes.txt", b"text")
    put(f"{base}runs/other/zarr.json")
    here = propkit.open_study(tmp_path / "runs", by="lr")
    for source in (
        f"{base}runs/*.zarr",
        f"{base}runs/",
        f"{base}runs",
        f"{base}runs/s*",
        f"{base}r*/seed*.zarr",
    ):
        there = propkit.open_study(source, by="lr")
        assert list(there.runs) == ["seed1", "seed2", "seed10"]
        xr.testing.assert_identical(
            there["log"].drop_vars("path").load(), here["log"].drop_vars("path").load()
        )
        assert there.coordinates.path.values.tolist() == [
            f"{base}runs/seed{n}.zarr" for n in (1, 2, 10)
        ]
    assert len(there.remarks) == 0
    assert [r.startswith("left out: ") for r in propkit.open_study(f"{base}runs").remarks] == [
        True
    ] * 2
    assert "seed2" in repr(there.select(seed=2))
    assert losses(there.refresh()) == losses(here)


def test_lists_of_urls_paths_and_runs(base, tmp_path):
    one = make(f"{base}a/run.zarr", 1)
    two = make(f"{base}b/run.zarr", 2)
    three = make(tmp_path / "run.zarr", 3)
    study = propkit.open_study([three, f"{base}[ab]/*.zarr", propkit.open(two)])
    assert [run.attributes["seed"] for run in study.runs.values()] == [3, 1, 2, 2]
    study = propkit.open_study([one, f"file://{three}", two])
    assert [label.partition(" ")[2] for label in study.runs] == ["(seed 1)", "(seed 3)", "(seed 2)"]
    same = [make(f"{base}{name}/run.zarr", 7) for name in ("x", "y")]
    assert list(propkit.open_study(same).runs) == ["run (x/run)", "run (y/run)"]


def test_patterns_through_folders(base):
    for name in ("a.zarr", "x/b.zarr", "x/y/c.zarr", "x/y/z/d.zarr"):
        make(f"{base}top/{name}", 1)
    make(f"{base}top/x/b.zarr/more/e.zarr", 1)  # in a run nobody looks for runs
    found = {
        "top/**/*.zarr": ["a", "x/b", "x/y/c", "x/y/z/d"],
        "top/*/*.zarr": ["x/b"],
        "top/x/**": ["x/b", "x/y/c", "x/y/z/d"],
        "top/**/y/*.zarr": ["x/y/c"],
        "top/x/[a-c].zarr": ["x/b"],
        "top/**/c.zarr": ["x/y/c"],
    }
    for pattern, names in found.items():
        runs = propkit.open_study(base + pattern).coordinates.path.values.tolist()
        assert sorted(runs) == [f"{base}top/{name}.zarr" for name in names], pattern


def test_nothing_there(base):
    put(f"{base}runs/other/zarr.json")
    with pytest.raises(
        FileNotFoundError, match=r"no run matches .*runs/\*; what is there is no run: left out"
    ):
        propkit.open_study(f"{base}runs/*")
    with pytest.raises(FileNotFoundError, match=r"no run matches .*none/\*\.zarr$"):
        propkit.open_study(f"{base}none/*.zarr")
    with pytest.raises(FileNotFoundError, match=r"no run at .*none"):
        propkit.open_study([f"{base}none"])
    with pytest.raises(ValueError, match="is not a propkit run"):
        propkit.open_study(f"{base}runs/other")


def test_a_bucket_is_named():
    with pytest.raises(ValueError, match="expected the name of a bucket"):
        matches("s3://buck*/x.zarr")
    assert matches("memory://none*") == []


def test_nothing_but_the_roots_is_read(s3):
    for seed in range(20):
        make(f"s3://bucket/{seed}.zarr", seed, steps=1)
    s3.requests.clear()
    assert len(propkit.open_study("s3://bucket/*.zarr").runs) == 20
    roots = [key for _, key in s3.requests if key.endswith(".zarr/zarr.json")]
    assert len(s3.requests) <= 22
    assert len(roots) == 20


def stored_at(url, request):
    """Sizes of the objects of a run, by other ways than the one under test."""
    if url.startswith("memory:"):
        files = fsspec.filesystem("memory").store
        return [
            len(f.getvalue())
            for key, f in files.items()
            if key.startswith(url.removeprefix("memory:/"))
        ]
    objects = request.getfixturevalue("s3").objects
    key = url.removeprefix("s3://bucket/")
    return [len(data) for name, data in objects.items() if name.startswith(f"{key}/")]


def test_info(base, capsys, request):
    one, two = (make(f"{base}runs/{name}.zarr", n) for n, name in enumerate(["one", "two"]))
    found = summary(propkit.open(one))
    assert found["path"] == one
    stored = stored_at(one, request)
    assert (
        (found["files"], found["bytes_on_disk"]) == (6, sum(stored)) == (len(stored), sum(stored))
    )
    for source in ([one, two], [f"{base}runs/*.zarr"], [f"{base}runs"]):
        assert print_info(source, as_json=True) == []
        printed = json.loads(capsys.readouterr().out)
        assert [run["label"] for run in printed] == ["one", "two"]
    assert main(["info", f"{base}runs/one.zarr", f"{base}none.zarr"]) == 2
    shown = capsys.readouterr()
    assert one in shown.out
    assert f"{found['files']} objects" in shown.out
    assert f"no run at {base}none.zarr" in shown.err


def test_info_of_a_run_with_an_old_command_line(capsys):
    writer = ObjectWriter.create(
        "memory://run.zarr",
        {"command": "train.py --token t0t0t0 -o s3://a:t0t0t0@b/x", "config": {"secret": "t0t0t0"}},
    )
    writer.close("complete")
    for as_json in (True, False):
        assert print_info(["memory://run.zarr"], as_json=as_json) == []
        shown = capsys.readouterr().out
        assert "t0t0t0" not in shown
        assert "train.py --token *** -o s3://b/x" in shown
    fsspec.filesystem("memory").store.clear()


def test_info_of_a_folder_of_runs_here(tmp_path, capsys):
    make(tmp_path / "one.zarr", 1)
    (tmp_path / "notes").mkdir()
    (told,) = print_info([tmp_path])
    assert "notes" in told
    assert "one" in capsys.readouterr().out


def test_a_missing_package_is_told(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert main(["info", "s3://bucket/run.zarr"]) == 2
    assert "pip install 'propkit[remote]'" in capsys.readouterr().err
    with pytest.raises(ImportError, match=r"propkit\[remote\]"):
        propkit.open_study("s3://bucket/run.zarr")
