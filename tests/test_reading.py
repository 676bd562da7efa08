"""Values of a store are those that were written, however they are asked for: against NumPy's own indexing."""

import asyncio
import pickle
import tempfile
from pathlib import Path
from unittest import mock

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import propkit
from propkit.schema import Group, Variable
from propkit.store import arrays
from propkit.store.run_directory import CompactedError, RunDirectory
from propkit.store.writer import ZarrWriter


def index(size: int) -> st.SearchStrategy:
    """An integer, a slice with any step, or integers in any order."""
    inside = st.integers(-size, size - 1)
    ends = st.one_of(st.none(), st.integers(-size - 2, size + 2))
    steps = st.sampled_from([None, 1, 2, 3, 7, -1, -2, -5])
    slices = st.builds(slice, ends, ends, steps).filter(
        lambda s: range(size)[s]
    )  # xarray fails on empty reversed ones
    return st.one_of(inside, slices, st.lists(inside, max_size=6), st.just(slice(3, 3)))


def group(name: str, sites: int, dtype: str) -> Group:
    own = (Variable("flat", dtype=dtype), Variable("deep", dim="quantile", dtype=dtype))
    axes = {"quantile": np.array([0.1, 0.5, 0.9])}
    return Group(name, own, {"site": np.array([f"s{i}" for i in range(sites)])}, {}, axes)


@settings(max_examples=15, deadline=None)
@given(st.data(), st.sampled_from(["float64", "float32"]), st.booleans())
def test_any_part_of_any_variable(data, dtype, compact) -> None:
    rows, before = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 3))
    sites = before + data.draw(st.integers(0, 3))
    generator = np.random.default_rng(rows)
    flat = generator.normal(size=(rows, sites)).astype(dtype)
    deep = generator.normal(size=(rows, sites, 3)).astype(dtype)
    some = data.draw(st.integers(0, rows)) if sites > before else rows
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(arrays, "LONGEST_CHUNK", 7):
        writer = ZarrWriter.create(Path(folder, "run.zarr"), {})
        for first, end, width in ((0, some, before), (some, rows, sites)):
            if first < end or not first:  # sites that came later have chunks of their own
                writer.define(group("g", width, dtype))
                parts = {"flat": flat[first:end, :width], "deep": deep[first:end, :width]}
                writer.append("g", 3 * np.arange(first, end), parts)
                writer.commit()
        writer.close("complete")
        whole = {
            "flat": flat[:, : sites if some < rows else before],
            "deep": deep[:, : sites if some < rows else before],
        }
        for values in whole.values():
            values[:some, before:] = np.nan
        run = propkit.open(writer.path)
        run = run.compact() if compact else run
        for _ in range(4):
            name = data.draw(st.sampled_from(["flat", "deep"]))
            values = whole[name]
            chosen = [data.draw(index(n)) for n in values.shape]
            expected = values
            for axis in reversed(range(values.ndim)):
                expected = expected[(slice(None),) * axis + (chosen[axis],)]
            found = run["g"][name][tuple(chosen)]
            np.testing.assert_array_equal(found.values, expected)
            assert found.dtype == expected.dtype
        where = data.draw(st.integers(-rows, rows - 1))
        assert run["g"]["step"][where].item() == 3 * (where % rows)


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "LONGEST_CHUNK", 8)
    writer = ZarrWriter.create(tmp_path / "run.zarr", {})
    writer.define(group("g", 4, "float64"))
    flat = np.arange(80.0).reshape(20, 4)
    writer.append("g", np.arange(20), {"flat": flat})
    writer.close("complete")
    return writer.path


def test_only_the_rows_that_are_asked_for_are_read(path, monkeypatch) -> None:
    asked = []
    read = RunDirectory.read_into

    def noted(self, buffer, key, offset, size):
        asked.append((key, offset, len(buffer)))
        return read(self, buffer, key, offset, size)

    monkeypatch.setattr(RunDirectory, "read_into", noted)
    flat = propkit.open(path)["g"]["flat"]
    asked.clear()  # the coordinates
    assert flat.isel(step=-1, site=2).item() == 78
    assert asked == [("g/flat/c.2.0", 3 * 32, 32)]


def test_a_chunk_that_is_not_there_means_nan_and_a_short_one_is_damaged(path) -> None:
    (path / "g/flat/c.1.0").unlink()
    flat = propkit.open(path)["g"]["flat"].values
    assert np.isnan(flat[8:16]).all()
    np.testing.assert_array_equal(flat[16:], np.arange(64.0, 80).reshape(4, 4))
    with (path / "g/flat/c.0.0").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(OSError, match="expected 256 bytes, found 100"):
        propkit.open(path)["g"]["flat"].load()


def test_a_dataset_from_before_a_compaction_says_so(path) -> None:
    run = propkit.open(path)
    before = run["g"]
    run.compact()
    with pytest.raises(CompactedError, match=r"run\.refresh"):
        before["flat"].load()
    assert run["g"]["flat"].sum() == 79 * 40


def test_datasets_are_pickled_and_loaded_in_the_background(path) -> None:
    flat = pickle.loads(pickle.dumps(propkit.open(path)["g"]))["flat"]
    assert flat[3, 1].item() == 13
    assert asyncio.run(propkit.open(path)["g"].load_async())["flat"][3, 1].item() == 13


def test_chunks_for_dask_are_those_of_the_store(path) -> None:
    pytest.importorskip("dask")
    run = propkit.open(path, chunks={})
    assert run["g"]["flat"].chunks == ((8, 8, 4), (4,))
    assert run["g"]["flat"][9, 1].compute().item() == 37
