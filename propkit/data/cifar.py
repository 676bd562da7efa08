"""CIFAR-10 and CIFAR-100 in their binary layout, read from disk."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from propkit.data.imageset import ImageSet

FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILE = "test_batch.bin"

_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Layout:
    """How one of the two lies on the disk.

    Attributes:
        name: What it is called here.
        title: And by its authors.
        folder: That of the release.
        train: Names of the files with images to train on.
        test: Name of the file with images to test on.
        labels: Bytes of labels before the pixels of each record; the last one counts.
        classes: Number of classes.
        pickled: Folder and a file of the release for Python, which is not read here.
    """

    name: str
    title: str
    folder: str
    train: tuple[str, ...]
    test: str
    labels: int
    classes: int
    pickled: tuple[str, str]

    @property
    def files(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.train, self.test)

    @property
    def record(self) -> int:
        """Bytes of one image with its labels."""
        return self.labels + _PIXELS

    def __str__(self) -> str:
        train = " ... ".join(dict.fromkeys((self.train[0], self.train[-1])))
        return (
            f"the binary version of {self.title} is a folder {self.folder} with {train} and "
            f"{self.test}, each a multiple of {self.record} bytes"
        )


CIFAR10 = Layout(
    "cifar10", "CIFAR-10", FOLDER, TRAIN_FILES, TEST_FILE, 1, 10,
    ("cifar-10-batches-py", "data_batch_1"),
)  # fmt: skip
CIFAR100 = Layout(
    "cifar100", "CIFAR-100", "cifar-100-binary", ("train.bin",), "test.bin", 2, 100,
    ("cifar-100-python", "train"),
)  # fmt: skip


def cifar10(folder: str | os.PathLike[str]) -> ImageSet:
    """CIFAR-10: ten classes of 32x32 colour photographs, 50000 to train on and 10000 to test on.

    Every record of a file is one byte of label, then 3072 bytes: red, green and blue planes, row by
    row. Files of fewer records than the original's are read too. The images stay uint8 in memory.

    Args:
        folder: ``cifar-10-batches-bin``, or the folder that holds it.

    Raises:
        FileNotFoundError: The folder or some of its files are not there.
        ValueError: A file has not the size of whole records, or a label is above 9.
    """
    return read(CIFAR10, folder)


def cifar100(folder: str | os.PathLike[str]) -> ImageSet:
    """CIFAR-100: as `cifar10`, but with a hundred classes, whose label is each record's second byte.

    Args:
        folder: ``cifar-100-binary``, or the folder that holds it.

    Raises:
        FileNotFoundError: The folder or some of its files are not there.
        ValueError: A file has not the size of whole records, or a label is above 99.
    """
    return read(CIFAR100, folder)


def read(layout: Layout, folder: str | os.PathLike[str]) -> ImageSet:
    """Either of the two; see `cifar10`."""
    place = _locate(layout, Path(folder))
    parts = [_read(layout, place / name) for name in layout.train]
    train = (torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts]))
    test = _read(layout, place / layout.test)
    return ImageSet.from_tensors(layout.name, train, test, layout.classes, flip=True)


def holds(layout: Layout, folder: Path) -> bool:
    """Whether a folder has any of the files, directly or in the release's folder, or those of Python."""
    inner, file = layout.pickled
    binary = [place / n for place in (folder, folder / layout.folder) for n in layout.files]
    pickled = [folder / inner / file, *([folder / file] if folder.name == inner else [])]
    return any(path.is_file() for path in (*binary, *pickled))


def _locate(layout: Layout, folder: Path) -> Path:
    if not folder.is_dir():
        kind = "a file" if folder.exists() else "no such folder"
        raise FileNotFoundError(f"{folder}: {kind}; {layout}")
    for place in (folder, folder / layout.folder):
        missing = [name for name in layout.files if not (place / name).is_file()]
        if not missing:
            return place
        if len(missing) < len(layout.files):
            raise FileNotFoundError(f"{place}: {', '.join(missing)} missing; {layout}")
    inner, file = layout.pickled
    if any((place / file).exists() for place in (folder, folder / inner)):
        raise FileNotFoundError(f"{folder}: this is the Python (pickle) version; {layout}")
    raise FileNotFoundError(f"{folder}: no batches there; {layout}")


def _read(layout: Layout, path: Path) -> tuple[Tensor, Tensor]:
    size = path.stat().st_size
    if size == 0 or size % layout.record:
        raise ValueError(f"{path}: {size} bytes are not whole records; {layout}")
    records = torch.from_numpy(np.fromfile(path, np.uint8).reshape(-1, layout.record))
    labels = records[:, layout.labels - 1].long()
    if int(labels.max()) >= layout.classes:
        raise ValueError(
            f"{path}: label {int(labels.max())} in a file of labels 0 to {layout.classes - 1}; "
            f"{layout}"
        )
    return records[:, layout.labels :].reshape(-1, *_SHAPE), labels
