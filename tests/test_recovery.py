"""A store after a crash: what is committed is there, and a writer goes on, whatever happened to the one before."""

import errno
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from unittest import mock

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from propkit.notices import PropkitWarning
from propkit.schema import Group, Variable
from propkit.store import arrays, root, sync
from propkit.store import writer as writing
from propkit.store.resume import take_up
from propkit.store.run import open as open_run
from propkit.store.writer import ZarrWriter
from tests.written import (
    LOSS,
    MOMENT,
    block,
    check_spectra,
    create,
    failing,
    fill,
    spectra,
    spectral_rows,
)


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch):
    """Whether a flush to the disk is asked for is tested, not the disk."""
    monkeypatch.setattr(sync.os, "fsync", lambda descriptor: None)


def abandon(writer: ZarrWriter) -> None:
    """What the kernel does for a process that is killed."""
    os.close(writer._hold)


def resume(path, step=None, **attributes) -> ZarrWriter:
    left = take_up(path)
    return ZarrWriter.resume(left, left.steps if step is None else step, attributes)


# --- the store --------------------------------------------------------------------------------------


OPERATIONS = st.sampled_from(
    ["rows", "rows", "curve", "late", "commit", "sites", "kill", "cut", "cut"]
)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(OPERATIONS, st.integers(1, 20)), max_size=14))
def test_any_sequence_with_kills_and_cuts_gives_what_lists_give(plan):
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(arrays, "LONGEST_CHUNK", 8),
    ):
        path = Path(folder, "run.zarr")
        writer = create(path)
        writer.define(spectra(1))
        writer.define(LOSS)
        writer.commit()
        rows: list[int] = []  # sites of each row
        points: list[dict[str, float]] = []
        names, sites = ["loss"], 1
        saved = (0, 0, 1, 1)
        for operation, count in [*plan, ("commit", 1)]:
            if operation == "rows":
                new = np.arange(len(rows), len(rows) + count)
                writer.append("spectra", new, spectral_rows(new + 1, sites))
                rows += [sites] * count
            elif operation == "curve":
                new = np.arange(len(points), len(points) + count)
                writer.append("log", new, {names[-1]: new + 0.25})
                points += [{names[-1]: i + 0.25} for i in new]
            elif operation == "late":
                names.append(f"curve{len(names)}")
                writer.define(Group("log", (Variable(names[-1]),)))
            elif operation == "sites" and sites < 4:
                sites = min(4, sites + count)
                writer.define(spectra(sites))
            elif operation == "commit":
                writer.commit()
                saved = (len(rows), len(points), len(names), sites)
            elif operation in ("kill", "cut"):
                if count % 2:  # in the middle of a flush, whose rows are written and not committed
                    with failing(after=3 * count), suppress(OSError):
                        writer.commit()
                        saved = (len(rows), len(points), len(names), sites)
                abandon(writer)
                length, logged, curves, sites = saved
                step = max(length, logged)
                if operation == "cut":
                    step = max(0, step - count)
                writer = resume(path, step)
                rows, points = rows[: min(length, step)], points[: min(logged, step)]
                names = names[:curves]
                saved = (len(rows), len(points), len(names), sites)
            run = open_run(path)
            dataset, log = run["spectra"], run["log"]
            assert dataset.sizes["site"] == saved[3]
            np.testing.assert_array_equal(dataset.step, np.arange(saved[0]))
            check_spectra(
                dataset.assign_coords(step=dataset.step + 1), np.arange(saved[0]) + 1, rows
            )
            assert list(log.data_vars) == names[: saved[2]]
            for name in names[: saved[2]]:
                expected = [point.get(name, np.nan) for point in points[: saved[1]]]
                np.testing.assert_array_equal(log[name], expected)
        writer.close("complete")
        # Readers that ignore the consolidated metadata find the same.
        lengths = {
            json.loads(file.read_bytes())["shape"][0]
            for file in (path / "spectra").glob("*/zarr.json")
            if json.loads(file.read_bytes())["dimension_names"][0] == "step"
        }
        assert lengths == {len(rows)}


