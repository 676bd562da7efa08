"""An endless stream of training batches from an image set in memory."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from propkit.data.imageset import ImageSet


def batches(
    data: ImageSet,
    batch_size: int,
    shuffle: torch.Generator,
    augment: torch.Generator,
    device: str | torch.device = "cpu",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised training batches without end.

    Each epoch is a new permutation of the training images. Every batch is full: what an epoch
    leaves over begins the next batch. Images are mirrored with probability 1/2 where ``data.flip``.

    Args:
        data: Its training images go to ``device`` as they are (uint8 stays uint8).
        batch_size: Images per batch.
        shuffle: CPU generator of the permutations.
        augment: CPU generator of the flips.
        device: Where the batches are wanted.

    Yields:
        Images ``(batch_size, C, H, W)``, float32, and labels ``(batch_size,)``, int64.

    Raises:
        ValueError: ``batch_size`` is not positive.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, found {batch_size}")
    return _batches(data, batch_size, shuffle, augment, device)


def _batches(
    data: ImageSet,
    batch_size: int,
    shuffle: torch.Generator,
    augment: torch.Generator,
    device: str | torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    images, labels = data.train_images.to(device), data.train_labels.to(device)
    data = replace(data, mean=data.mean.to(device), std=data.std.to(device))  # once, not per batch
    for index in _indices(len(labels), batch_size, shuffle):
        index = index.to(device, non_blocking=True)
        batch = data.normalize(images[index])
        if data.flip:
            flipped = torch.rand(batch_size, generator=augment) < 0.5
            flipped = flipped.to(device, non_blocking=True)[:, None, None, None]
            batch = torch.where(flipped, batch.flip(-1), batch)
        yield batch, labels[index]


def _indices(count: int, batch_size: int, shuffle: torch.Generator) -> Iterator[Tensor]:
    waiting = torch.empty(0, dtype=torch.int64)
    while True:
        while len(waiting) < batch_size:
            waiting = torch.cat([waiting, torch.randperm(count, generator=shuffle)])
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]
