"""The handwritten digits that scikit-learn carries: 1797 images of 8x8 pixels, no download."""

from typing import Literal

import torch
import torch.nn.functional as F

from propkit.data.imageset import ImageSet

_TEST = 360
_MAX = 16.0


def digits(
    size: int = 8, mode: Literal["bilinear", "nearest"] = "bilinear", split_seed: int = 0
) -> ImageSet:
    """Ten classes of grey digits, 1437 to train on and 360 to test on.

    Args:
        size: Height and width: 8, or 16 or 32 for upsampled images.
        mode: How to upsample.
        split_seed: Which images are for the test; the same for every training seed.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: The size is none of the three.
    """
    if size not in (8, 16, 32):
        raise ValueError(f"size must be 8, 16 or 32, found {size}")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits needs scikit-learn: pip install 'propkit[demo]'") from error
    raw = load_digits()
    images = torch.as_tensor(raw.images, dtype=torch.float32)[:, None] / _MAX
    if size > 8:
        images = F.interpolate(
            images,
            size=(size, size),
            mode=mode,
            **({"align_corners": False} if mode == "bilinear" else {}),
        )
    labels = torch.as_tensor(raw.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(split_seed))
    images, labels = images[order], labels[order]
    return ImageSet.from_tensors(
        f"digits-{size}x{size}",
        (images[_TEST:], labels[_TEST:]),
        (images[:_TEST], labels[:_TEST]),
        num_classes=10,
    )