def test_rows_that_were_not_committed_are_dropped_and_said(tmp_path, small_chunks):
    path = tmp_path / "run.zarr"
    writer = create(path)
    writer.define(MOMENT)
    fill(writer, range(10))
    writer.commit()
    fill(writer, range(10, 15))
    with (
        mock.patch.object(writing, "_root", side_effect=OSError(errno.EIO, "broken")),
        pytest.raises(OSError, match="broken"),
    ):
        writer.commit()
    abandon(writer)
    left = take_up(path)
    assert left.steps == 10
    assert (
        left.notes == ("5 rows of a flush that was not committed were dropped",)[0:0] + left.notes
    )
    assert "5 rows of a flush that was not committed were dropped" in left.notes
    writer = ZarrWriter.resume(left, 10, {})
    raw = np.fromfile(path / "error_moment/output/c.1.0").reshape(8, 3)
    assert np.isnan(raw[2:7]).all()  # nothing of them is left, however the array grows again
    fill(writer, range(10, 12))
    writer.close("complete")
    np.testing.assert_array_equal(open_run(path)["error_moment"].output, block(range(12)))
    assert take_up(path).notes == ()


def test_a_curve_that_came_late_keeps_meaning_nan_before(tmp_path, small_chunks):
    """A chunk that is not there means NaN; rows that go to its middle must not turn the rest into zeros."""
    writer = create(tmp_path / "run.zarr")
    writer.define(LOSS)
    writer.append("log", np.arange(20), {"loss": np.arange(20.0)})
    writer.commit()
    writer.define(Group("log", (Variable("accuracy"),)))
    writer.commit()
    abandon(writer)
    writer = resume(writer.path, 10)
    writer.append("log", np.arange(10, 12), {"accuracy": np.array([1.0, 2.0])})
    writer.close("complete")
    log = open_run(writer.path)["log"]
    np.testing.assert_array_equal(log.accuracy, [np.nan] * 10 + [1, 2])
    np.testing.assert_array_equal(log.loss, [*range(10), np.nan, np.nan])


def test_a_resumption_that_fails_is_tried_again(tmp_path, small_chunks):
    """Whatever call fails: the run is as it was, or cut, and can be resumed."""
    path = tmp_path / "run.zarr"
    writer = create(path)
    writer.define(MOMENT)
    writer.define(spectra(3))
    fill(writer, range(30))
    writer.append("spectra", np.arange(30), spectral_rows(range(1, 31), 3))
    writer.commit()
    abandon(writer)
    lengths = []
    for calls in range(1000):
        left = take_up(path)
        with failing(after=calls), suppress(OSError):
            abandon(ZarrWriter.resume(left, 11, {}))
            break
        left.let_go()
        run = open_run(path)
        lengths.append(run["error_moment"].sizes["step"])
        steps = range(lengths[-1])
        np.testing.assert_array_equal(run["error_moment"].output, block(steps))
        np.testing.assert_array_equal(run["spectra"].step, steps)
    assert set(lengths) == {30, 11}
    assert lengths == sorted(lengths, reverse=True)
    assert calls > 10
    writer = resume(path, 11)
    fill(writer, range(11, 20))
    writer.close("complete")
    np.testing.assert_array_equal(open_run(path)["error_moment"].output, block(range(20)))


def test_a_compact_run_goes_on(tmp_path, small_chunks):
    writer = create(tmp_path / "run.zarr")
    writer.define(MOMENT)
    fill(writer, range(30))
    writer.close("complete")
    open_run(writer.path).compact()
    writer = resume(writer.path, 25)
    fill(writer, range(25, 40))
    writer.close("complete")
    np.testing.assert_array_equal(open_run(writer.path)["error_moment"].output, block(range(40)))


def test_a_generation_is_counted_for_readers(tmp_path):
    writer = create(tmp_path / "run.zarr")
    for generation in range(3):
        assert open_run(writer.path).attributes["commit"]["generation"] == generation
        writer.commit()
        abandon(writer)
        writer = resume(writer.path)


# --- power failures ---------------------------------------------------------------------------------


def lose_power(monkeypatch) -> None:
    """The machine was started again."""
    monkeypatch.setattr(sync, "boot_id", lambda: "another")


