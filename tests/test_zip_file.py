"""Runs in zip files that are whole, cut off or damaged."""

import zipfile

import numpy as np
import pytest

import propkit
from propkit import __main__ as cli
from propkit.figures import __main__ as figures_cli
from propkit.info import summary
from propkit.schema import Group, Variable
from propkit.store.writer import ZarrWriter


@pytest.fixture
def run(tmp_path):
    writer = ZarrWriter.create(tmp_path / "a.zarr", {"label": "plain44"})
    coords = {"site": np.array(["conv1", "conv2"]), "depth": np.array([1, 2])}
    writer.define(Group("error_moment", (Variable("output"),), coords))
    writer.append("error_moment", np.array([0, 10]), {"output": np.ones((2, 2))})
    writer.commit()
    writer.close("complete", "")
    return propkit.open(writer.path)


def test_a_zip_file_is_one_file(run):
    zipped = run.export(run.path.with_suffix(".zarr.zip"))
    found = summary(zipped)
    assert (found["bytes_on_disk"], found["files"]) == (zipped.path.stat().st_blocks * 512, 1)


@pytest.mark.parametrize("command", ["info", "watch", "report"])
@pytest.mark.parametrize("length", [0, 2000])
def test_a_broken_zip_file_is_named_in_one_line(run, capsys, command, length):
    path = run.export(run.path.with_suffix(".zarr.zip")).path
    path.write_bytes(path.read_bytes()[:length])
    assert cli.main([command, str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path}: expected a run in a zip file, found one that cannot be read" in line
    assert "copy it again" in line
    assert figures_cli.main(["fig3", str(path)]) == 2
    assert f"{path}: expected a run in a zip file" in capsys.readouterr().err


def test_a_zip_file_with_a_damaged_member_is_named(run, capsys):
    path = run.export(run.path.with_suffix(".zarr.zip")).path
    with zipfile.ZipFile(path) as archive:
        member = next(m for m in archive.infolist() if m.filename.startswith("error_moment/site/c"))
    raw = bytearray(path.read_bytes())
    raw[member.header_offset + 30 + len(member.filename) + 2] ^= 255
    path.write_bytes(raw)
    assert cli.main(["info", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{member.filename} in this zip file is damaged" in line
    assert str(path) in line
