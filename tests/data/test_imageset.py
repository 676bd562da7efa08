import numpy as np
import pytest
import torch

from propkit.data import ImageSet
from propkit.data.imageset import pixel_statistics


def build(train, test=None, num_classes=2, **arguments):
    labels = torch.arange(len(train)) % num_classes
    test = train[:2] if test is None else test
    return ImageSet.from_tensors(
        "toy", (train, labels), (test, labels[: len(test)]), num_classes, **arguments
    )


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_statistics_are_numpys(chunk):
    source = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 3, 5, 4), generator=source, dtype=torch.uint8)
    mean, std = pixel_statistics(images, chunk)
    np.testing.assert_allclose(mean, images.numpy().astype(float).mean(0), rtol=1e-13)
    np.testing.assert_allclose(std, images.numpy().astype(float).std(0), rtol=1e-12)


def test_normalized_training_images_have_mean_0_and_deviation_1():
    images = torch.randint(0, 256, (200, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    data = build(images.to(torch.uint8))
    normal = data.normalize(data.train_images)
    assert normal.dtype == torch.float32
    assert normal.mean(0).abs().max() < 1e-5
    assert (normal.std(0, correction=0) - 1).abs().max() < 1e-5


def test_pixels_that_hardly_change_are_not_blown_up():
    images = torch.rand(100, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    images[:, 0, 0, 0] = 0.0
    images[:, 0, 0, 1] = 0.0
    images[3, 0, 0, 1] = 1.0
    data = build(images)
    assert float(data.std[0, 0, 0]) == pytest.approx(
        0.1 * float(images.std(0, correction=0).mean())
    )
    normal = data.normalize(images)
    assert torch.isfinite(normal).all()
    assert (normal[:, 0, 0, 0] == 0).all()


def test_constant_images_stay_finite():
    assert torch.isfinite(build(torch.ones(4, 1, 2, 2)).normalize(torch.ones(4, 1, 2, 2))).all()


def test_shape_and_repr():
    data = build(torch.zeros(6, 3, 4, 5))
    assert data.shape == (3, 4, 5)
    assert repr(data) == "ImageSet('toy', shape=(3, 4, 5), 2 classes, 6 train, 2 test)"


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (torch.zeros(4, 2, 2), None, "train images must be"),
        (torch.zeros(0, 1, 2, 2), None, "train images must be"),
        (torch.zeros(4, 1, 2, 2), torch.zeros(2, 1, 3, 2), "one shape"),
    ],
)
def test_wrong_shapes(train, test, message):
    with pytest.raises(ValueError, match=message):
        build(train, test)


def test_wrong_labels():
    images = torch.zeros(3, 1, 2, 2)
    with pytest.raises(ValueError, match=r"test labels must be in \[0, 2\), found 0 to 2"):
        ImageSet.from_tensors(
            "toy", (images, torch.tensor([0, 1, 1])), (images, torch.tensor([0, 1, 2])), 2
        )
    with pytest.raises(ValueError, match="train images must be"):
        ImageSet.from_tensors("toy", (images, torch.zeros(2).long()), (images, torch.zeros(3)), 2)


def test_normalised_by_channel():
    images = torch.randint(0, 256, (50, 3, 4, 5), dtype=torch.uint8)
    images[:, 1] //= 7
    data = build(images)
    channel = data.normalized_by("channel")
    values = images.numpy().astype(float)
    assert channel.mean.shape == channel.std.shape == (3, 1, 1)
    np.testing.assert_allclose(channel.mean.flatten(), values.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(channel.std.flatten(), values.std((0, 2, 3)), rtol=1e-6)
    normal = channel.normalize(images).double()
    assert normal.mean((0, 2, 3)).abs().max() < 1e-6
    assert channel.shape == (3, 4, 5)
    again = channel.normalized_by("pixel")
    assert torch.equal(again.mean, data.mean)
    assert torch.equal(again.std, data.std)
    with pytest.raises(ValueError, match="'pixel' or 'channel', found 'image'"):
        data.normalized_by("image")
