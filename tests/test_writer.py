"""Writers: what is committed is there, whole, and nothing else ever is."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from unittest import mock

import hypothesis.strategies as st
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings

import propkit.store.run
from propkit.schema import Group, Variable
from propkit.store import arrays, hold
from propkit.store.attributes import to_json
from propkit.store.memory import MemoryWriter
from propkit.store.protocol import Writer
from propkit.store.run import Run
from propkit.store.table import Table
from propkit.store.writer import ZarrWriter

SITES = 3
COORDS = {
    "site": np.array(["conv1", "layer1.0.conv", "fc"]),
    "depth": np.arange(1, SITES + 1),
    "type": np.array(["Conv2d", "Conv2d", "Linear"]),
}
MOMENT = Group(
    "error_moment",
    (Variable("output", "1", "moment", "arXiv:1703.01827, Sec. 3.3"), Variable("input")),
    COORDS,
)
LOSS = Group("log", (Variable("loss", "nat"),))
SIZES = np.array([2, 0, 3, 1])


def spectra(sites: int) -> Group:
    """Ragged and fixed axes, and plain numbers, at that many sites."""
    coords = {"site": np.array(["a", "bb", "c", "dddd"][:sites]), "row_size": SIZES[:sites]}
    variables = (
        Variable("value", "1", "singular values", dim="singular_value", dtype="float32"),
        Variable("quantiles", dim="quantile"),
        Variable("norm"),
    )
    axes = {"singular_value": None, "quantile": np.array([0.0, 0.5, 1.0])}
    return Group("spectra", variables, coords, {}, axes)


def spectral_rows(steps, sites: int) -> dict[str, np.ndarray]:
    """Values that say where they belong; exact in float32."""
    at = np.asarray(steps, float)[:, None]
    norm = at * 8 + np.arange(sites)
    return {
        "value": at * 8 + np.arange(SIZES[:sites].sum()),
        "quantiles": norm[..., None] + np.array([0.0, 0.25, 0.5]),
        "norm": norm,
    }


def create(path, **attributes) -> ZarrWriter:
    return ZarrWriter.create(path, attributes)


def block(steps, offset=0.0):
    """Values that say where they belong: step and site."""
    return np.asarray(steps, float)[:, None] * 100 + np.arange(SITES) + offset


def fill(writer: Writer, steps) -> None:
    steps = np.asarray(steps, int)
    writer.append("error_moment", steps, {"output": block(steps), "input": block(steps, 0.5)})


@pytest.fixture
def small_chunks(monkeypatch):
    """Eight rows a chunk, so that few rows fill several."""
    monkeypatch.setattr(arrays, "LONGEST_CHUNK", 8)


def test_what_is_written_is_plain_zarr(tmp_path, small_chunks):
    path = tmp_path / "run.zarr"
    writer = create(path, label="a")
    writer.define(MOMENT)
    writer.define(LOSS)
    fill(writer, range(20))
    writer.commit()
    writer.append("log", np.array([4, 9]), {"loss": np.array([2.0, 1.0])})
    writer.close("complete")

    tree = xr.open_datatree(path, engine="zarr")
    assert tree.attrs["state"] == "complete"
    np.testing.assert_array_equal(tree["error_moment/output"], block(range(20)))
    np.testing.assert_array_equal(tree["error_moment/input"], block(range(20), 0.5))
    np.testing.assert_array_equal(tree["log/step"], [4, 9])
    np.testing.assert_array_equal(tree["log/loss"], [2.0, 1.0])

    moment = xr.open_zarr(path, group="error_moment")
    assert set(moment.coords) == {"step", "site", "depth", "type"}
    assert set(moment.data_vars) == {"output", "input"}
    assert moment.output.dims == ("step", "site")
    assert moment.output.attrs == MOMENT.variables[0].attributes()
    assert list(moment.type.values) == list(COORDS["type"])

    array = zarr.open(path)["error_moment/output"]
    assert array.dtype == np.float64
    assert np.isnan(array.fill_value)
    assert array.chunks == (8, SITES)
    assert [type(codec).__name__ for codec in array.metadata.codecs] == ["BytesCodec"]
    names = {file.name for file in (path / "error_moment/output").iterdir()}
    assert names == {"zarr.json", "c.0.0", "c.1.0", "c.2.0"}


def test_root_metadata_is_what_zarr_itself_would_consolidate(tmp_path, small_chunks):
    path = tmp_path / "run.zarr"
    writer = create(path, config={"lr": float("nan")})
    writer.define(LOSS)
    writer.define(MOMENT)
    fill(writer, range(9))
    writer.commit()
    writer.define(Group("log", (Variable("accuracy"),)))
    fill(writer, range(9, 12))
    writer.define(spectra(2))
    writer.append("spectra", np.arange(3), spectral_rows(range(3), 2))
    writer.commit()
    writer.define(spectra(4))
    writer.close("failed", "the loss is NaN")
    ours = json.loads((path / "zarr.json").read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(path)
    assert ours == json.loads((path / "zarr.json").read_bytes())
    assert not {".", "_"} & {file.name[0] for file in path.rglob("*")}
    assert [file.name for file in tmp_path.iterdir()] == ["run.zarr"]


@pytest.mark.parametrize("rows", [0, 5])
def test_opens_at_every_stage(tmp_path, rows):
    path = tmp_path / "run.zarr"

    def check(groups, rows):
        tree = xr.open_datatree(path, engine="zarr", chunks=None)
        assert set(tree.children) == set(groups)
        assert set(dict(zarr.open(path).groups())) == set(groups)
        for group in groups:
            dataset = xr.open_zarr(path, group=group)
            assert dataset.sizes["step"] == rows[group]

    writer = create(path)
    check((), {})
    writer.define(MOMENT)
    check((), {})
    writer.commit()
    check(("error_moment",), {"error_moment": 0})
    writer.define(LOSS)
    fill(writer, range(rows))
    check(("error_moment",), {"error_moment": 0})
    writer.commit()
    check(("error_moment", "log"), {"error_moment": rows, "log": 0})
    writer.close("complete")
    check(("error_moment", "log"), {"error_moment": rows, "log": 0})


def test_commit_counts_and_is_dated(tmp_path):
    writer = create(tmp_path / "run.zarr")
    for seq in range(3):
        commit = propkit.store.run.open(writer.path).attributes["commit"]
        assert commit["seq"] == seq
        assert commit["time"].endswith("+00:00")
        writer.commit()


def test_readers_without_consolidated_metadata_see_full_chunks(tmp_path, small_chunks):
    writer = create(tmp_path / "run.zarr")
    writer.define(MOMENT)

    def lengths():
        group = zarr.open_group(writer.path, mode="r", use_consolidated=False)["error_moment"]
        return {group[name].shape[0] for name in ("step", "output", "input")}

    fill(writer, range(7))
    writer.commit()
    assert lengths() == {0}
    fill(writer, range(7, 10))
    writer.commit()
    assert lengths() == {10}
    fill(writer, range(10, 12))
    writer.close("complete")
    assert lengths() == {12}


def test_new_curves_appear_later(tmp_path, small_chunks):
    writer = create(tmp_path / "run.zarr")
    memory = MemoryWriter({})
    for either in (writer, memory):
        either.define(LOSS)
        either.append("log", np.arange(19), {"loss": np.arange(19.0)})
        either.commit()
        either.append("log", np.array([19]), {"loss": np.array([19.0])})  # not yet committed
        either.define(Group("log", (Variable("loss"), Variable("accuracy"))))
        either.append("log", np.array([20]), {"accuracy": np.array([0.5])})
        either.commit()
        for step in range(21, 40):
            either.append("log", np.array([step]), {"accuracy": np.array([float(step)])})
        either.close("complete")
    for run in (propkit.store.run.open(writer.path), Run.from_memory(memory)):
        log = run["log"]
        loss, accuracy = np.full(40, np.nan), np.full(40, np.nan)
        loss[:20], accuracy[20], accuracy[21:] = np.arange(20), 0.5, np.arange(21, 40)
        np.testing.assert_array_equal(log.loss, loss)
        np.testing.assert_array_equal(log.accuracy, accuracy)
        assert log.loss.attrs["units"] == "nat"
    # What came too late to be there takes no room: a missing chunk means NaN.
    names = {file.name for file in (writer.path / "log/accuracy").iterdir()}
    assert names == {"zarr.json", "c.2", "c.3", "c.4"}


@pytest.mark.parametrize("kind", ["zarr", "memory"])
def test_ragged_and_fixed_axes(tmp_path, small_chunks, kind):
    writer: Writer = create(tmp_path / "run.zarr") if kind == "zarr" else MemoryWriter({})
    writer.define(spectra(4))
    writer.append("spectra", np.arange(20), spectral_rows(range(20), 4))
    writer.append("spectra", np.array([20]), {"norm": np.ones((1, 4))})
    writer.close("complete")
    if kind == "zarr":
        dataset = xr.open_zarr(
            writer.path, group="spectra"
        )  # as anyone opens it; warnings are errors
        xr.testing.assert_identical(
            dataset.load(), xr.open_datatree(writer.path, engine="zarr")["spectra"].to_dataset()
        )
    else:
        dataset = Run.from_memory(writer)["spectra"]
    assert dataset.value.dims == ("step", "singular_value")
    assert dataset.quantiles.dims == ("step", "site", "quantile")
    assert (dataset.value.dtype, dataset.quantiles.dtype) == (np.float32, np.float64)
    assert set(dataset.coords) == {"step", "site", "row_size", "site_index", "quantile"}
    assert dataset.row_size.attrs == {"sample_dimension": "singular_value"}
    assert dataset.site_index.attrs == {"instance_dimension": "site"}
    assert dataset.site_index.values.tolist() == [0, 0, 2, 2, 2, 3]
    assert dataset["quantile"].values.tolist() == [0.0, 0.5, 1.0]
    for name, expected in spectral_rows(range(20), 4).items():
        np.testing.assert_array_equal(dataset[name][:20], expected)
    assert dataset.value[20].isnull().all()
    assert dataset.quantiles[20].isnull().all()


def test_a_wide_row_is_one_append_and_a_wider_one_several(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "CHUNK_BYTES", 1 << 10)
    monkeypatch.setattr(arrays, "WIDEST_ROW", 1 << 12)
    writer = create(tmp_path / "run.zarr")
    for name, size in (("wide", 1000), ("wider", 1100)):
        variables = (Variable("value", dim="k", dtype="float32"),)
        coords = {"site": np.array(["a", "b"]), "row_size": np.array([size - 300, 300])}
        writer.define(Group(name, variables, coords, {}, {"k": None}))
        writer.append(name, np.arange(2), {"value": np.arange(2.0 * size).reshape(2, size)})
    writer.commit()
    files = {
        name: {f.name for f in (writer.path / name / "value").glob("c.*")}
        for name in ("wide", "wider")
    }
    assert files["wide"] == {"c.0.0", "c.1.0"}
    assert files["wider"] == {f"c.{step}.{i}" for step in range(2) for i in range(5)}
    run = propkit.store.run.open(writer.path)
    np.testing.assert_array_equal(run["wider"].value, np.arange(2200.0).reshape(2, 1100))
    # One site's values are read without the chunks of the others.
    for i in range(3):
        (writer.path / f"wider/value/c.1.{i}").unlink()
    np.testing.assert_array_equal(
        run.spectrum("b", group="wider", step=1), np.arange(2200.0)[-300:]
    )


def test_memory_for_wide_rows_is_not_taken_in_advance():
    wide = Group(
        "wide",
        (Variable("value", dim="k", dtype="float32"),),
        {"site": np.array(["a"]), "row_size": np.array([400_000])},
        {},
        {"k": None},
    )
    assert Table(wide)._columns["value"].nbytes < 2_000_000


def test_what_does_not_continue_a_group_is_refused(tmp_path):
    for writer in (create(tmp_path / "run.zarr"), MemoryWriter({})):
        writer.define(spectra(3))
        other = dataclasses.replace
        shuffled = {"site": np.array(["bb", "a", "c"]), "row_size": SIZES[:3]}
        resized = {"site": spectra(4).coords["site"], "row_size": np.array([2, 1, 3, 1])}
        for group in (
            spectra(3),
            spectra(2),
            other(spectra(4), coords=resized),
            other(spectra(3), coords=shuffled, variables=(Variable("new"),)),
            other(spectra(4), axes={"singular_value": None, "quantile": np.array([0.0, 1.0, 2.0])}),
            other(spectra(4), coords={"site": spectra(4).coords["site"]}),
        ):
            with pytest.raises(ValueError, match="'spectra' is defined already"):
                writer.define(group)
        with pytest.raises(ValueError, match=r"value: expected shape \(1, 5\), found \(1, 6\)"):
            writer.append("spectra", np.array([0]), {"value": np.ones((1, 6))})
        writer.define(spectra(4))
        writer.append("spectra", np.array([0]), {"value": np.ones((1, 6))})


def test_a_group_whose_growth_fails_grows_again(tmp_path, small_chunks):
    """Whatever call fails, readers go on reading what they read, and the growth can be tried again."""
    writer = create(tmp_path / "run.zarr")
    writer.define(spectra(2))
    writer.append("spectra", np.arange(11), spectral_rows(range(11), 2))
    writer.commit()
    before = propkit.store.run.open(writer.path)["spectra"].load()
    for calls in range(1000):
        done = False
        with failing(after=calls), suppress(OSError):
            writer.define(spectra(4))
            done = True
        xr.testing.assert_identical(propkit.store.run.open(writer.path)["spectra"].load(), before)
        if done:
            break
    assert calls > 10
    writer.append("spectra", np.arange(11, 20), spectral_rows(range(11, 20), 4))
    writer.close("complete")
    after = propkit.store.run.open(writer.path)["spectra"]
    for name, expected in spectral_rows(range(20), 4).items():
        np.testing.assert_array_equal(after[name][11:], expected[11:])
        old = spectral_rows(range(11), 2)[name]
        np.testing.assert_array_equal(after[name][:11, : old.shape[1]], old)
        assert after[name][:11, old.shape[1] :].isnull().all()
    assert after.site.values.tolist() == ["a", "bb", "c", "dddd"]


def test_readers_without_consolidated_metadata_see_new_columns_together(tmp_path):
    writer = create(tmp_path / "run.zarr")
    writer.define(spectra(2))
    writer.append("spectra", np.arange(3), spectral_rows(range(3), 2))
    writer.commit()
    writer.define(spectra(4))
    writer.append("spectra", np.arange(3, 5), spectral_rows(range(3, 5), 4))
    writer.commit()
    group = zarr.open_group(writer.path, mode="r", use_consolidated=False)["spectra"]
    shapes = {name: array.shape for name, array in group.arrays()}
    assert shapes["site"] == shapes["row_size"] == (4,)
    assert (shapes["value"], shapes["norm"]) == ((5, 6), (5, 4))
    assert shapes["quantiles"] == (5, 4, 3)
    np.testing.assert_array_equal(group["norm"][3:], spectral_rows(range(3, 5), 4)["norm"])


def test_a_run_opened_before_a_group_grew_stays_as_it_was(tmp_path):
    for writer in (create(tmp_path / "run.zarr"), MemoryWriter({})):
        writer.define(dataclasses.replace(spectra(2), attributes={"site_order": [1, 0]}))
        writer.append("spectra", np.arange(3), spectral_rows(range(3), 2))
        writer.commit()
        memory = isinstance(writer, MemoryWriter)
        run = Run.from_memory(writer) if memory else propkit.store.run.open(writer.path)
        before = run["spectra"].copy(deep=True)
        assert before.site.values.tolist() == ["bb", "a"]
        writer.define(dataclasses.replace(spectra(4), attributes={"site_order": [2, 1, 3, 0]}))
        writer.append("spectra", np.arange(3, 5), spectral_rows(range(3, 5), 4))
        writer.commit()
        xr.testing.assert_identical(run["spectra"].load(), before)
        assert run.refresh()["spectra"].site.values.tolist() == ["c", "bb", "dddd", "a"]


OPERATIONS = st.sampled_from(["rows", "rows", "curve", "late", "commit", "full", "sites"])


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(OPERATIONS, st.integers(1, 20)), max_size=12))
def test_any_sequence_gives_what_lists_give(plan):
    """Random appends, late curves, commits, and commits on a full disk, against lists of rows."""
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(arrays, "LONGEST_CHUNK", 8),
    ):
        writer, memory = create(Path(folder, "run.zarr")), MemoryWriter({})
        both = (writer, memory)
        steps: list[int] = []
        points: list[dict[str, float]] = []
        names = ["loss"]
        sites = [1]  # of the group of spectra, by row; the last one is that of the next row
        for either in both:
            either.define(MOMENT)
            either.define(spectra(1))
            either.define(LOSS)
            either.commit()
        seen = (0, 0, 1)
        for operation, count in plan:
            if operation == "rows":
                new = 2 * np.arange(len(steps), len(steps) + count)
                for either in both:
                    fill(either, new)
                    either.append("spectra", new, spectral_rows(new, sites[-1]))
                steps += new.tolist()
                sites += [sites[-1]] * count
            elif operation == "sites" and sites[-1] < 4:
                sites[-1] = min(4, sites[-1] + count)
                for either in both:
                    either.define(spectra(sites[-1]))
            elif operation == "curve":
                values = np.arange(count) + 0.25
                for either in both:
                    either.append("log", np.arange(count) + len(points), {names[-1]: values})
                points += [{names[-1]: value} for value in values]
            elif operation == "late":
                names.append(f"curve{len(names)}")
                for either in both:
                    either.define(Group("log", (Variable(names[-1]),)))
            else:
                with (
                    failing(after=count if operation == "full" else 10**9) as disk,
                    suppress(OSError),
                ):
                    writer.commit()
                if disk.left >= 0:
                    memory.commit()
                    seen = (len(steps), len(points), len(names))
            run = propkit.store.run.open(writer.path)
            check(run, *seen, steps, points, names)
            check_spectra(run["spectra"], steps[: seen[0]], sites)
        for either in both:
            either.close("complete")
        for run in (propkit.store.run.open(writer.path), Run.from_memory(memory)):
            check(run, len(steps), len(points), len(names), steps, points, names)
            check_spectra(run["spectra"], steps, sites)
            assert run["spectra"].sizes["site"] == sites[-1]


def check_spectra(dataset, steps, sites):
    np.testing.assert_array_equal(dataset.step, steps)
    for name in ("value", "quantiles", "norm"):
        values = dataset[name].values
        for row, (step, width) in enumerate(zip(steps, sites, strict=False)):
            expected = spectral_rows([step], width)[name][0]
            np.testing.assert_array_equal(values[row, : len(expected)], expected)
            assert np.isnan(values[row, len(expected) :]).all()


def check(run, rows, points, curves, steps, curve, names):
    moment, log = run["error_moment"], run["log"]
    np.testing.assert_array_equal(moment.step, steps[:rows])
    np.testing.assert_array_equal(moment.output, block(steps[:rows]))
    np.testing.assert_array_equal(moment.input, block(steps[:rows], 0.5))
    assert list(log.data_vars) == names[:curves]
    for name in names[:curves]:
        expected = [point.get(name, np.nan) for point in curve[:points]]
        np.testing.assert_array_equal(log[name], expected)


class failing:
    """The disk is full from the n-th system call on; writes before that take a part only."""

    def __init__(self, after: int) -> None:
        self.left = after
        self.patches = [
            mock.patch.object(os, "pwrite", self.part(os.pwrite)),
            mock.patch.object(os, "ftruncate", self.counted(os.ftruncate)),
            mock.patch.object(Path, "write_text", self.counted(Path.write_text)),
            mock.patch.object(os, "write", self.part(os.write)),
            mock.patch.object(os, "replace", self.counted(os.replace)),
        ]

    def counted(self, call):
        def wrapped(*args, **kwargs):
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return call(*args, **kwargs)

        return wrapped

    def part(self, call):
        def wrapped(descriptor, data, *offset):
            data = memoryview(data).cast("B")
            return self.counted(call)(descriptor, data[: max(1, len(data) // 2)], *offset)

        return wrapped

    def __enter__(self):
        for patch in self.patches:
            patch.start()
        return self

    def __exit__(self, *exception):
        for patch in self.patches:
            patch.stop()


def test_a_commit_that_fails_changes_nothing_and_is_tried_again(tmp_path, small_chunks):
    path = tmp_path / "run.zarr"
    writer = create(path)
    writer.define(MOMENT)
    writer.define(LOSS)
    fill(writer, range(5))
    writer.commit()
    fill(writer, range(5, 30))
    for calls in range(1000):
        before = (path / "zarr.json").read_bytes()
        done = False
        with failing(after=calls) as disk, suppress(OSError):
            writer.commit()
            done = True
        assert done == (disk.left >= 0)
        if done:
            break
        assert (path / "zarr.json").read_bytes() == before
        assert propkit.store.run.open(path)["error_moment"].sizes["step"] == 5
        np.testing.assert_array_equal(
            propkit.store.run.open(path)["error_moment"].output, block(range(5))
        )
        assert [file.name for file in tmp_path.iterdir()] == ["run.zarr"]
    assert calls > 20
    np.testing.assert_array_equal(propkit.store.run.open(path)["error_moment"].step, range(30))
    np.testing.assert_array_equal(
        propkit.store.run.open(path)["error_moment"].output, block(range(30))
    )


def test_a_curve_whose_definition_fails_is_defined_again(tmp_path, small_chunks):
    writer = create(tmp_path / "run.zarr")
    writer.define(LOSS)
    writer.append("log", np.arange(3), {"loss": np.arange(3.0)})
    writer.commit()
    accuracy = Group("log", (Variable("accuracy"),))
    for calls in range(3):
        with failing(after=calls), pytest.raises(OSError, match="No space"):
            writer.define(accuracy)
        writer.commit()
        assert list(propkit.store.run.open(writer.path)["log"].data_vars) == ["loss"]
    writer.define(accuracy)
    writer.append("log", np.array([3]), {"accuracy": np.array([0.5])})
    writer.commit()
    log = propkit.store.run.open(writer.path)["log"]
    np.testing.assert_array_equal(log.accuracy, [np.nan] * 3 + [0.5])


def test_rows_appended_after_a_failure_are_kept_too(tmp_path):
    writer = create(tmp_path / "run.zarr")
    writer.define(MOMENT)
    fill(writer, range(5))
    with failing(after=2), pytest.raises(OSError, match="No space left"):
        writer.commit()
    fill(writer, range(5, 90))
    with failing(after=0), pytest.raises(OSError, match="No space left"):
        writer.close("complete")
    assert propkit.store.run.open(writer.path).state == "running"
    writer.close("interrupted", "out of space once")
    run = propkit.store.run.open(writer.path)
    assert (run.state, run.attributes["reason"]) == ("interrupted", "out of space once")
    np.testing.assert_array_equal(run["error_moment"].output, block(range(90)))


@pytest.mark.parametrize("kind", ["zarr", "memory"])
def test_wrong_rows_are_refused_and_nothing_of_them_is_kept(tmp_path, kind):
    writer: Writer = create(tmp_path / "run.zarr") if kind == "zarr" else MemoryWriter({})
    with pytest.raises(ValueError, match="no group 'error_moment', only none: define it first"):
        fill(writer, [0])
    writer.define(MOMENT)
    fill(writer, [3, 7])
    one = np.ones((1, SITES))
    for steps in ([7], [2]):
        with pytest.raises(ValueError, match=rf"steps must increase, found \[{steps[0]}\] after 7"):
            writer.append("error_moment", np.array(steps), {"output": one})
    with pytest.raises(ValueError, match="steps must increase"):
        writer.append("error_moment", np.array([8, 8]), {"output": np.ones((2, SITES))})
    with pytest.raises(ValueError, match=r"output: expected shape \(1, 3\), found \(3, 1\)"):
        writer.append("error_moment", np.array([8]), {"output": one.T})
    with pytest.raises(ValueError, match="has no variable 'ouput', only output, input: define it"):
        writer.append("error_moment", np.array([8]), {"ouput": one})
    with pytest.raises(ValueError, match=r"steps of shape \(R,\), found \(\)"):
        writer.append("error_moment", np.array(8), {"output": one})
    with pytest.raises(TypeError, match="int64"):
        writer.append("error_moment", np.array([8.5]), {"output": one})
    with pytest.raises(ValueError, match="'error_moment' is defined already"):
        writer.define(MOMENT)
    writer.append("error_moment", np.array([], int), {"output": np.ones((0, SITES))})
    writer.append("error_moment", np.array([8]), {"output": one})
    with pytest.raises(ValueError, match="complete, interrupted, failed, found 'running'"):
        writer.close("running")
    writer.close("complete")
    writer.close("failed", "is ignored: the run is closed")
    for late in (
        lambda: fill(writer, [9]),
        lambda: writer.define(LOSS),
        lambda: writer.update(a=1),
        writer.commit,
    ):
        with pytest.raises(ValueError, match="is closed: nothing can be added"):
            late()
    run = propkit.store.run.open(writer.path) if kind == "zarr" else Run.from_memory(writer)
    assert run.state == "complete"
    np.testing.assert_array_equal(run["error_moment"].step, [3, 7, 8])
    np.testing.assert_array_equal(run["error_moment"].output[2], one[0])
    assert np.isnan(run["error_moment"].input[2]).all()


@pytest.mark.parametrize("kind", ["zarr", "memory"])
@pytest.mark.parametrize(
    ("group", "match"),
    [
        (Group("log", (Variable("train/loss"),)), "'train/loss' names a file of the store"),
        (Group("", (Variable("loss"),)), "'' names a file"),
        (Group(".log", (Variable("loss"),)), "'.log' names a file"),
        (Group("log", (Variable("step"),)), "step used twice"),
        (Group("g", (Variable("depth"),), COORDS), "depth used twice"),
        (Group("g", (Variable("a"),), {"depth": np.arange(3)}), "expected 'site'"),
        (Group("g", (Variable("a"),), {**COORDS, "depth": np.arange(4)}), "of one length"),
        (Group("g", (Variable("a"),), {"site": np.array([], str)}), "at least 1"),
        (Group("g", (Variable("a", dim="k"),), COORDS), "lies along 'k', which is no axis"),
        (Group("g", (Variable("a", dim="k"),), COORDS, {}, {"k": None}), "'row_size' with it"),
        (
            Group(
                "g",
                (Variable("a", dim="k"),),
                {**COORDS, "row_size": np.arange(3)},
                {},
                {"k": None, "j": None},
            ),
            "one ragged axis at most",
        ),
        (Group("g", (Variable("k", dim="k"),), COORDS, {}, {"k": np.arange(2)}), "k used twice"),
    ],
)
def test_groups_that_cannot_be_stored(tmp_path, kind, group, match):
    writer: Writer = create(tmp_path / "run.zarr") if kind == "zarr" else MemoryWriter({})
    with pytest.raises(ValueError, match=match):
        writer.define(group)
    writer.define(LOSS)
    with pytest.raises(ValueError, match="names a file"):
        writer.define(Group("log", (Variable("a/b"),)))
    writer.append("log", np.array([1]), {"loss": np.array([1.0])})
    writer.close("complete")
    run = propkit.store.run.open(writer.path) if kind == "zarr" else Run.from_memory(writer)
    assert list(run) == ["log"]
    assert list(run["log"].data_vars) == ["loss"]


def test_what_is_appended_is_copied(tmp_path):
    for writer in (create(tmp_path / "run.zarr"), MemoryWriter({})):
        writer.define(LOSS)
        step, loss = np.array([1]), np.array([0.5])
        writer.append("log", step, {"loss": loss})
        step[:], loss[:] = -1, -1
        writer.commit()
        run = Run.from_memory(writer) if isinstance(writer, MemoryWriter) else None
        log = (run or propkit.store.run.open(writer.path))["log"]
        assert (log.step.item(), log.loss.item()) == (1, 0.5)


def test_memory_is_not_copied_for_every_row():
    """Room doubles: 4,096 rows move a dozen times, not 4,096 times."""
    table = Table(MOMENT, capacity=1)
    moves, home = 0, None
    for step in range(4096):
        table.append([step], {"output": block([step])})
        here = table.view().columns["output"].__array_interface__["data"][0]
        moves, home = moves + (here != home), here
    assert moves <= 14
    np.testing.assert_array_equal(table.view().columns["output"], block(range(4096)))


# --- creating, replacing, holding -------------------------------------------------------------


def test_an_existing_store_is_left_alone(tmp_path):
    path = tmp_path / "run.zarr"
    writer = create(path)
    writer.define(LOSS)
    writer.close("complete")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(FileExistsError) as error:
        create(path)
    for word in (str(path), "another name", "overwrite=True", "complete"):
        assert word in str(error.value)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["run.zarr"]


def test_overwriting_a_run(tmp_path):
    path = tmp_path / "run.zarr"
    writer = create(path, label="old")
    writer.define(LOSS)
    writer.close("complete")
    ZarrWriter.create(path, {"label": "new"}, overwrite=True)
    run = propkit.store.run.open(path)
    assert run.label == "new"
    assert len(run) == 0
    assert [file.name for file in tmp_path.iterdir()] == ["run.zarr"]
    link = tmp_path / "link.zarr"
    link.symlink_to(path)
    with pytest.raises(BlockingIOError):
        ZarrWriter.create(link, {}, overwrite=True)


@pytest.mark.parametrize("kind", ["file", "folder", "empty", "zarr"])
def test_nothing_but_a_run_is_overwritten(tmp_path, kind):
    path = tmp_path / "precious"
    if kind == "file":
        path.write_text("thesis")
    elif kind == "zarr":
        zarr.create_group(path, attributes={"schema_version": 1})
    else:
        path.mkdir()
        if kind == "folder":
            (path / "thesis.tex").write_text("thesis")
    before = sorted(tmp_path.rglob("*"))
    for overwrite in (True, False):
        with pytest.raises(FileExistsError, match=r"not a propkit run.*another name.*precious"):
            ZarrWriter.create(path, {}, overwrite=overwrite)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path):
    path = tmp_path / "run.zarr"
    writer = create(path)
    created = propkit.store.run.open(path).attributes["created"]
    with pytest.raises(BlockingIOError) as error:
        ZarrWriter.create(path, {}, overwrite=True)
    for word in (str(path), f"process {os.getpid()}", f"since {created}", "another name"):
        assert word in str(error.value)
    writer.define(LOSS)
    # Worker processes inherit the descriptor; closing the run must let it go nevertheless.
    worker = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[writer._hold]
    )
    try:
        writer.close("complete")
        ZarrWriter.create(path, {}, overwrite=True).close("complete")
    finally:
        worker.communicate(b"\n")


def test_one_of_many_creators_wins(tmp_path):
    for overwrite in (False, True):
        path = tmp_path / f"{overwrite}.zarr"
        if overwrite:
            create(path).close("complete")
        start, winners, losers = threading.Barrier(8), [], []

        def race(overwrite=overwrite, path=path, start=start, winners=winners, losers=losers):
            start.wait()
            try:
                winners.append(ZarrWriter.create(path, {}, overwrite=overwrite))
            except (FileExistsError, BlockingIOError) as error:
                losers.append(error)

        threads = [threading.Thread(target=race) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(winners), len(losers)) == (1, 7)
        winners[0].close("complete")
        assert propkit.store.run.open(path).state == "complete"
    assert {file.name for file in tmp_path.iterdir()} == {"False.zarr", "True.zarr"}


def test_a_run_that_has_just_taken_the_place_is_not_replaced(tmp_path):
    """Two processes overwrite one run: the slower one holds what the faster one moved away."""
    path = tmp_path / "run.zarr"
    create(path, label="old").close("complete")
    take, others = hold.take, []

    def slow(store):
        held = take(store)
        if store == path and not others:
            path.rename(tmp_path / "old.zarr")
            others.append(create(path, label="faster"))
        return held

    with (
        mock.patch.object(hold, "take", slow),
        pytest.raises(FileExistsError, match="another run has just been created"),
    ):
        ZarrWriter.create(path, {"label": "slower"}, overwrite=True)
    assert propkit.store.run.open(path).label == "faster"
    others[0].commit()
    assert {file.name for file in tmp_path.iterdir()} == {"run.zarr", "old.zarr"}


def test_a_creation_that_fails_leaves_nothing(tmp_path):
    path = tmp_path / "run.zarr"
    with failing(after=0), pytest.raises(OSError, match="No space"):
        create(path)
    assert list(tmp_path.iterdir()) == []
    create(path, label="old").close("complete")
    with (
        mock.patch.object(hold, "_rename", side_effect=OSError(errno.EIO, "broken")),
        pytest.raises(OSError, match="broken"),
    ):
        ZarrWriter.create(path, {}, overwrite=True)
    assert propkit.store.run.open(path).label == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["run.zarr"]


def test_the_store_appears_whole(tmp_path):
    """Whenever the final name exists, it can be opened."""
    path = tmp_path / "run.zarr"
    seen = []
    rename = Path.rename

    def watched(self, target):
        seen.append(path.exists())
        propkit.store.run.open(self)
        return rename(self, target)

    with mock.patch.object(Path, "rename", watched):
        create(path)
    assert seen == [False]


def test_parents_are_created_or_the_error_says_what_is_wrong(tmp_path, monkeypatch):
    writer = create(tmp_path / "a" / "b" / "run.zarr")
    assert propkit.store.run.open(tmp_path / "a/b/run.zarr").state == "running"
    writer.close("complete")
    (tmp_path / "file").write_text("")
    with pytest.raises(
        OSError, match=r"cannot create a run in .*file.*choose another place"
    ) as error:
        create(tmp_path / "file" / "run.zarr")
    assert error.value.filename == str(tmp_path / "file" / "run.zarr")

    def refused(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(PermissionError, match=r"cannot create a run in .*\(Permission denied\)"):
        create(tmp_path / "run.zarr")
    with pytest.raises(ValueError, match=r"s3://bucket/run\.zarr"):
        create("s3://bucket/run.zarr")


@pytest.mark.parametrize("how", ["moved", "deleted", "replaced"])
def test_a_store_that_was_taken_away_is_not_written_to(tmp_path, how):
    path = tmp_path / "run.zarr"
    writer = create(path)
    writer.define(LOSS)
    writer.commit()
    writer.append("log", np.array([1]), {"loss": np.array([1.0])})
    if how == "moved":
        path.rename(tmp_path / "elsewhere.zarr")
    else:
        shutil.rmtree(path)
    if how == "replaced":
        other = create(path, label="other")
        other.define(LOSS)
        other.commit()
    files = sorted(tmp_path.rglob("*"))
    for attempt in (writer.commit, lambda: writer.define(MOMENT), lambda: writer.close("failed")):
        with pytest.raises(FileNotFoundError, match="moved, deleted or replaced"):
            attempt()
    assert sorted(tmp_path.rglob("*")) == files
    if how == "replaced":
        assert propkit.store.run.open(path).contents["log"].rows == 0


def test_the_working_directory_may_change(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writer = create("run.zarr")
    monkeypatch.chdir("/")
    writer.define(LOSS)
    writer.close("complete")
    assert propkit.store.run.open(tmp_path / "run.zarr").state == "complete"


# --- attributes -------------------------------------------------------------------------------


def test_attributes_are_json(tmp_path):
    odd = {
        "nan": float("nan"),
        "nested": {"inf": [float("inf"), -np.inf], 3: (np.int64(4), np.float32("nan"))},
        "array": np.array([[1.5, np.nan]]),
        "path": Path("runs"),
        "flag": np.bool_(True),
        "none": None,
        "names": {"one"},
        "quotes": 'a "b" \\ é \ud800 \x00',
    }
    expected = {
        "nan": "NaN",
        "nested": {"inf": ["Infinity", "-Infinity"], "3": [4, "NaN"]},
        "array": [[1.5, "NaN"]],
        "path": "runs",
        "flag": True,
        "none": None,
        "names": ["one"],
        "quotes": 'a "b" \\ é \ud800 \x00',
    }
    assert to_json(odd) == expected
    writer = ZarrWriter.create(tmp_path / "run.zarr", odd)
    writer.define(Group("log", (Variable("loss"),), attributes={"epsilon": float("nan")}))
    writer.update(config={"lr": float("inf")})
    writer.commit()

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    for file in writer.path.rglob("zarr.json"):
        json.loads(file.read_bytes(), parse_constant=refuse)
    root = zarr.open(writer.path)
    assert expected.items() <= dict(root.attrs).items()
    assert root.attrs["config"] == {"lr": "Infinity"}
    assert root["log"].attrs["epsilon"] == "NaN"
    assert root["log/loss"].metadata.to_dict()["fill_value"] == "NaN"


def test_updates_wait_for_the_commit(tmp_path):
    for writer in (create(tmp_path / "run.zarr"), MemoryWriter({})):
        run = (
            Run.from_memory(writer)
            if isinstance(writer, MemoryWriter)
            else propkit.store.run.open(writer.path)
        )
        writer.update(notes=["skipped fc"])
        assert "notes" not in run.refresh().attributes
        writer.commit()
        assert run.refresh().attributes["notes"] == ["skipped fc"]
        assert "notes" not in run.attributes


def test_importing_loads_neither_torch_nor_zarr_nor_xarray():
    code = (
        "import sys, propkit.store.run, propkit.store.writer, propkit.store.memory;"
        "w = propkit.store.memory.MemoryWriter({}); propkit.Run.from_memory(w);"
        "loaded = {'torch', 'zarr', 'xarray', 'dask'} & set(sys.modules);"
        "sys.exit(str(loaded) if loaded else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
