"""Compaction: the run stays what it is, at any moment, and becomes smaller."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from unittest import mock

import hypothesis.strategies as st
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings

import propkit
from propkit.schema import Group, Variable
from propkit.store import compact as compaction
from propkit.store.compact import COMPACT, LIVE, compact, expand, layout_of, worthwhile
from propkit.store.packing import compact_chunks
from propkit.store.root import read_root
from propkit.store.run_directory import CompactedError
from propkit.store.writer import ZarrWriter
from tests.conftest import cross_entropy, make_case, sgd

SIZES = np.array([2, 0, 3, 1])


def group(sites=4, name="spectra"):
    coords = {
        "site": np.array([f"conv{i}" for i in range(sites)]),
        "row_size": np.resize(SIZES, sites),
    }
    variables = (
        Variable("value", "1", "singular values", dim="singular_value", dtype="float32"),
        Variable("quantiles", dim="quantile"),
        Variable("norm", "1", "norm", "arXiv:1703.01827"),
    )
    axes = {"singular_value": None, "quantile": np.array([0.0, 0.5, 1.0])}
    return Group(name, variables, coords, {"blocks": ["a"]}, axes)


def write(path, rows=300, sites=4, seed=0, close=True):
    """A run with plain, ragged and fixed variables, missing values, infinities, and a site that came late."""
    generator = np.random.default_rng(seed)
    with mock.patch("propkit.store.arrays.LONGEST_CHUNK", 64):
        writer = ZarrWriter.create(path, {"config": {"lr": 0.1}, "label": "a run"})
        writer.define(group(sites))
        writer.define(Group("log", (Variable("loss", "nat"),)))
        half = rows // 2
        for late, steps in enumerate((np.arange(half) * 10, np.arange(half, rows) * 10)):
            if late:
                writer.define(group(sites + 1))
            sizes = group(sites + late).sizes
            columns = {
                "value": generator.normal(size=(len(steps), sizes["singular_value"])),
                "quantiles": generator.normal(size=(len(steps), sites + late, 3)),
                "norm": generator.normal(size=(len(steps), sites + late)),
            }
            for column in columns.values():
                column[generator.random(column.shape) < 0.1] = np.nan
                column[generator.random(column.shape) < 0.1] = np.inf
            writer.append("spectra", steps, columns)
            writer.append("log", steps, {"loss": generator.normal(size=len(steps))})
            writer.commit()
    if close:
        writer.close("complete")
    return writer


def loaded(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return xr.open_datatree(path, engine="zarr", chunks=None).load()


def layout(path):
    return layout_of(read_root(path))


def files(path):
    return sorted(
        str(f.relative_to(path)) for f in path.rglob("*") if f.is_file() and f.name != "zarr.json"
    )


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 400), st.integers(1, 40), st.integers(0, 5))
def test_a_run_stays_identical_there_and_back(tmp_path_factory, rows, sites, seed):
    path = tmp_path_factory.mktemp("compact") / "run.zarr"
    write(path, rows, sites, seed)
    before = loaded(path)
    assert layout(path) == LIVE
    compact(path, grace=0)
    assert layout(path) == COMPACT
    xr.testing.assert_identical(loaded(path), before)
    xr.testing.assert_identical(
        propkit.open(path)["spectra"].load(), before["spectra"].to_dataset()
    )
    expand(path)
    assert layout(path) == LIVE
    xr.testing.assert_identical(loaded(path), before)
    assert not list(path.glob("*/*/c/"))
    shutil.rmtree(path)


def test_every_reader_reads_it_without_a_warning(tmp_path):
    path = tmp_path / "run.zarr"
    write(path)
    norm = loaded(path)["spectra/norm"].values
    run = propkit.open(path).compact()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(run["spectra"].norm, norm)
        np.testing.assert_array_equal(xr.open_zarr(path, group="spectra").norm.compute(), norm)
        np.testing.assert_array_equal(
            xr.open_zarr(path, group="spectra", chunks={}).norm.compute(), norm
        )
        np.testing.assert_array_equal(zarr.open(path, mode="r")["spectra/norm"][:], norm)
        plain = zarr.open_group(path, mode="r", use_consolidated=False)
        np.testing.assert_array_equal(plain["spectra/norm"][:], norm)
    assert plain["spectra/norm"].fill_value != plain["spectra/norm"].fill_value  # NaN
    assert run.state == "complete"
    assert run.attributes["config"] == {"lr": 0.1}


def test_it_becomes_smaller_and_few_files(tmp_path):
    path = tmp_path / "run.zarr"
    steps = np.arange(9000)
    coords = {"site": np.array([f"conv{i}" for i in range(44)])}
    with mock.patch("propkit.store.arrays.CHUNK_BYTES", 1 << 17):
        writer = ZarrWriter.create(path, {})
        writer.define(Group("g", tuple(Variable(f"v{i}") for i in range(3)), coords))
    smooth = np.exp(np.sin(steps[:, None] / 500 + np.arange(44))).astype(np.float32)
    writer.append("g", steps, {f"v{i}": smooth for i in range(3)})
    writer.close("complete")
    assert worthwhile(path)
    many = files(path)
    size = sum((path / f).stat().st_size for f in many)
    compact(path, grace=0)
    assert not worthwhile(path)
    few = files(path)
    assert few == ["g/site/c.0", "g/step/c/0", *(f"g/v{i}/c/0/0" for i in range(3))]
    assert len(many) > 5 * len(few)
    assert sum((path / f).stat().st_size for f in few) < 0.5 * size
    array = zarr.open(path, mode="r")["g/v1"]
    assert array.chunks == (4096, 15)
    assert array.shards == (12288, 45)
    (codec,) = array.compressors
    assert (codec.cname.value, codec.clevel, codec.shuffle.value) == ("zstd", 3, "bitshuffle")
    np.testing.assert_array_equal(array[:], smooth)


def test_wide_rows_go_into_several_shards(tmp_path):
    path = tmp_path / "run.zarr"
    write(path)
    before = loaded(path)
    with (
        mock.patch("propkit.store.packing.SHARD_BYTES", 1 << 12),
        mock.patch("propkit.store.packing.ROWS", 32),
    ):
        compact(path, grace=0)
    assert len(files(path / "spectra/norm")) > 2
    xr.testing.assert_identical(loaded(path), before)


@pytest.mark.parametrize("shape", [[0], [0, 44], [5, 1], [1, 10**6, 9], [70_000, 3]])
def test_chunks_are_of_a_size_that_can_be_read(shape):
    chunk = compact_chunks(shape, 8)
    assert all(1 <= c <= max(n, 1) for c, n in zip(chunk, shape, strict=True))
    assert np.prod(chunk, dtype=int) * 8 <= 1 << 22


def test_a_run_that_is_being_written_is_left_alone(tmp_path):
    writer = write(tmp_path / "run.zarr", close=False)
    before = files(writer.path)
    with pytest.raises(BlockingIOError, match="being written by process"):
        propkit.open(writer.path).compact()
    assert files(writer.path) == before
    writer.close("complete")
    propkit.open(writer.path).compact()


def test_a_second_time_changes_nothing(tmp_path):
    path = tmp_path / "run.zarr"
    write(path)
    compact(path, grace=0)
    times = {f: (path / f).stat().st_mtime_ns for f in files(path)}
    root = (path / "zarr.json").read_bytes()
    compact(path, grace=0)
    assert {f: (path / f).stat().st_mtime_ns for f in files(path)} == times
    assert (path / "zarr.json").read_bytes() == root


def test_a_dataset_from_before_says_so_and_a_run_from_before_reads_on(tmp_path):
    """To zarr a chunk that has gone is full of NaN."""
    path = tmp_path / "run.zarr"
    write(path)
    run = propkit.open(path)
    dataset, norm = run["spectra"], loaded(path)["spectra/norm"].values
    compact(path, grace=0)
    with pytest.raises(CompactedError, match=r"was compacted since.*run.refresh\(\)"):
        dataset.norm.values  # noqa: B018
    np.testing.assert_array_equal(run["spectra"].norm.values, norm)
    compacted = run["spectra"]
    expand(path)
    with pytest.raises(CompactedError):
        compacted.norm.values  # noqa: B018
    np.testing.assert_array_equal(run.refresh()["spectra"].norm.values, norm)


@pytest.mark.parametrize("change", [compact, expand])
def test_a_chunk_that_was_never_written_is_none_that_was_deleted(tmp_path, change):
    """Nothing is written for a late site's first rows: to a reader in the grace period they are NaN, as before."""
    path = tmp_path / "run.zarr"
    write(path)
    assert len(list(path.glob("spectra/norm/c.*.0"))) > len(list(path.glob("spectra/norm/c.*.1")))
    norm = loaded(path)["spectra/norm"].values
    if change is expand:
        compact(path, grace=0)
    (before, later), moments = (propkit.open(path)["spectra"] for _ in range(2)), []

    def read(seconds):
        moments.append(seconds)
        plain = zarr.open_group(path, mode="r", use_consolidated=False)["spectra/norm"]
        for values in (plain[:], propkit.open(path)["spectra"].norm.values):
            np.testing.assert_array_equal(values, norm)
        if len(moments) == 1:
            np.testing.assert_array_equal(before.norm.values, norm)

    with mock.patch("propkit.store.compact.time.sleep", read):
        change(path, grace=7.0)
    assert moments == [7.0, 7.0]
    with pytest.raises(CompactedError):
        later.norm.values  # noqa: B018


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("change", [compact, expand])
def test_killed_at_any_moment(tmp_path, change):
    """Before each thing that changes the store: consolidated readers and others see all values."""
    master = tmp_path / "master.zarr"
    with mock.patch("propkit.store.arrays.LONGEST_CHUNK", 64):
        writer = ZarrWriter.create(master, {})
        writer.define(Group("g", (Variable("norm"),), {"site": np.array(["a", "b"])}))
    writer.append("g", np.arange(100), {"norm": np.arange(200.0).reshape(100, 2)})
    writer.close("complete")
    if change is expand:
        compact(master, grace=0)
    before = loaded(master)
    moments = 0
    while True:
        path = tmp_path / f"{moments}.zarr"
        shutil.copytree(master, path)
        left = [moments]

        def counted(real, left=left):
            def call(*args, **keywords):
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                return real(*args, **keywords)

            return call

        done = False
        with (
            mock.patch("propkit.store.compact.replace_file", counted(compaction.replace_file)),
            mock.patch("propkit.store.compact.time.sleep", counted(lambda _: None)),
            mock.patch("pathlib.Path.write_bytes", counted(type(path).write_bytes)),
            mock.patch("pathlib.Path.unlink", counted(type(path).unlink)),
            mock.patch("shutil.rmtree", counted(shutil.rmtree)),
        ):
            try:
                change(path)
                done = True
            except Killed:
                pass
        xr.testing.assert_identical(loaded(path), before)
        plain = zarr.open_group(path, mode="r", use_consolidated=False)
        np.testing.assert_array_equal(plain["g/norm"][:], before["g/norm"])
        change(path)
        xr.testing.assert_identical(loaded(path), before)
        (has, lacks) = ("c/", "c.*") if change is compact else ("c.*", "c/")
        assert not list(path.glob(f"g/norm/{lacks}"))
        assert list(path.glob(f"g/norm/{has}"))
        shutil.rmtree(path)
        if done:
            break
        moments += 1
    assert moments >= 6


