"""Writers: what is committed is there, whole, and nothing else ever is."""

import json
import subprocess
import sys
import tempfile
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
from propkit.store import arrays
from propkit.store.attributes import to_json
from propkit.store.memory import MemoryWriter
from propkit.store.run import Run
from propkit.store.table import Table
from propkit.store.writer import ZarrWriter
from tests.written import (
    COORDS,
    LOSS,
    MOMENT,
    OPERATIONS,
    SITES,
    block,
    check,
    check_spectra,
    create,
    failing,
    fill,
    spectra,
    spectral_rows,
)


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
