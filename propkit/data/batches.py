"""An endless stream of training batches from an image set in memory."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from propkit.data.augmentation import Augmentation
from propkit.data.imageset import ImageSet


def batches(
    data: ImageSet,
    batch_size: int,
    shuffle: torch.Generator,
    augment: torch.Generator,
    device: str | torch.device = "cpu",
    start: int = 0,
    *,
    augmentation: Augmentation | None = None,
    part: tuple[int, int] = (0, 1),
) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised training batches without end.

    Each epoch is a new permutation of the training images. Every batch is full: what an epoch
    leaves over begins the next batch. Images are normalised before they are cropped, so that the
    zeros around them are the mean.

    Args:
        data: Its training images go to ``device`` as they are (uint8 stays uint8).
        batch_size: Images per batch.
        shuffle: CPU generator of the permutations.
        augment: CPU generator of flips and crops.
        device: Where the batches are wanted.
        start: Number of batches to leave out, whose random numbers alone are drawn.
        augmentation: What is done to the images; flips alone if None. None is mirrored unless
            ``data.flip``.
        part: ``(rank, ranks)``: yield one of so many equal parts of each batch only. The parts of all
            ranks, given equal generators, are together the batch of one process.

    Yields:
        Images ``(batch_size / ranks, C, H, W)``, float32, and labels ``(batch_size / ranks,)``, int64.

    Raises:
        ValueError: ``batch_size`` is not positive or cannot be divided, ``start`` is negative, or
            ``part`` is none.
    """
    rank, ranks = part
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, found {batch_size}")
    if start < 0:
        raise ValueError(f"start must be at least 0, found {start}")
    if not 0 <= rank < ranks:
        raise ValueError(f"part must be (rank, ranks) with 0 <= rank < ranks, found {part}")
    if batch_size % ranks:
        raise ValueError(
            f"a batch of {batch_size} cannot be shared equally by {ranks} processes; take a "
            f"batch size that {ranks} divides"
        )
    share = batch_size // ranks
    mine = slice(rank * share, (rank + 1) * share)
    augmentation = augmentation or Augmentation(flip=True)
    augmentation = replace(augmentation, flip=augmentation.flip and data.flip)
    return _batches(data, batch_size, shuffle, augment, device, start, augmentation, mine)


def _batches(
    data: ImageSet,
    batch_size: int,
    shuffle: torch.Generator,
    augment: torch.Generator,
    device: str | torch.device,
    start: int,
    augmentation: Augmentation,
    mine: slice,
) -> Iterator[tuple[Tensor, Tensor]]:
    images, labels = data.train_images.to(device), data.train_labels.to(device)
    data = replace(data, mean=data.mean.to(device), std=data.std.to(device))  # once, not per batch
    for number, index in enumerate(_indices(len(labels), batch_size, shuffle)):
        drawn = augmentation.draw(batch_size, augment)
        if number < start:
            continue
        index = index[mine].to(device, non_blocking=True)
        yield drawn.of(mine).apply(data.normalize(images[index])), labels[index]


def _indices(count: int, batch_size: int, shuffle: torch.Generator) -> Iterator[Tensor]:
    waiting = torch.empty(0, dtype=torch.int64)
    while True:
        while len(waiting) < batch_size:
            waiting = torch.cat([waiting, torch.randperm(count, generator=shuffle)])
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]
