import itertools

import pytest
import torch

from propkit.data import ImageSet, batches


def numbered(count, flip=False):
    """Image i holds i at the left and −i at the right; its label is i."""
    values = torch.arange(count, dtype=torch.float32)
    images = torch.stack([values, -values], dim=1)[:, None, None, :]
    labels = torch.arange(count)
    ones = torch.ones(images.shape[1:])
    return ImageSet("numbered", images, labels, images, labels, count, 0 * ones, ones, flip)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def take(data, batch_size, count, shuffle=0, augment=0):
    return list(
        itertools.islice(batches(data, batch_size, seeded(shuffle), seeded(augment)), count)
    )


@pytest.mark.parametrize(("count", "batch_size"), [(10, 3), (12, 4), (5, 5), (4, 10)])
def test_every_epoch_has_every_image_once_and_every_batch_is_full(count, batch_size):
    epochs = 6
    found = take(numbered(count), batch_size, epochs * count // batch_size)
    assert all(images.shape == (batch_size, 1, 1, 2) for images, _ in found)
    order = torch.cat([labels for _, labels in found])
    whole = order[: len(order) // count * count].reshape(-1, count)
    assert torch.equal(whole.sort(1).values, torch.arange(count).expand_as(whole))
    if len(whole) > 1:
        assert not torch.equal(whole[0], whole[1])


def test_images_go_with_their_labels():
    for images, labels in take(numbered(10), 4, 5):
        assert torch.equal(images[:, 0, 0, 0], labels.float())


def test_generators_decide_separately():
    def order(**seeds):
        return torch.cat([labels for _, labels in take(numbered(30, flip=True), 8, 6, **seeds)])

    def mirrored(**seeds):
        return torch.cat(
            [i[:, 0, 0, 0] < 0 for i, _ in take(numbered(30, flip=True), 8, 6, **seeds)]
        )

    assert torch.equal(order(shuffle=1), order(shuffle=1, augment=7))
    assert not torch.equal(order(shuffle=1), order(shuffle=2))
    assert not torch.equal(mirrored(augment=1), mirrored(augment=2))


def test_half_of_the_images_are_mirrored_where_that_is_allowed():
    images = torch.cat([i for i, labels in take(numbered(100, flip=True), 50, 40)])
    assert torch.equal(images[..., 0], -images[..., 1])
    assert float((images[..., 0] < 0).float().mean()) == pytest.approx(0.5, abs=0.05)
    images = torch.cat([i for i, _ in take(numbered(100), 50, 4)])
    assert (images[..., 0] >= 0).all()


def test_batch_size():
    with pytest.raises(ValueError, match="at least 1, found 0"):
        batches(numbered(3), 0, seeded(0), seeded(0))


@pytest.mark.parametrize("start", [0, 1, 7])
def test_start_leaves_batches_out_and_changes_no_other(start):
    data = numbered(10, flip=True)
    expected = take(data, 4, 10)[start:]
    found = itertools.islice(batches(data, 4, seeded(0), seeded(0), start=start), len(expected))
    for (a, b), (c, d) in zip(found, expected, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)
    with pytest.raises(ValueError, match="start must be at least 0"):
        batches(data, 4, seeded(0), seeded(0), start=-1)
