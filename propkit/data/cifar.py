"""CIFAR-10 in its binary layout, read from disk."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from propkit.data.imageset import ImageSet

FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILE = "test_batch.bin"

_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32
_LAYOUT = (
    f"the binary version of CIFAR-10 is a folder {FOLDER} with {TRAIN_FILES[0]} ... "
    f"{TRAIN_FILES[-1]} and {TEST_FILE}, each a multiple of {_RECORD} bytes"
)


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
    place = _locate(Path(folder))
    parts = [_read(place / name) for name in TRAIN_FILES]
    train = (torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts]))
    return ImageSet.from_tensors(
        "cifar10", train, _read(place / TEST_FILE), num_classes=10, flip=True
    )


def _locate(folder: Path) -> Path:
    if not folder.is_dir():
        kind = "a file" if folder.exists() else "no such folder"
        raise FileNotFoundError(f"{folder}: {kind}; {_LAYOUT}")
    names = (*TRAIN_FILES, TEST_FILE)
    missing: list[str] = []
    for place in (folder, folder / FOLDER):
        missing = [name for name in names if not (place / name).is_file()]
        if not missing:
            return place
        if len(missing) < len(names):
            raise FileNotFoundError(f"{place}: {', '.join(missing)} missing; {_LAYOUT}")
    if any((place / "data_batch_1").exists() for place in (folder, folder / "cifar-10-batches-py")):
        raise FileNotFoundError(f"{folder}: this is the Python (pickle) version; {_LAYOUT}")
    raise FileNotFoundError(f"{folder}: no batches there; {_LAYOUT}")


def _read(path: Path) -> tuple[Tensor, Tensor]:
    size = path.stat().st_size
    if size == 0 or size % _RECORD:
        raise ValueError(f"{path}: {size} bytes are not whole records; {_LAYOUT}")
    records = torch.from_numpy(np.fromfile(path, np.uint8).reshape(-1, _RECORD))
    labels = records[:, 0].long()
    if int(labels.max()) > 9:
        raise ValueError(f"{path}: label {int(labels.max())} in a file of labels 0 to 9; {_LAYOUT}")
    return records[:, 1:].reshape(-1, *_SHAPE), labels
