"""Files of a store: replaced at once, or written in place."""

import contextlib
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from propkit.store.sync import sync_path


def replace_file(store: Path, file: Path, data: str | bytes, durable: bool = False) -> None:
    """Replace a file at once; it is prepared beside the store, since zarr warns of files that it does not know.

    Args:
        store: Where the file lies.
        file: Its path.
        data: Its content.
        durable: Wait until it is on the disk.
    """
    draft = f"{store.parent}/.{store.name}.draft"
    content = memoryview(data.encode() if isinstance(data, str) else data)
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            while content:  # a disk that is nearly full takes a part
                content = content[os.write(descriptor, content) :]
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(draft, file)  # noqa: PTH105 - at each commit
        if durable:
            sync_path(file.parent)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(draft)  # noqa: PTH108 - beside os.open
        raise


def write_at(file: str, rows: npt.NDArray[np.generic], offset: int, size: int | None) -> None:
    """Write contiguous rows in place, creating the file and giving it its size if need be."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if size is not None and size != rows.nbytes:
            os.ftruncate(descriptor, size)
        written = os.pwrite(descriptor, rows, offset)  # type: ignore[arg-type]  # any buffer
        while written < rows.nbytes:  # a disk that is nearly full takes a part
            written += os.pwrite(descriptor, rows.data.cast("B")[written:], offset + written)
    finally:
        os.close(descriptor)
