"""The data named on a command line."""

import os
import re
from pathlib import Path

from propkit.data.cifar import CIFAR10, CIFAR100, Layout, holds, read
from propkit.data.digits import digits
from propkit.data.folder import image_folder
from propkit.data.imageset import ImageSet

DIGITS_SIZE = 8
"""Pixels of plain ``digits``."""

VARIABLE = "PROPKIT_DATA"
"""Environment variable with the folders that data sets are looked for in, separated as in PATH."""

_USUAL = (".", "data", "datasets", "~/data", "~/datasets", "~/.cache/propkit")
_NAMED = {layout.name: layout for layout in (CIFAR10, CIFAR100)}


def load(name: str, size: int | None = None) -> ImageSet:
    """An image set by name.

    Args:
        name: ``digits`` (8x8 pixels, as they are), ``digits8``, ``digits16``, ``digits32``; ``cifar10`` or
            ``cifar100``, looked for in the folders of the environment variable PROPKIT_DATA and in the
            usual ones; or a folder with either, or with a sub-folder of images for each class.
        size: Scale the images of a folder of classes to so many pixels: see
            `propkit.data.image_folder`.

    Raises:
        FileNotFoundError: It is neither a name nor such a folder, or CIFAR is in none of the places.
        ImportError: scikit-learn or Pillow is needed and not installed.
        ValueError: No such size of digits, a size where none is taken, or damaged files.
    """
    folder = Path(name).expanduser()
    layout = _NAMED.get(name) or next((x for x in _NAMED.values() if holds(x, folder)), None)
    digit = re.fullmatch(r"digits(\d*)", name)
    if size is not None and (digit or layout):
        raise ValueError(f"a size is for images in a folder of classes, not for {name!r}")
    if digit:
        return digits(int(digit[1] or DIGITS_SIZE))
    if layout is not None:
        return read(layout, _found(layout) if name in _NAMED else folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"--data takes digits, digits8, digits16, digits32, cifar10, cifar100 or a folder; "
            f"{name!r}: no such folder"
        )
    try:
        return image_folder(folder, size)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}. Or {CIFAR10}") from None


def places() -> list[Path]:
    """The folders that data sets are looked for in, in this order."""
    named = [part for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part]
    return [Path(part).expanduser() for part in (*named, *_USUAL)]


def _found(layout: Layout) -> Path:
    for place in places():
        # A plain name such as train.bin may be anything's, so the release's folder is asked for.
        if (place / layout.folder).is_dir():
            return place / layout.folder
        if place.name == layout.folder and place.is_dir():
            return place
        if (place / layout.pickled[0]).is_dir():  # which reading it will say
            return place
    looked = ", ".join(str(place) for place in places())
    raise FileNotFoundError(
        f"{layout.title} is not here: there is no folder {layout.folder} in {looked}. Nothing is "
        f"downloaded: get the binary version from its authors, unpack it, and say where it is with "
        f"--data FOLDER or {VARIABLE}=FOLDER; {layout}"
    )
