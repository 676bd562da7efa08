"""Images and labels in memory, with the statistics that normalise them."""

from dataclasses import dataclass, replace
from typing import Literal, Self, get_args

import torch
from torch import Tensor

Normalization = Literal["pixel", "channel"]


@dataclass(frozen=True, repr=False)
class ImageSet:
    """A labelled image set, split into training and test images.

    Attributes:
        name: Short name for tables and run attributes.
        train_images: ``(N, C, H, W)``, raw, uint8 or float.
        train_labels: ``(N,)``, int64, from 0.
        test_images: As ``train_images``.
        test_labels: As ``train_labels``.
        num_classes: Number of classes.
        mean: ``(C, H, W)``, float32: mean of each pixel over the training images; ``(C, 1, 1)`` where
            it is that of each channel, see `normalized_by`.
        std: Likewise; see `from_tensors` for its floor.
        flip: Whether a mirrored image is an image of the same class.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    num_classes: int
    mean: Tensor
    std: Tensor
    flip: bool = False

    @classmethod
    def from_tensors(
        cls,
        name: str,
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        num_classes: int,
        flip: bool = False,
    ) -> Self:
        """Build an image set with the training images' statistics.

        The standard deviation is floored at a tenth of its mean over the pixels, so that a pixel
        that hardly ever changes is not blown up; on photographs the floor is never reached.

        Args:
            name: Short name.
            train: Images ``(N, C, H, W)`` and labels ``(N,)``.
            test: Likewise.
            num_classes: Number of classes.
            flip: Whether a mirrored image is an image of the same class.

        Raises:
            ValueError: Shapes or labels do not fit.
        """
        for part, (images, labels) in {"train": train, "test": test}.items():
            if images.ndim != 4 or not len(images) or labels.shape != images.shape[:1]:
                raise ValueError(
                    f"{part} images must be (N, C, H, W) with N labels, found images "
                    f"{tuple(images.shape)} and labels {tuple(labels.shape)}"
                )
            if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
                raise ValueError(
                    f"{part} labels must be in [0, {num_classes}), found "
                    f"{int(labels.min())} to {int(labels.max())}"
                )
        if train[0].shape[1:] != test[0].shape[1:]:
            raise ValueError(
                f"train and test images must have one shape, found {tuple(train[0].shape[1:])} "
                f"and {tuple(test[0].shape[1:])}"
            )
        mean, std = pixel_statistics(train[0])
        return cls(name, *train, *test, num_classes, mean.float(), _floored(std).float(), flip)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of one image."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    def normalized_by(self, what: Normalization) -> Self:
        """The same images with other statistics.

        Args:
            what: ``"pixel"``: each pixel has its mean and deviation (arXiv:1703.01827, Sec. 5).
                ``"channel"``: all pixels of a channel share them (the code of arXiv:1805.07477).

        Raises:
            ValueError: It is neither.
        """
        if what not in get_args(Normalization):
            raise ValueError(f"normalization must be 'pixel' or 'channel', found {what!r}")
        mean, std = pixel_statistics(self.train_images)
        if what == "channel":
            centre = mean.mean((1, 2), keepdim=True)
            std = (std**2 + (mean - centre) ** 2).mean((1, 2), keepdim=True).sqrt()
            mean = centre
        return replace(self, mean=mean.float(), std=_floored(std).float())

    def normalize(self, images: Tensor) -> Tensor:
        """Raw images ``(N, C, H, W)`` to float32: each pixel less its mean, over its deviation."""
        mean, std = self.mean.to(images.device), self.std.to(images.device)
        return (images.float() - mean) / std

    def __repr__(self) -> str:
        sizes = f"{len(self.train_images)} train, {len(self.test_images)} test"
        return f"ImageSet({self.name!r}, shape={self.shape}, {self.num_classes} classes, {sizes})"


def _floored(std: Tensor) -> Tensor:
    return std.clamp_min(max(0.1 * float(std.mean()), torch.finfo(torch.float32).tiny))


def pixel_statistics(images: Tensor, chunk: int = 5000) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (biased) of each pixel over the images, in float64.

    Args:
        images: ``(N, C, H, W)``.
        chunk: Images that are converted at a time, which bounds the memory.
    """
    mean = torch.stack([part.double().sum(0) for part in images.split(chunk)]).sum(0) / len(images)
    squares = [((part.double() - mean) ** 2).sum(0) for part in images.split(chunk)]
    return mean, (torch.stack(squares).sum(0) / len(images)).sqrt()