def test_no_space_left(tmp_path):
    path = tmp_path / "run.zarr"
    write(path)
    before = loaded(path)
    with (
        mock.patch("pathlib.Path.write_bytes", side_effect=OSError(28, "No space left on device")),
        pytest.raises(OSError, match="No space left"),
    ):
        compact(path)
    assert layout(path) == LIVE
    xr.testing.assert_identical(loaded(path), before)


READER = """
import os, sys, time, warnings
import numpy as np, xarray as xr, propkit
warnings.simplefilter("error")
path, expected, stop = sys.argv[1], np.load(sys.argv[2]), sys.argv[3]

def read():
    begin = time.monotonic()
    tree = xr.open_datatree(path, engine="zarr", chunks=None)
    np.testing.assert_array_equal(tree["spectra/norm"].values, expected)
    np.testing.assert_array_equal(propkit.open(path)["spectra"].norm.values, expected)
    return time.monotonic() - begin

read()
print(max(read() for _ in range(5)), flush=True)
grace, n, stopped = float(sys.stdin.readline()), 0, False
while not n or not stopped:
    stopped, begin = os.path.exists(stop), time.monotonic()
    try:
        read()
    except Exception:
        if stopped or time.monotonic() - begin < grace:
            raise
        continue  # too slow: the chunks that the metadata spoke of may be gone
    n += 1
print(n)
"""


