"""Repair: what is whole comes back, and nothing else."""

import json
import shutil
from unittest import mock

import numpy as np
import pytest
import xarray as xr
import zarr

import propkit
from propkit.schema import Group, Variable
from propkit.store.compact import compact
from propkit.store.repair import repair
from propkit.store.writer import ZarrWriter
from tests.test_compact import group


def write(path, rows=200, close=True):
    with mock.patch("propkit.store.arrays.LONGEST_CHUNK", 64):
        writer = ZarrWriter.create(path, {"label": "mine", "seed": 3})
        writer.define(group())
        writer.define(Group("log", (Variable("loss", "nat"),)))
        steps, sizes = np.arange(rows) * 10, group().sizes
        writer.append(
            "spectra",
            steps,
            {
                "value": steps[:, None] + np.arange(sizes["singular_value"]),
                "quantiles": steps[:, None, None] + np.zeros((rows, 4, 3)),
                "norm": steps[:, None] + np.arange(4) / 8,
            },
        )
        writer.append("log", steps, {"loss": steps + 0.5})
        writer.commit()
    if close:
        writer.close("complete")
    return writer


def lose_root(path):
    (path / "zarr.json").unlink()


def cut_root(path):
    raw = (path / "zarr.json").read_bytes()
    (path / "zarr.json").write_bytes(raw[: len(raw) // 2])


def empty_root(path):
    (path / "zarr.json").write_bytes(b"")


def lose_consolidated(path):
    root = json.loads((path / "zarr.json").read_text())
    del root["consolidated_metadata"]
    (path / "zarr.json").write_text(json.dumps(root))


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("damage", [lose_root, cut_root, empty_root, lose_consolidated])
def test_all_rows_come_back(tmp_path, damage, compacted):
    path = tmp_path / "run.zarr"
    write(path)
    if compacted:
        compact(path, grace=0)
    before = {name: propkit.open(path)[name].load() for name in ("spectra", "log")}
    damage(path)
    with pytest.raises(
        ValueError, match=r"lost its .* metadata.*python -m propkit repair .*run\.zarr"
    ):
        propkit.open(path)
    done = repair(path)
    assert dict(done.rows) == {"log": 200, "spectra": 200}
    assert "recovered log (200 rows), spectra (200 rows)" in str(done)
    run = propkit.open(path)
    for name, dataset in before.items():
        xr.testing.assert_identical(run[name].load()[list(dataset)], dataset)
    tree = xr.open_datatree(path, engine="zarr", chunks=None)
    np.testing.assert_array_equal(tree["spectra/norm"], before["spectra"].norm)
    assert run.attributes["commit"]["last_step"] == {"spectra": 1990, "log": 1990}
    kept = damage is lose_consolidated
    assert run.state == ("complete" if kept else "failed")
    assert run.attributes.get("seed") == (3 if kept else None)
    assert any("lost" in note for note in run.attributes["notes"])
    assert str(repair(path)).endswith("nothing to repair")


def test_a_run_that_died_gives_its_rows(tmp_path):
    """The arrays' own metadata are of the last full chunk; the steps say how far the rows go."""
    writer = write(tmp_path / "run.zarr", rows=150, close=False)
    path = tmp_path / "copy.zarr"
    shutil.copytree(writer.path, path)
    writer.close("complete")
    lose_root(path)
    stored = zarr.open_array(path / "log/loss", mode="r").shape[0]
    assert dict(repair(path).rows) == {"log": 150, "spectra": 150}
    assert stored <= 150
    np.testing.assert_array_equal(propkit.open(path)["log"].loss, np.arange(150) * 10 + 0.5)


def test_only_whole_rows_are_trusted(tmp_path):
    writer = write(tmp_path / "run.zarr")
    lose_root(writer.path)
    for file in writer.path.glob("spectra/norm/c.2.*"):
        file.unlink()
    loss = writer.path / "log/loss/c.1"
    loss.write_bytes(loss.read_bytes()[:-8])
    assert dict(repair(writer.path).rows) == {"log": 64, "spectra": 128}
    run = propkit.open(writer.path)
    assert {d.sizes["step"] for d in (run["spectra"], run["log"])} == {64, 128}
    assert np.isfinite(run["spectra"].norm.values).all()


def test_a_lost_array_is_left_out_and_said(tmp_path):
    writer = write(tmp_path / "run.zarr")
    lose_root(writer.path)
    (writer.path / "spectra/norm/zarr.json").write_text("{")
    done = repair(writer.path)
    assert any("spectra/norm" in note for note in done.notes)
    assert "norm" not in propkit.open(writer.path)["spectra"]


def test_a_variable_that_came_late_takes_no_rows_away(tmp_path):
    with mock.patch("propkit.store.arrays.LONGEST_CHUNK", 64):
        writer = ZarrWriter.create(tmp_path / "run.zarr", {})
        writer.define(Group("log", (Variable("loss"),)))
        writer.append("log", np.arange(100), {"loss": np.arange(100)})
        writer.commit()
        writer.define(Group("log", (Variable("accuracy"),)))
        writer.append("log", np.arange(100, 200), {"accuracy": np.arange(100)})
        writer.close("complete")
    before = propkit.open(writer.path)["log"].load()
    lose_root(writer.path)
    assert dict(repair(writer.path).rows) == {"log": 200}
    xr.testing.assert_identical(propkit.open(writer.path)["log"].load()[list(before)], before)
    for file in (writer.path / "log/accuracy").glob("c.*"):
        file.unlink()
    lose_root(writer.path)
    assert any("accuracy: it has no chunks" in note for note in repair(writer.path).notes)


@pytest.mark.parametrize("rows", [0, 1])
def test_no_row_and_the_row_of_step_0(tmp_path, rows):
    writer = write(tmp_path / "run.zarr", rows=rows, close=False)
    path = tmp_path / "copy.zarr"
    shutil.copytree(writer.path, path)
    writer.close("complete")
    lose_root(path)
    assert dict(repair(path).rows) == {"log": rows, "spectra": rows}


def test_what_is_no_run_is_not_touched(tmp_path):
    with pytest.raises(FileNotFoundError):
        repair(tmp_path / "none.zarr")
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="nothing can be repaired"):
        repair(tmp_path / "other")
    writer = write(tmp_path / "run.zarr", close=False)
    with pytest.raises(BlockingIOError):
        repair(writer.path)
    writer.close("complete")
