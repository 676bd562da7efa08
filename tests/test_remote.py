# ruff: noqa: F811 - fixtures are imported
"""Runs anywhere: zip files, memory://, obstore's stores, S3 on loopback."""

import itertools
import json
import shutil
import sys
import warnings
import zipfile
from unittest import mock

import fsspec
import numpy as np
import pytest
import xarray as xr
import zarr

import propkit
from propkit.schema import Group, Variable
from propkit.store.memory import MemoryWriter
from propkit.store.object_writer import ObjectWriter
from propkit.store.place import store_at
from propkit.store.run import Run
from propkit.store.writer import ZarrWriter
from tests.conftest import cross_entropy, make_case, sgd
from tests.s3_server import s3, s3_server  # noqa: F401 - fixtures
from tests.test_compact import group


@pytest.fixture(params=["s3", "memory", "obstore", "zarr"])
def target(request):
    """A place to write to, by each of the ways there are."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        yield "s3://bucket/some/run.zarr"
    elif request.param == "memory":
        yield "memory://runs/run.zarr"
        fsspec.filesystem("memory").store.clear()
    elif request.param == "obstore":
        yield pytest.importorskip("obstore.store").MemoryStore()
    else:
        yield zarr.storage.MemoryStore()


def record(*writers, rows=310, commits=7):
    """The same rows to several writers: ragged, fixed and plain variables, a site and a curve that come late."""
    generator = np.random.default_rng(0)
    for writer in writers:
        writer.define(group(3))
        writer.define(Group("log", (Variable("loss", "nat"),)))
        writer.update(config={"lr": 0.1}, host="there", pid=7)
    sites, bounds = 3, np.linspace(0, rows, commits + 1).astype(int)
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        if number == 3:
            sites = 5
            for writer in writers:
                writer.define(group(sites))
                writer.define(Group("log", (Variable("accuracy"),)))
        steps, sizes = np.arange(start, stop) * 2, group(sites).sizes
        columns = {
            "value": generator.normal(size=(len(steps), sizes["singular_value"])),
            "quantiles": generator.normal(size=(len(steps), sites, 3)),
            "norm": generator.normal(size=(len(steps), sites)),
        }
        curves = {"loss": steps + 0.5} | ({"accuracy": steps / 7} if number >= 3 else {})
        for writer in writers:
            writer.append("spectra", steps, columns)
            writer.append("log", steps, curves)
            writer.commit()


def assert_same(run, expected):
    assert run.groups == expected.groups
    assert run.contents == expected.contents
    for name in expected:
        xr.testing.assert_identical(run[name].load(), expected[name].load())
    ignored = {"commit", "created", "host", "pid"}
    assert {k: v for k, v in run.attributes.items() if k not in ignored} == {
        k: v for k, v in expected.attributes.items() if k not in ignored
    }


def test_written_there_it_reads_like_one_in_memory(target):
    with mock.patch("propkit.store.arrays.LONGEST_CHUNK", 256):
        there, here = ObjectWriter.create(target, {}), MemoryWriter({})
        record(there, here)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(propkit.open(target), Run.from_memory(here))
        for writer in (there, here):
            writer.close("complete")
        run = propkit.open(target)
        assert_same(run, Run.from_memory(here))
        plain = zarr.open_group(run.store(), mode="r", use_consolidated=False)
        np.testing.assert_array_equal(plain["spectra/norm"][:], run["spectra"].norm)
    assert run.state == "complete"
    assert run.path is None
    with pytest.raises(ValueError, match=r"only a run in a directory"):
        run.compact()
    with pytest.raises(ValueError, match="is closed"):
        there.commit()


def test_a_second_run_is_refused_and_a_replaced_one_stops(target):
    first = ObjectWriter.create(target, {"label": "first"})
    record(first)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        ObjectWriter.create(target, {"label": "second"})
    assert propkit.open(target).label == "first"
    second = ObjectWriter.create(target, {"label": "second"}, overwrite=True)
    run = propkit.open(target)
    assert (run.label, run.groups) == ("second", ())
    with pytest.raises(FileNotFoundError, match="replaced, taken over or deleted by someone else"):
        first.commit()
    assert propkit.open(target).label == "second"
    second.close("complete")


def test_whoever_creates_at_the_same_time_loses(s3):
    """The look before is of no use: the put itself is refused."""
    ObjectWriter.create("s3://bucket/run.zarr", {"label": "first"})
    with (
        mock.patch("propkit.store.objects.Objects.make_room"),
        pytest.raises(FileExistsError, match="a run is there"),
    ):
        ObjectWriter.create("s3://bucket/run.zarr", {})
    assert propkit.open("s3://bucket/run.zarr").label == "first"
    ObjectWriter.create("memory://raced.zarr", {"label": "first"})
    with (
        mock.patch("propkit.store.objects.get", return_value=None),
        pytest.raises(FileExistsError, match="a run is there"),
    ):
        ObjectWriter.create("memory://raced.zarr", {})
    fsspec.filesystem("memory").store.clear()


def test_a_failed_flush_changes_nothing_and_is_tried_again(s3):
    writer, here = ObjectWriter.create("s3://bucket/run.zarr", {}), MemoryWriter({})
    record(writer, here, rows=100)
    before = propkit.open("s3://bucket/run.zarr")["spectra"].load()
    sizes = group(5).sizes
    columns = {"value": np.ones((1, sizes["singular_value"])), "norm": np.ones((1, 5))}
    for w in (writer, here):
        w.append("spectra", np.array([1000]), columns)
    for broken in ("norm/c", "zarr.json"):
        s3.failing = lambda key, broken=broken: broken in key
        with pytest.raises(OSError, match=r"cannot be reached.*s3://bucket/run\.zarr"):
            writer.commit()
        xr.testing.assert_identical(propkit.open("s3://bucket/run.zarr")["spectra"].load(), before)
    s3.failing = lambda _: False
    writer.commit()
    here.commit()
    assert_same(propkit.open("s3://bucket/run.zarr"), Run.from_memory(here))


def losing(name, error):
    """An obstore function whose first call is done, but not answered."""
    import obstore

    real, lost = getattr(obstore, name), [True]

    def once():
        if lost:
            lost.clear()
            raise error

    def put(*args, **keywords):
        done = real(*args, **keywords)
        once()
        return done

    async def put_async(*args, **keywords):
        done = await real(*args, **keywords)
        once()
        return done

    return mock.patch(f"obstore.{name}", put_async if name.endswith("async") else put)


def test_an_answer_that_was_lost(s3):
    """The root arrived, the writer does not know it: it goes on, and is not taken for someone else."""
    from obstore.exceptions import AlreadyExistsError, GenericError, PreconditionError

    with losing("put", AlreadyExistsError("as obstore's own second try finds it")):
        writer = ObjectWriter.create("s3://bucket/run.zarr", {})
    with losing("put", GenericError("connection closed")):
        with pytest.raises(OSError, match="connection closed"):
            writer.commit()
        writer.update(label="mine")
        writer.commit()
    assert propkit.open("s3://bucket/run.zarr").label == "mine"
    writer.update(label="still mine")
    with losing("put", PreconditionError("as obstore's own second try finds it")):
        writer.commit()
    assert propkit.open("s3://bucket/run.zarr").label == "still mine"


def test_two_answers_that_were_lost(s3):
    """First that of the root, then that of a chunk: neither is taken for someone else's."""
    from obstore.exceptions import GenericError

    writer, here = ObjectWriter.create("s3://bucket/run.zarr", {}), MemoryWriter({})
    for w in (writer, here):
        w.define(Group("log", (Variable("loss"),)))
        w.commit()
    for step, name in enumerate(("put", "put_async")):
        for w in (writer, here):
            w.append("log", np.array([step]), {"loss": np.array([step + 0.5])})
        with (
            losing(name, GenericError("connection closed")),
            pytest.raises(OSError, match="closed"),
        ):
            writer.commit()
    writer.commit()
    here.commit()
    assert_same(propkit.open("s3://bucket/run.zarr"), Run.from_memory(here))


