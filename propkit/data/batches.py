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
    start: int = 0,
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
        start: Number of batches to leave out, whose random numbers alone are drawn.

    Yields:
        Images ``(batch_size, C, H, W)``, float32, and labels ``(batch_size,)``, int64.

    Raises:
        ValueError: ``batch_size`` is not positive, or ``start`` is negative.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, found {batch_size}")
    if start < 0:
        raise ValueError(f"start must be at least 0, found {start}")
    return _batches(data, batch_size, shuffle, augment, device, start)


def _batches(
    data: ImageSet,
    batch_size: int,
    shuffle: torch.Generator,
    augment: torch.Generator,
    device: str | torch.device,
    start: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    images, labels = data.train_images.to(device), data.train_labels.to(device)
    data = replace(data, mean=data.mean.to(device), std=data.std.to(device))  # once, not per batch
    for number, index in enumerate(_indices(len(labels), batch_size, shuffle)):
        flipped = torch.rand(batch_size, generator=augment) < 0.5 if data.flip else None
        if number < start:
            continue
        index = index.to(device, non_blocking=True)
        batch = data.normalize(images[index])
        if flipped is not None:
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
