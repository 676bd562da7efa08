"""Flips and crops against a loop over the images in NumPy."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from propkit.data import Augmentation, ImageSet, batches
from propkit.data.augmentation import crop


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def by_hand(image, mirrored, padding, top, left):
    if mirrored:
        image = image[..., ::-1]
    around = ((0, 0), (padding, padding), (padding, padding))
    height, width = image.shape[1:]
    return np.pad(image, around)[:, top : top + height, left : left + width]


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 6),
    channels=st.integers(1, 3),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    padding=st.integers(0, 4),
    flip=st.booleans(),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
)
def test_each_image_is_mirrored_and_cropped_by_its_own_draw(
    count, channels, height, width, padding, flip, seed, dtype
):
    images = torch.randint(1, 255, (count, channels, height, width), generator=seeded(seed))
    images = images.to(dtype)
    drawn = Augmentation(flip, padding).draw(count, seeded(seed))
    found = drawn.apply(images)
    assert found.dtype == dtype
    for i, image in enumerate(images.numpy()):
        mirrored = flip and bool(drawn.mirrored[i])
        top, left = (int(drawn.top[i]), int(drawn.left[i])) if padding else (0, 0)
        expected = by_hand(image, mirrored, padding, top, left)
        np.testing.assert_array_equal(found[i].numpy(), expected)


def test_every_place_is_as_likely():
    drawn = Augmentation(True, 2).draw(50_000, seeded(0))
    cells = torch.bincount(drawn.top * 5 + drawn.left, minlength=25).double() / 50_000
    # 25 binomial shares of 0.04: five standard deviations are 0.0044.
    assert float((cells - 0.04).abs().max()) < 0.0044
    assert float(drawn.mirrored.double().mean()) == pytest.approx(0.5, abs=0.012)


def test_padding_in_the_middle_changes_nothing():
    images = torch.rand(3, 2, 5, 4)
    middle = torch.full((3,), 2)
    assert torch.equal(crop(images, 2, middle, middle), images)


def test_negative_padding():
    with pytest.raises(ValueError, match="padding must be at least 0, found -1"):
        Augmentation(True, -1)


def image_set(flip=True, count=23):
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=seeded(1))
    labels = torch.arange(count)
    return ImageSet.from_tensors("noise", (images, labels), (images, labels), count, flip)


def take(count, augmentation=None, part=(0, 1), start=0, flip=True):
    stream = batches(
        image_set(flip), 6, seeded(0), seeded(5), start=start, augmentation=augmentation, part=part
    )
    return list(itertools.islice(stream, count))


def test_batches_are_normalised_then_cropped():
    """The zeros around an image are the mean, and each pixel had its own mean taken off before."""
    data = image_set()
    augment, shuffle = seeded(5), seeded(0)
    order = torch.randperm(23, generator=shuffle)[:6]
    drawn = Augmentation(True, 1).draw(6, augment)
    images, labels = take(1, Augmentation(True, 1))[0]
    assert torch.equal(labels, order)
    mean, std = data.mean.numpy(), data.std.numpy()
    for i, index in enumerate(order.tolist()):
        normal = (data.train_images[index].numpy().astype(np.float32) - mean) / std
        expected = by_hand(normal, drawn.mirrored[i], 1, int(drawn.top[i]), int(drawn.left[i]))
        np.testing.assert_allclose(images[i].numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("augmentation", [None, Augmentation(True, 2), Augmentation()])
def test_parts_are_together_the_whole_batch(augmentation):
    whole = take(9, augmentation)
    parts = [take(9, augmentation, (rank, 3)) for rank in range(3)]
    for number, (images, labels) in enumerate(whole):
        assert torch.equal(torch.cat([part[number][0] for part in parts]), images)
        assert torch.equal(torch.cat([part[number][1] for part in parts]), labels)
    later = take(4, augmentation, (1, 3), start=5)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(later, parts[1][5:], strict=True))


def test_without_flips():
    unchanged = image_set()
    for augmentation, flip in ((Augmentation(), True), (None, False)):
        for images, labels in take(4, augmentation, flip=flip):
            assert torch.equal(images, unchanged.normalize(unchanged.train_images[labels]))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ((0, 4), "cannot be shared equally by 4 processes"),
        ((3, 3), "part must be"),
        ((0, 0), "part"),
    ],
)
def test_impossible_parts(part, message):
    with pytest.raises(ValueError, match=message):
        take(1, part=part)
