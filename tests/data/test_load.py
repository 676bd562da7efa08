"""Data by name: where CIFAR is looked for, and what is said when it is not there."""

import os

import numpy as np
import pytest

from propkit.data import cifar100, load
from propkit.data.cifar import CIFAR10, CIFAR100
from propkit.data.load import places


def write(layout, folder, count=6):
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in layout.files:
        records = random.integers(0, 256, (count, layout.record), dtype=np.uint8)
        records[:, 0] = 3  # with CIFAR-100: the coarse label
        records[:, layout.labels - 1] = np.arange(count) % layout.classes
        (folder / name).write_bytes(records.tobytes())
    return folder


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """Neither the variable nor a usual folder has anything."""
    monkeypatch.delenv("PROPKIT_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")


def test_cifar100_byte_by_byte(tmp_path):
    folder = write(CIFAR100, tmp_path / CIFAR100.folder, 120 % 100 + 5)
    data = cifar100(folder)
    assert data.num_classes == 100
    assert data.train_labels.tolist() == list(range(25))
    raw = (folder / "train.bin").read_bytes()
    for i, c, y, x in [(0, 0, 0, 0), (3, 1, 5, 7), (24, 2, 31, 31)]:
        assert int(data.train_images[i, c, y, x]) == raw[i * 3074 + 2 + c * 1024 + y * 32 + x]
    assert load(str(tmp_path)).name == "cifar100"
    (folder / "test.bin").write_bytes(bytes(3073))
    with pytest.raises(ValueError, match="whole records"):
        cifar100(folder)


@pytest.mark.parametrize("layout", [CIFAR10, CIFAR100])
@pytest.mark.parametrize("where", ["variable", "second", "itself", "data", "home"])
def test_by_name(nowhere, monkeypatch, tmp_path, layout, where):
    parent = {"data": tmp_path / "empty" / "data", "home": tmp_path / "home" / "data"}.get(
        where, tmp_path / "sets"
    )
    folder = write(layout, parent / layout.folder)
    value = {"second": f"{tmp_path}{os.pathsep}{parent}", "itself": str(folder)}.get(
        where, str(parent)
    )
    if where in ("variable", "second", "itself"):
        monkeypatch.setenv("PROPKIT_DATA", value)
    data = load(layout.name)
    assert (data.name, len(data.test_labels)) == (layout.name, 6)


def test_the_variable_comes_first(nowhere, monkeypatch, tmp_path):
    write(CIFAR10, tmp_path / "empty" / "data" / CIFAR10.folder, 3)
    write(CIFAR10, tmp_path / "sets" / CIFAR10.folder, 5)
    assert len(load("cifar10").test_labels) == 3
    monkeypatch.setenv("PROPKIT_DATA", str(tmp_path / "sets"))
    assert len(load("cifar10").test_labels) == 5


def test_not_found_says_where_it_looked_and_what_to_do(nowhere, monkeypatch, tmp_path):
    monkeypatch.setenv("PROPKIT_DATA", str(tmp_path / "sets"))
    with pytest.raises(FileNotFoundError) as caught:
        load("cifar100")
    message = str(caught.value)
    assert all(str(place) in message for place in places())
    assert str(tmp_path / "sets") in message
    assert "cifar-100-binary with train.bin and test.bin, each a multiple of 3074 bytes" in message
    assert "--data FOLDER or PROPKIT_DATA=FOLDER" in message


def test_the_python_version_is_recognised(nowhere, tmp_path):
    inner = tmp_path / "empty" / "data" / "cifar-100-python"
    inner.mkdir(parents=True)
    (inner / "train").write_bytes(b"pickle")
    for name in ("cifar100", str(inner), str(inner.parent)):
        with pytest.raises(FileNotFoundError, match="this is the Python"):
            load(name)


def test_size_is_for_folders_of_classes(tmp_path):
    with pytest.raises(ValueError, match="a size is for images in a folder of classes"):
        load("digits", size=16)