def test_after_a_power_failure_only_rows_on_the_disk_are_trusted(
    tmp_path,
    monkeypatch,
    small_chunks,
):
    path = tmp_path / "run.zarr"
    writer = create(path)
    writer.define(MOMENT)
    fill(writer, range(13))
    monkeypatch.setattr(writing, "SYNC_SECONDS", -1.0)
    writer.commit()  # flushed to the disk
    monkeypatch.setattr(writing, "SYNC_SECONDS", 1e9)
    fill(writer, range(13, 20))
    writer.commit()  # and this is not
    (path / "error_moment/output/c.2.0").write_bytes(bytes(8 * 3 * 8))  # it reads back as zeros
    steps = np.fromfile(path / "error_moment/step/c.1", np.int64)
    np.where(np.arange(8) < 5, steps, 0).tofile(path / "error_moment/step/c.1")  # and so do these
    abandon(writer)
    assert open_run(path)["error_moment"].sizes["step"] == 20
    lose_power(monkeypatch)
    root._said.clear()
    with pytest.warns(PropkitWarning, match=r"restarted.*\(7 of error_moment\)") as said:  # noqa: PT031 - said once
        run = open_run(path)
        run.refresh()
    assert len(said) == 1
    assert "machine was restarted" in run.attributes["notes"][-1]
    assert run.contents["error_moment"].last_step == 12
    np.testing.assert_array_equal(run["error_moment"].output, block(range(13)))
    left = take_up(path)
    assert left.steps == 13
    writer = ZarrWriter.resume(left, 13, {})
    raw = np.fromfile(path / "error_moment/output/c.1.0").reshape(8, 3)
    assert np.isnan(raw[5:]).all()  # whatever the steps say
    assert not np.isnan(raw[:5]).any()
    fill(writer, range(13, 30))
    writer.close("complete")
    run = open_run(path)
    np.testing.assert_array_equal(run["error_moment"].output, block(range(30)))
    assert "machine was restarted" in run.attributes["notes"][-1]


def test_a_run_that_was_closed_or_is_of_another_machine_is_trusted(tmp_path, monkeypatch):
    for name, how in (("a.zarr", "closed"), ("b.zarr", "elsewhere")):
        writer = create(tmp_path / name, **({"host": "other"} if how == "elsewhere" else {}))
        writer.define(MOMENT)
        fill(writer, range(3))
        writer.commit()
        if how == "closed":
            writer.close("complete")
    lose_power(monkeypatch)
    for name in ("a.zarr", "b.zarr"):
        assert open_run(tmp_path / name)["error_moment"].sizes["step"] == 3


class Disk:
    """Notes what was flushed to the disk, and what the root said by then."""

    def __init__(self, monkeypatch) -> None:
        self.contents: dict[tuple[int, int], bytes] = {}
        self.names: set[tuple[int, int]] = set()
        real = os.fsync

        def fsync(descriptor):
            real(descriptor)
            status = os.fstat(descriptor)
            key = (status.st_dev, status.st_ino)
            path = Path(f"/proc/self/fd/{descriptor}")
            if path.is_dir():
                entries = [(e.stat().st_dev, e.stat().st_ino) for e in path.iterdir()]
                self.names.update(entries)
            else:
                self.contents[key] = path.read_bytes()

        monkeypatch.setattr(sync.os, "fsync", fsync)

    def holds(self, file: Path) -> bytes | None:
        status = file.stat()
        key = (status.st_dev, status.st_ino)
        return self.contents.get(key) if key in self.names else None


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks up descriptors")
def test_a_durable_run_is_on_the_disk_at_every_commit(tmp_path, monkeypatch, small_chunks):
    disk = Disk(monkeypatch)
    writer = ZarrWriter.create(tmp_path / "run.zarr", {}, durable=True)
    writer.define(MOMENT)
    writer.define(spectra(2))
    for start in range(0, 30, 5):
        fill(writer, range(start, start + 5))
        writer.append(
            "spectra", np.arange(start, start + 5), spectral_rows(range(5), 2 + (start > 20))
        )
        if start == 20:
            writer.define(spectra(3))
        writer.commit()
        commit = open_run(writer.path).attributes["commit"]
        assert commit["durable_rows"] == commit["rows"]
        assert commit["rows"]["error_moment"] == start + 5
        files = [file for file in writer.path.rglob("*") if file.is_file()]
        assert len(files) > 20
        for file in files:
            assert disk.holds(file) == file.read_bytes(), file
    writer.close("complete")


