"""Groups that grow: later curves and columns, ragged and wide rows."""

import dataclasses

import numpy as np
import pytest
import xarray as xr
import zarr

import propkit.store.run
from propkit.schema import Group, Variable
from propkit.store import arrays
from propkit.store.memory import MemoryWriter
from propkit.store.protocol import Writer
from propkit.store.run import Run
from propkit.store.table import Table
from tests.written import (
    LOSS,
    create,
    spectra,
    spectral_rows,
)


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