def test_what_has_not_grown_is_not_put_again(s3):
    writer = ObjectWriter.create("s3://bucket/run.zarr", {})
    record(writer, rows=10)
    s3.requests.clear()
    writer.append("log", np.array([1000]), {"loss": np.array([1.0])})
    writer.commit()
    chunks = sorted(key for method, key in s3.requests if method == "PUT")
    assert chunks == [
        f"bucket/run.zarr/{key}"
        for key in ("log/accuracy/c/0", "log/loss/c/0", "log/step/c/0", "zarr.json")
    ]


def test_the_root_comes_after_all_chunks(s3):
    writer = ObjectWriter.create("s3://bucket/run.zarr", {})
    s3.requests.clear()
    record(writer, commits=1)
    puts = [key for method, key in s3.requests if method == "PUT"]
    assert puts[-1] == "bucket/run.zarr/zarr.json"
    assert puts.count("bucket/run.zarr/zarr.json") == 1
    assert "bucket/run.zarr/spectra/norm/c/0/0" in puts


def test_training_recorded_on_s3(s3):
    model, x, y = make_case("mlp")
    with propkit.attach(model, "s3://bucket/runs/plain.zarr", seed=3) as recorder:
        optimizer = sgd(model)
        for _ in range(5):
            optimizer.zero_grad()
            loss = cross_entropy(x, y)(model)
            loss.backward()
            recorder.log(loss=loss)
            optimizer.step()
        assert recorder.run["error_moment"].sizes["step"] == 5
    run = propkit.open("s3://bucket/runs/plain.zarr")
    assert (run.label, run.state, run.attributes["seed"]) == ("plain", "complete", 3)
    assert run["log"].loss.notnull().all()
    assert "s3://bucket/runs/plain.zarr" in repr(run)
    copy = run.export("s3://bucket/copies/plain.zarr")
    assert copy.label == "plain"
    assert_same(copy, run)
    with pytest.raises(FileExistsError):
        run.export("s3://bucket/copies/plain.zarr")
    assert_same(run.export("s3://bucket/copies/plain.zarr", overwrite=True), run)
    with pytest.raises(FileExistsError):
        propkit.attach(model, "s3://bucket/runs/plain.zarr")
    with pytest.raises(ValueError, match=r"durable= .* directory of this machine"):
        propkit.attach(model, "s3://bucket/runs/plain.zarr", durable=True)


