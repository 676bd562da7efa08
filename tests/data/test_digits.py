import sys

import pytest
import torch
import torch.nn.functional as F

from propkit.data import digits, load

datasets = pytest.importorskip("sklearn.datasets")


def test_all_images_are_there_once_in_two_parts():
    data, raw = digits(), datasets.load_digits()
    assert data.shape == (1, 8, 8)
    assert (len(data.train_labels), len(data.test_labels)) == (1437, 360)
    both = torch.cat([data.train_images, data.test_images]).flatten(1) * 16
    ours = sorted(tuple(row) for row in both.tolist())
    assert ours == sorted(tuple(row) for row in raw.data.tolist())
    # Images still go with their labels.
    known = {
        tuple(row): int(label) for row, label in zip(raw.data.tolist(), raw.target, strict=True)
    }
    found = [known[tuple(row)] for row in (data.test_images.flatten(1) * 16).tolist()]
    assert found == data.test_labels.tolist()
    assert set(data.test_labels.tolist()) == set(range(10))
    assert not data.flip


def test_split_does_not_move():
    assert torch.equal(digits().test_labels, digits().test_labels)
    assert not torch.equal(digits().test_labels, digits(split_seed=1).test_labels)


@pytest.mark.parametrize("size", [16, 32])
def test_upsampling(size):
    small, large = digits(), digits(size)
    nearest = digits(size, mode="nearest")
    assert large.shape == nearest.shape == (1, size, size)
    factor = size // 8
    repeated = small.test_images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    assert torch.equal(nearest.test_images, repeated)
    # Bilinear interpolation between pixel centres keeps the mean of images with a black border.
    means = F.avg_pool2d(large.test_images, factor).mean(), small.test_images.mean()
    assert float(means[0]) == pytest.approx(float(means[1]), rel=0.01)
    assert torch.equal(large.train_labels, small.train_labels)


def test_normalized():
    for size in (8, 16, 32):
        normal = digits(size).normalize(digits(size).train_images)
        assert normal.mean(0).abs().max() < 1e-4
        assert float(normal.abs().max()) < 30


def test_wrong_size():
    with pytest.raises(ValueError, match="8, 16 or 32, found 28"):
        digits(28)


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'propkit\[demo\]'"):
        digits()


@pytest.mark.parametrize(
    ("name", "size"), [("digits", 8), ("digits8", 8), ("digits16", 16), ("digits32", 32)]
)
def test_by_name(name, size):
    assert load(name).shape == (1, size, size)
    assert load(name).name == f"digits-{size}x{size}"


def test_by_wrong_name(tmp_path):
    with pytest.raises(ValueError, match="8, 16 or 32, found 9"):
        load("digits9")
    with pytest.raises(FileNotFoundError, match=r"--data takes digits.* no such folder"):
        load(str(tmp_path / "mnist"))
