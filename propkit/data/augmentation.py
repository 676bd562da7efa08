"""Random flips and crops of a batch of images, all at once.

He et al., arXiv:1512.03385, Sec. 4.2: four pixels of zeros on each side, a random crop of the image's own size
from that or from its mirror image.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """What may be done to a training image without changing its class.

    Attributes:
        flip: Mirror it with probability 1/2.
        padding: Pixels of zeros on each side, before a random crop of the image's own size; 0 for no
            crop.

    Raises:
        ValueError: The padding is negative.

    Example:
        >>> images = torch.arange(4.0).reshape(1, 1, 2, 2)
        >>> shifted = crop(images, 1, torch.tensor([0]), torch.tensor([1]))
        >>> shifted[0, 0].tolist()  # one row down
        [[0.0, 0.0], [0.0, 1.0]]
    """

    flip: bool = False
    padding: int = 0

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"padding must be at least 0, found {self.padding}")

    def draw(self, count: int, source: torch.Generator) -> "Drawn":
        """What happens to each of ``count`` images; the numbers come from a CPU generator."""
        mirrored = torch.rand(count, generator=source) < 0.5 if self.flip else None
        if not self.padding:
            return Drawn(mirrored)
        top, left = torch.randint(2 * self.padding + 1, (2, count), generator=source)
        return Drawn(mirrored, self.padding, top, left)


@dataclass(frozen=True)
class Drawn:
    """One draw for the images of a batch.

    Attributes:
        mirrored: ``(N,)``, bool; None: none is.
        padding: See `Augmentation`.
        top: ``(N,)``, int64: first row of the crop in the padded image; ``padding`` leaves it in place.
        left: First column, likewise.
    """

    mirrored: Tensor | None = None
    padding: int = 0
    top: Tensor | None = None
    left: Tensor | None = None

    def of(self, images: slice) -> "Drawn":
        """That of some of the images."""
        parts = [p if p is None else p[images] for p in (self.mirrored, self.top, self.left)]
        return Drawn(parts[0], self.padding, parts[1], parts[2])

    def apply(self, images: Tensor) -> Tensor:
        """Mirror and crop images ``(N, C, H, W)`` of any dtype, on their device."""
        if self.mirrored is not None:
            mirrored = self.mirrored.to(images.device, non_blocking=True)[:, None, None, None]
            images = torch.where(mirrored, images.flip(-1), images)
        if self.top is None or self.left is None:
            return images
        top, left = (p.to(images.device, non_blocking=True) for p in (self.top, self.left))
        return crop(images, self.padding, top, left)


def crop(images: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    """Crop every image at a place of its own out of itself with zeros around it.

    Args:
        images: ``(N, C, H, W)``, any dtype.
        padding: Pixels of zeros on each side.
        top: ``(N,)``, int64, in 0 ... 2 padding: first row of the crop.
        left: First column, likewise.

    Returns:
        ``(N, C, H, W)``, the images' dtype.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (N, C, top, left, H, W)
    return windows[torch.arange(len(images), device=images.device), :, top, left]
