"""Runs of other layouts: older ones are read and continued, newer ones refused; frozen runs stay readable."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import propkit
from propkit.recording import provenance
from propkit.schema import SCHEMA_VERSION
from propkit.store import attributes, migrations
from propkit.store import writer as writing
from propkit.store.repair import repair
from propkit.store.resume import take_up
from propkit.store.run import Run
from propkit.store.writer import ZarrWriter
from tests.frozen_runs import FROZEN

KINDS = ("live", "compact")


@pytest.fixture
def older(monkeypatch):
    """This propkit writes layout 2: labels are titles there, and units of moments are spelt otherwise."""

    def migrate(old: dict) -> dict:
        old["attributes"]["title"] = old["attributes"].pop("label")
        node = old["consolidated_metadata"]["metadata"]["moment/output"]
        node["attributes"]["units"] = "x**2"
        return old

    for module in (migrations, attributes, provenance):
        monkeypatch.setattr(module, "SCHEMA_VERSION", 2)
    monkeypatch.setattr(migrations, "MIGRATIONS", {1: migrate})


def unpacked(folder: Path, kind: str, layout: int = 1) -> Path:
    path = folder / "run.zarr"
    zipfile.ZipFile(FROZEN / f"{layout}-{kind}.zip").extractall(path)
    return path


def files(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def check(run: Run) -> None:
    """What `frozen_runs.write` wrote, in plain numbers."""
    assert run.groups == ("moment", "spectra", "log")
    moment = run["moment"]
    assert moment["site"].values.tolist() == ["fc", "conv1", "block.conv2"]
    assert moment["depth"].values.tolist() == [3, 1, 2]
    steps = moment["step"].values
    assert steps.tolist() == [
        0,
        5,
        10,
        15,
        20,
        25,
        30,
        35,
        40,
        45,
        50,
        55,
        60,
        65,
        70,
        75,
        80,
        85,
        90,
        95,
    ]
    np.testing.assert_array_equal(moment["output"].sel(site="conv1"), steps)
    np.testing.assert_array_equal(moment["output"].sel(site="block.conv2"), steps + 0.25)
    late = [np.nan] * 9 + [s + 0.5 for s in range(45, 100, 5)]
    np.testing.assert_array_equal(moment["output"].sel(site="fc"), late)
    np.testing.assert_array_equal(moment["input"].sel(site="fc"), -np.array(late))
    assert moment["input"].dtype == np.float32
    assert run.spectrum("fc", step=5, group="spectra", variable="value").values.tolist() == [
        7,
        8,
        9,
    ]
    assert run.spectrum("block.conv2", group="spectra", variable="value").shape == (2, 0)
    assert run["spectra"]["level"].sel(step=5, site="fc", quantile=1.0).item() == 11
    assert run["log"]["loss"].values[3] == 0.25
    assert run.attributes["config"] == {"lr": 0.1}


def test_each_layout_is_kept() -> None:
    """Whoever raises the version keeps a run of the version before."""
    kept = {f"{n}-{kind}.zip" for n in range(1, SCHEMA_VERSION + 1) for kind in KINDS}
    assert {file.name for file in FROZEN.iterdir()} == kept
    assert set(migrations.MIGRATIONS) == set(range(1, SCHEMA_VERSION))


@pytest.mark.parametrize("layout", range(1, SCHEMA_VERSION + 1))
@pytest.mark.parametrize("kind", KINDS)
def test_frozen_runs_are_read_and_continued(tmp_path, kind, layout) -> None:
    path = unpacked(tmp_path, kind, layout)
    check(propkit.open(path))
    check(propkit.open(shutil.copy(FROZEN / f"{layout}-{kind}.zip", tmp_path)))
    left = take_up(path)
    writer = ZarrWriter.resume(left, left.steps, {"state": "running"})
    check(propkit.open(path))
    writer.append("log", np.array([100]), {"loss": np.array([7.0])})
    writer.close("complete")
    assert propkit.open(path)["log"]["loss"].values[-1] == 7
    check(propkit.open(path).compact())


@pytest.mark.parametrize("kind", KINDS)
def test_an_older_run_is_read_as_of_today_and_stays_as_it_is(tmp_path, older, kind) -> None:
    path = unpacked(tmp_path, kind)
    before = files(path)
    for source in (path, shutil.copy(FROZEN / f"1-{kind}.zip", tmp_path), path.as_uri()):
        run = propkit.open(source)
        check(run)
        assert run.attributes["title"] == "frozen"
        assert "label" not in run.attributes
        assert run.attributes["schema_version"] == 2
        assert run.attributes["migrated_by"] == propkit.__version__
        assert run["moment"]["output"].attrs["units"] == "x**2"
        assert run.tree["moment/output"].attrs["units"] == "x**2"
    assert files(path) == before
    copy = propkit.open(path).export(tmp_path / "copy.zarr.zip")
    check(copy)
    with xr.open_datatree(copy.store(), engine="zarr") as tree:
        assert (tree.attrs["schema_version"], tree.attrs["title"]) == (2, "frozen")
        assert tree["moment/output"].attrs["units"] == "x**2"
    assert files(path) == before


def test_a_store_elsewhere_of_an_older_layout(older) -> None:
    from zarr.core.buffer import default_buffer_prototype
    from zarr.storage import MemoryStore

    archive = zipfile.ZipFile(FROZEN / "1-compact.zip")
    buffer = default_buffer_prototype().buffer
    kept = {n: buffer.from_bytes(archive.read(n)) for n in archive.namelist() if n[-1] != "/"}
    run = propkit.open(MemoryStore(kept))
    check(run)
    assert run["moment"]["output"].attrs["units"] == "x**2"


@pytest.mark.parametrize("kind", KINDS)
def test_an_older_run_is_of_today_once_it_is_resumed_and_not_before(
    tmp_path, older, kind, monkeypatch
) -> None:
    path = unpacked(tmp_path, kind)
    left = take_up(path)
    before = files(path)  # unpacked chunks
    with monkeypatch.context() as patch:

        def full(store, file, data, durable=False):
            if file == path / "zarr.json":
                raise OSError(28, "No space left on device")

        patch.setattr(writing, "replace_file", full)
        with pytest.raises(OSError, match="free some space"):
            ZarrWriter.resume(left, left.steps, {})
    assert files(path) == before
    check(propkit.open(path))
    writer = ZarrWriter.resume(left, left.steps, {})
    for _ in range(2):
        stored = json.loads((path / "zarr.json").read_bytes())
        assert (stored["attributes"]["schema_version"], stored["attributes"]["title"]) == (
            2,
            "frozen",
        )
        node = stored["consolidated_metadata"]["metadata"]["moment/output"]
        assert node["attributes"]["units"] == "x**2"
        own = json.loads((path / "moment/output/zarr.json").read_bytes())
        assert own["attributes"]["units"] == "x**2"
        check(propkit.open(path))
        writer.close("complete")


def test_compaction_migrates_too(tmp_path, older) -> None:
    path = unpacked(tmp_path, "live")
    check(propkit.open(path).compact())
    assert json.loads((path / "zarr.json").read_bytes())["attributes"]["schema_version"] == 2


def test_attach_continues_an_older_run(tmp_path, older) -> None:
    import torch

    from propkit.testing import mlp

    path = tmp_path / "run.zarr"
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train(**arguments) -> None:
        with propkit.attach(model, path, probes=["weight"], **arguments):
            for _ in range(3):
                model(torch.randn(4, 12)).sum().backward()
                optimizer.step()

    migrations.MIGRATIONS[1] = lambda old: old
    train()
    stored = json.loads((path / "zarr.json").read_bytes())
    stored["attributes"]["schema_version"] = 1
    (path / "zarr.json").write_text(json.dumps(stored))
    train(resume=True)
    run = propkit.open(path)
    assert run["weight"]["step"].values.tolist() == [0, 1, 2, 3, 4, 5]
    assert run.attributes["schema_version"] == 2


@pytest.mark.parametrize(
    "look", [propkit.open, take_up, repair, lambda path: Run.compact(propkit.open(path))]
)
def test_a_newer_run_is_refused_and_stays_as_it_is(tmp_path, look) -> None:
    path = unpacked(tmp_path, "live")
    stored = json.loads((path / "zarr.json").read_bytes())
    stored["attributes"] |= {"schema_version": SCHEMA_VERSION + 1, "propkit_version": "7.5"}
    (path / "zarr.json").write_text(json.dumps(stored))
    before = files(path)
    words = rf"layout {SCHEMA_VERSION + 1}.*up to {SCHEMA_VERSION}: `pip install 'propkit>=7.5'"
    with pytest.raises(ValueError, match=words):
        look(path)
    assert files(path) == before
    stored["attributes"]["migrated_by"] = (
        "8.0"  # what began the run is older than what wrote it last
    )
    (path / "zarr.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"propkit>=8\.0"):
        look(path)


@pytest.mark.parametrize("version", ["2", None, 0, -1, 1.5, True])
def test_a_version_that_is_none(tmp_path, version) -> None:
    path = unpacked(tmp_path, "live")
    stored = json.loads((path / "zarr.json").read_bytes())
    stored["attributes"]["schema_version"] = version
    (path / "zarr.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="expected an integer"):
        propkit.open(path)