def test_a_reader_while_it_is_compacted(tmp_path):
    """Whoever reads the chunks within the grace period after the metadata finds them, however slow the machine is."""
    path, stop = tmp_path / "run.zarr", tmp_path / "stop"
    write(path)
    np.save(tmp_path / "norm.npy", loaded(path)["spectra/norm"].values)
    command = [sys.executable, "-c", READER, str(path), str(tmp_path / "norm.npy"), str(stop)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as reader:
        try:
            took = reader.stdout.readline()
            assert took, reader.stderr.read()
            grace = max(0.2, 4 * float(took))
            reader.stdin.write(f"{grace}\n")
            reader.stdin.flush()
            for _ in range(4):
                compact(path, grace=grace)
                expand(path, grace=grace)
            stop.touch()
            read, errors = reader.communicate(timeout=60)
        finally:
            reader.kill()
    assert reader.returncode == 0, errors
    assert int(read) > 0


def test_others_arrays_stay(tmp_path):
    path = tmp_path / "run.zarr"
    write(path)
    root = zarr.open_group(path, use_consolidated=False)
    root["log"].create_array("mine", data=np.arange(3.0), dimension_names=["value"])
    with pytest.warns(match="Consolidated metadata"):
        zarr.consolidate_metadata(path)
    before = loaded(path)
    compact(path, grace=0)
    xr.testing.assert_identical(loaded(path), before)
    assert json.loads((path / "log/mine/zarr.json").read_text())["shape"] == [3]


@pytest.mark.parametrize("wanted", [True, False])
def test_a_recording_is_compacted_when_it_is_complete(tmp_path, wanted):
    model, x, y = make_case("mlp")
    optimizer = sgd(model)

    def train(steps, **keywords):
        with propkit.attach(model, path, compact=wanted, **keywords) as recorder:
            for _ in range(steps):
                optimizer.zero_grad()
                cross_entropy(x, y)(model).backward()
                optimizer.step()
        return recorder.run

    with mock.patch("propkit.store.arrays.LONGEST_CHUNK", 16):
        path = tmp_path / "long.zarr"
        run = train(20)
        assert layout(path) == (COMPACT if wanted else LIVE)
        before = run["error_moment"].load()
        run = train(20, resume=True)
        assert layout(path) == (COMPACT if wanted else LIVE)
        xr.testing.assert_identical(run["error_moment"].isel(step=slice(20)).load(), before)
        assert run["error_moment"].step.values.tolist() == list(range(40))
        path = tmp_path / "short.zarr"
        assert train(10).state == "complete"
        assert layout(path) == LIVE


def test_a_compaction_that_fails_leaves_a_complete_run(tmp_path):
    model, x, y = make_case("mlp")
    recorder = propkit.attach(model, tmp_path / "run.zarr")
    cross_entropy(x, y)(model).backward()
    sgd(model).step()
    full = OSError(28, "No space left on device")
    with (
        mock.patch("propkit.store.compact.worthwhile", return_value=True),
        mock.patch("propkit.store.compact.compact", side_effect=full),
        pytest.warns(UserWarning, match=r"could not be compacted.*No space left.*it is whole"),
    ):
        recorder.detach()
    assert propkit.open(tmp_path / "run.zarr").state == "complete"


def test_nothing_to_compact_in_memory(tmp_path):
    model = __import__("torch").nn.Linear(2, 2)
    recorder = propkit.attach(model)
    recorder.detach()
    with pytest.raises(ValueError, match=r"in memory: run.export"):
        recorder.run.compact()
    with pytest.raises(FileNotFoundError):
        compact(tmp_path / "nothing.zarr")
    assert not os.listdir(tmp_path)  # noqa: PTH208
