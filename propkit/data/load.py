"""The data named on a command line."""

import re

from propkit.data.cifar import cifar10
from propkit.data.digits import digits
from propkit.data.imageset import ImageSet

DIGITS_SIZE = 8
"""Pixels of plain ``digits``."""


def load(name: str) -> ImageSet:
    """An image set by name.

    Args:
        name: ``digits`` (8x8 pixels, as they are), ``digits8``, ``digits16``, ``digits32``, or a folder
            with CIFAR-10.

    Raises:
        FileNotFoundError: It is neither a name nor a folder with CIFAR-10.
        ImportError: scikit-learn is needed and not installed.
        ValueError: No such size of digits, or a file in the folder is damaged.
    """
    if match := re.fullmatch(r"digits(\d*)", name):
        return digits(int(match[1] or DIGITS_SIZE))
    try:
        return cifar10(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"--data takes digits, digits8, digits16, digits32 or a folder: {error}"
        ) from None
