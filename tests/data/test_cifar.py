import re

import numpy as np
import pytest
import torch

from propkit.data import cifar10, load
from propkit.data.cifar import FOLDER, TEST_FILE, TRAIN_FILES


@pytest.fixture
def folder(tmp_path):
    """Six files of a few records: label, then red, green and blue planes."""
    place = tmp_path / FOLDER
    place.mkdir()
    random = np.random.default_rng(0)
    for i, name in enumerate((*TRAIN_FILES, TEST_FILE)):
        records = random.integers(0, 256, (4 + i, 3073), dtype=np.uint8)
        records[:, 0] = (np.arange(4 + i) + i) % 10
        (place / name).write_bytes(records.tobytes())
    return place


def records(path):
    raw = path.read_bytes()
    return [raw[i : i + 3073] for i in range(0, len(raw), 3073)]


def test_layout_byte_by_byte(folder):
    data = cifar10(folder)
    assert data.train_images.shape == (4 + 5 + 6 + 7 + 8, 3, 32, 32)
    assert data.test_images.shape == (9, 3, 32, 32)
    assert data.train_images.dtype == torch.uint8
    assert data.flip
    assert data.num_classes == 10
    raw = [record for name in TRAIN_FILES for record in records(folder / name)]
    for i, record in enumerate(raw):
        assert int(data.train_labels[i]) == record[0]
    for i, c, y, x in [(0, 0, 0, 0), (3, 1, 5, 7), (4, 2, 31, 31), (29, 0, 31, 0)]:
        assert int(data.train_images[i, c, y, x]) == raw[i][1 + c * 1024 + y * 32 + x]
    assert data.test_labels.tolist() == [r[0] for r in records(folder / TEST_FILE)]
    assert int(data.test_images[8, 2, 3, 4]) == records(folder / TEST_FILE)[8][1 + 2048 + 96 + 4]


def test_the_folder_or_its_parent(folder):
    inside, outside, named = cifar10(folder), cifar10(str(folder.parent)), load(str(folder))
    for other in (outside, named):
        assert torch.equal(inside.train_images, other.train_images)


def test_statistics_come_from_the_training_images(folder):
    data = cifar10(folder)
    np.testing.assert_allclose(
        data.mean, data.train_images.numpy().astype(float).mean(0), rtol=1e-6
    )


LAYOUT = r"folder cifar-10-batches-bin with data_batch_1\.bin .* test_batch\.bin, .* 3073 bytes"


def test_folder_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"nowhere: no such folder; .*{LAYOUT}"):
        cifar10(tmp_path / "nowhere")


def test_a_file_instead_of_a_folder(folder):
    with pytest.raises(FileNotFoundError, match=f"test_batch.bin: a file; .*{LAYOUT}"):
        cifar10(folder / TEST_FILE)


def test_no_batches(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no batches there; .*{LAYOUT}"):
        cifar10(tmp_path)


@pytest.mark.parametrize("parent", [False, True])
def test_some_batches_missing(folder, parent):
    (folder / "data_batch_3.bin").unlink()
    (folder / TEST_FILE).unlink()
    expected = f"{FOLDER}: data_batch_3.bin, test_batch.bin missing; .*{LAYOUT}"
    with pytest.raises(FileNotFoundError, match=expected):
        cifar10(folder.parent if parent else folder)


def test_the_python_version_is_recognised(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"pickle")
    with pytest.raises(FileNotFoundError, match="this is the Python"):
        cifar10(tmp_path)
    with pytest.raises(FileNotFoundError, match="this is the Python"):
        cifar10(tmp_path / "cifar-10-batches-py")


@pytest.mark.parametrize("size", [0, 3072, 3073 * 2 + 1])
def test_wrong_size(folder, size):
    (folder / "data_batch_2.bin").write_bytes(bytes(size))
    message = f"data_batch_2.bin: {size} bytes are not whole records"
    with pytest.raises(ValueError, match=re.escape(message)):
        cifar10(folder)


def test_wrong_label(folder):
    raw = bytearray((folder / TEST_FILE).read_bytes())
    raw[3073] = 77
    (folder / TEST_FILE).write_bytes(raw)
    with pytest.raises(ValueError, match=r"test_batch.bin: label 77 in a file of labels 0 to 9"):
        cifar10(folder)