def test_the_root_says_durable_only_of_rows_flushed_before(tmp_path, monkeypatch):
    writer = ZarrWriter.create(tmp_path / "run.zarr", {}, durable=True)
    writer.define(MOMENT)
    writer.commit()
    fill(writer, range(5))

    def broken(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sync.os, "fsync", broken)
    with pytest.raises(OSError, match=r"the run cannot be written \(Input/output error\)"):
        writer.commit()
    assert open_run(writer.path)["error_moment"].sizes["step"] == 0
    monkeypatch.undo()
    writer.commit()
    assert open_run(writer.path).attributes["commit"]["durable_rows"] == {"error_moment": 5}


# --- one writer -------------------------------------------------------------------------------------


def test_a_run_that_is_being_written_is_not_resumed(tmp_path):
    writer = create(tmp_path / "run.zarr")
    files = {f: f.read_bytes() for f in tmp_path.rglob("zarr.json")}
    for takeover in (False, True):
        with pytest.raises(BlockingIOError) as error:
            take_up(writer.path, takeover)
        for word in (str(writer.path), f"process {os.getpid()} on {socket.gethostname()} since 2"):
            assert word in str(error.value)
    assert {f: f.read_bytes() for f in tmp_path.rglob("zarr.json")} == files
    abandon(writer)


def _dead() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


@pytest.mark.parametrize(
    ("attributes", "takeover", "refused", "remark"),
    [
        ({"pid": "dead"}, False, "", "it ended without closing the run"),
        ({"host": "node7"}, False, "on node7 since .*nothing is known here.*takeover=True", ""),
        ({"host": "node7"}, True, "", "on node7 since .*it ended without closing"),
        ({"state": "complete", "host": "node7"}, False, "", ""),
        ({"boot": "other"}, False, "", "it ended when the machine was restarted"),
        ({}, False, "", "it ended without closing the run"),  # the number was given away since
        ({"locks": False}, False, "which is alive, on a file system without locks.*takeover", ""),
        ({"locks": False, "pid": "dead"}, False, "", "it ended without closing the run"),
        ({"locks": False}, True, "", "it ended without closing the run"),
    ],
)
def test_a_stale_hold_is_recognised(tmp_path, monkeypatch, attributes, takeover, refused, remark):
    if attributes.pop("locks", True) is False:
        import fcntl

        def none(*arguments):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", none)
    if attributes.get("pid") == "dead":
        attributes["pid"] = _dead()
    boot = attributes.pop("boot", "")
    path = tmp_path / "run.zarr"
    abandon(create(path, **attributes))
    if boot:
        lose_power(monkeypatch)
    before = (path / "zarr.json").read_bytes()
    if refused:
        with pytest.raises(BlockingIOError, match=refused):
            take_up(path, takeover)
        assert (path / "zarr.json").read_bytes() == before
        return
    left = take_up(path, takeover)
    note = left.notes[0] if left.notes else ""
    assert bool(note) == bool(remark)
    assert not remark or "taken over from process" in note
    assert re.search(remark, note)
    left.let_go()


# --- killed at random moments -----------------------------------------------------------------------


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path):
    """By default 200 kills of writers that resume, cut, grow and append; PROPKIT_KILLS sets another number."""
    kills = int(os.environ.get("PROPKIT_KILLS", "200"))
    script = [sys.executable, "-m", "tests.kill_script", str(tmp_path), str(kills), "1"]
    done = subprocess.run(
        script, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["kills"] == kills
    assert counts["errors"] == []
    assert counts["unopenable"] == counts["torn"] == counts["rows_lost"] == 0
    assert counts["polls_failed"] == 0
    assert counts["polls"] > kills / 4
    assert counts["resumed"] > kills / 4
    assert counts["flushes"] > kills / 4
