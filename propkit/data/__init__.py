"""Small image sets, held in memory as tensors."""

from typing import TYPE_CHECKING

from propkit._lazy import publish

if TYPE_CHECKING:
    from propkit.data.batches import batches
    from propkit.data.cifar import cifar10
    from propkit.data.digits import digits
    from propkit.data.imageset import ImageSet
    from propkit.data.load import load

__all__ = ["ImageSet", "batches", "cifar10", "digits", "load"]

publish(
    __name__,
    {
        "ImageSet": "propkit.data.imageset",
        "batches": "propkit.data.batches",
        "cifar10": "propkit.data.cifar",
        "digits": "propkit.data.digits",
        "load": "propkit.data.load",
    },
)
