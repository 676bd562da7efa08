"""Where a run begins: what stands there is left alone, and one writer has it."""

import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import zarr

import propkit.store.run
from propkit.store import hold
from propkit.store.writer import ZarrWriter
from tests.written import LOSS, MOMENT, create, failing

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
