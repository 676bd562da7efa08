"""Images from a folder that has one sub-folder for each class."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from propkit.data.imageset import ImageSet

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
)
TEST_NAMES = ("test", "val", "valid", "validation")
TEST_SHARE = 0.2

_LAYOUT = "an image folder has one sub-folder of images per class, or train/CLASS/ and test/CLASS/ (or val/CLASS/)"


def image_folder(
    folder: str | os.PathLike[str], size: int | None = None, split_seed: int = 0
) -> ImageSet:
    """Any labelled images: the classes are the sub-folders, in the order of their names.

    Images are grey if all of them are, else RGB, and stay uint8 in memory.

    Args:
        folder: It holds ``train/CLASS/`` and ``test/CLASS/`` (or ``val/CLASS/``), or ``CLASS/`` alone: then
            every fifth image of a class, chosen at random, is for the test.
        size: Height and width: larger or smaller images are scaled by their shorter side and cut at
            their centre. None: they must have one size.
        split_seed: Which images are for the test, where the folder does not say so.

    Raises:
        ImportError: Pillow is not installed.
        FileNotFoundError: There is no such folder, or it holds no images in sub-folders.
        ValueError: The images differ in size and ``size`` is None, a file is no image, or the test
            images have a class of their own.
    """
    folder = Path(folder)
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1, found {size}")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; {_LAYOUT}")
    try:
        import PIL  # noqa: F401 - is it there?
    except ImportError as error:
        raise ImportError(
            "a folder of images needs Pillow: pip install 'propkit[images]'"
        ) from error
    train, test, classes = _listed(folder, split_seed)
    grey = all(_is_grey(path) for path, _ in (*train, *test))
    shape: dict[tuple[int, ...], Path] = {}
    parts = [_read(files, grey, size, shape) for files in (train, test)]
    return ImageSet.from_tensors(folder.resolve().name, parts[0], parts[1], len(classes), flip=True)


_Files = Sequence[tuple[Path, int]]


def _listed(folder: Path, split_seed: int) -> tuple[_Files, _Files, list[str]]:
    """Files with their classes' numbers, to train on and to test on, and the names of the classes."""
    test_folder = next((folder / n for n in TEST_NAMES if (folder / n).is_dir()), None)
    if (folder / "train").is_dir() and test_folder is not None:
        train, test = _classes(folder / "train"), _classes(test_folder)
        if extra := sorted(set(test) - set(train)):
            raise ValueError(
                f"{test_folder}: class {extra[0]!r} is not in {folder / 'train'}; {_LAYOUT}"
            )
    else:
        train, test = {}, {}
        source = np.random.default_rng(split_seed)
        for name, files in _classes(folder).items():
            order = source.permutation(len(files))
            count = max(1, round(TEST_SHARE * len(files))) if len(files) > 1 else 0
            test[name] = [files[i] for i in sorted(order[:count])]
            train[name] = [files[i] for i in sorted(order[count:])]
    names = sorted(train)
    if not any(test.values()):
        raise FileNotFoundError(f"{folder}: no images to test on; {_LAYOUT}")
    return (
        [(file, k) for k, name in enumerate(names) for file in train[name]],
        [(file, k) for k, name in enumerate(names) for file in test.get(name, [])],
        names,
    )


def _classes(folder: Path) -> dict[str, list[Path]]:
    found = {
        inner.name: sorted(f for f in inner.iterdir() if f.suffix.lower() in SUFFIXES)
        for inner in sorted(folder.iterdir())
        if inner.is_dir()
    }
    found = {name: files for name, files in found.items() if files}
    if not found:
        raise FileNotFoundError(f"{folder}: no images in sub-folders; {_LAYOUT}")
    return found


def _is_grey(path: Path) -> bool:
    with _opened(path) as image:
        return image.mode in ("1", "L")


def _opened(path: Path) -> "Image":
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(path)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is no image that Pillow can read") from error


def _read(
    files: _Files, grey: bool, size: int | None, shape: dict[tuple[int, ...], Path]
) -> tuple[Tensor, Tensor]:
    """Images and labels; ``shape`` is that of the first image of all, with its path."""
    from PIL import ImageOps

    images = []
    for path, _ in files:
        with _opened(path) as opened:
            image = opened.convert("L" if grey else "RGB")
        if size is not None and image.size != (size, size):
            image = ImageOps.fit(image, (size, size))
        pixels = np.asarray(image)
        first = next(iter(shape), pixels.shape)
        if pixels.shape != first:
            raise ValueError(
                f"images must have one size, found {first[1]}x{first[0]} ({shape[first]}) and "
                f"{pixels.shape[1]}x{pixels.shape[0]} ({path}); scale them with size= (--image-size)"
            )
        shape.setdefault(first, path)
        images.append(pixels)
    stacked = torch.from_numpy(np.stack(images))
    planes = stacked[:, None] if grey else stacked.permute(0, 3, 1, 2).contiguous()
    return planes, torch.tensor([label for _, label in files])