def test_nothing_there(s3):
    with pytest.raises(FileNotFoundError, match=r"no run at s3://bucket/none\.zarr"):
        propkit.open("s3://bucket/none.zarr")
    s3.put("other.zarr/zarr.json", b"{}")
    with pytest.raises(ValueError, match="is not a propkit run"):
        propkit.open("s3://bucket/other.zarr")
    with pytest.raises(FileExistsError, match="nothing else is replaced"):
        ObjectWriter.create("s3://bucket/other.zarr", {}, overwrite=True)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ImportError, match=r"pip install 'propkit\[remote\]'"):
        store_at("s3://bucket/run.zarr", read_only=True)


# --- zip ------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    with mock.patch("propkit.store.arrays.LONGEST_CHUNK", 64):
        writer = ZarrWriter.create(tmp_path / "plain.zarr", {})
        record(writer)
    return propkit.open(writer.path), writer


def test_zip(run, tmp_path):
    run, writer = run
    live = run.export(tmp_path / "live.zarr.zip")
    assert_same(live, run)
    writer.close("complete")
    run = run.refresh()
    copy = run.export(str(tmp_path / "copy.zarr.zip"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(propkit.open(tmp_path / "copy.zarr.zip"), run)
        store = zarr.storage.ZipStore(tmp_path / "copy.zarr.zip", mode="r")
        tree = xr.open_datatree(store, engine="zarr", chunks=None)
        np.testing.assert_array_equal(tree["spectra/norm"], zarr.open(run.path)["spectra/norm"])
        store.close()
    assert (copy.label, copy.path) == ("copy", tmp_path / "copy.zarr.zip")
    assert len(zipfile.ZipFile(copy.path).namelist()) == len(
        set(zipfile.ZipFile(copy.path).namelist())
    )
    with pytest.raises(FileExistsError, match="overwrite=True"):
        run.export(copy.path)
    run.export(copy.path, overwrite=True)
    with pytest.raises(ValueError, match=r"ends in \.zip or a URL"):
        run.export(tmp_path / "copy.zarr")
    assert_same(run.compact().export(tmp_path / "again.zip"), run)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_no_zip_is_left_when_it_cannot_be_written(run, tmp_path):
    with (
        mock.patch("zipfile.ZipFile.writestr", side_effect=OSError(28, "No space left on device")),
        pytest.raises(OSError, match="No space"),
    ):
        run[0].export(tmp_path / "copy.zip")
    assert [p.name for p in tmp_path.iterdir()] == ["plain.zarr"]


def test_a_run_in_memory_is_exported(tmp_path):
    writer = MemoryWriter({"label": "kept"})
    record(writer)
    writer.close("failed", "why")
    run = Run.from_memory(writer)
    copy = run.export(tmp_path / "kept.zip")
    assert_same(copy, run)
    assert copy.attributes["commit"] == run.attributes["commit"]
    assert copy.attributes["reason"] == "why"
    assert_same(run.export("memory://copies/kept.zarr"), run)
    with pytest.raises(FileExistsError):
        run.export("memory://copies/kept.zarr")
    fsspec.filesystem("memory").store.clear()


def test_read_by_fsspec_and_by_file_urls(run, tmp_path):
    run, writer = run
    writer.close("complete")
    expected = run.refresh()
    assert_same(propkit.open(f"file://{run.path}"), expected)
    memory = fsspec.filesystem("memory")
    memory.put(str(run.path), "/copied.zarr", recursive=True)
    assert_same(propkit.open("memory://copied.zarr"), expected)
    memory.store.clear()
    assert_same(propkit.open(zarr.storage.LocalStore(run.path, read_only=True)), expected)


# --- large runs -----------------------------------------------------------------------------------


def test_dask(run):
    pytest.importorskip("dask")
    run, writer = run
    for _ in range(2):
        lazy = propkit.open(run.path, chunks={})
        assert lazy["spectra"].norm.chunks is not None
        xr.testing.assert_identical(lazy["spectra"].load(), run.refresh()["spectra"].load())
        assert lazy.refresh()["log"].loss.chunks is not None
        writer.close("complete")
        propkit.open(run.path).compact()
    assert run.refresh()["spectra"].norm.chunks is None


def test_opening_reads_no_more_of_a_longer_run(tmp_path):
    """The root metadata are as long for 10 rows as for 20,000, and no chunk is looked at."""
    sizes = []
    for rows in (10, 20_000):
        path = tmp_path / f"{rows}.zarr"
        writer = ZarrWriter.create(path, {})
        writer.define(Group("log", (Variable("loss"),)))
        writer.append("log", np.arange(rows), {"loss": np.zeros(rows)})
        writer.commit()
        shutil.rmtree(path / "log/loss")
        shutil.rmtree(path / "log/step")
        run = propkit.open(path).refresh()
        assert run.contents["log"].rows == rows
        sizes.append(len((path / "zarr.json").read_bytes()))
        assert json.loads((path / "zarr.json").read_bytes())
    assert abs(sizes[0] - sizes[1]) < 64
