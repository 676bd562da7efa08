"""Small image sets, held in memory as tensors."""

from typing import TYPE_CHECKING

from propkit._lazy import publish

if TYPE_CHECKING:
    from propkit.data.augmentation import Augmentation
    from propkit.data.batches import batches
    from propkit.data.cifar import cifar10, cifar100
    from propkit.data.digits import digits
    from propkit.data.folder import image_folder
    from propkit.data.imageset import ImageSet
    from propkit.data.load import load

__all__ = [
    "Augmentation",
    "ImageSet",
    "batches",
    "cifar10",
    "cifar100",
    "digits",
    "image_folder",
    "load",
]

publish(
    __name__,
    {
        "Augmentation": "propkit.data.augmentation",
        "ImageSet": "propkit.data.imageset",
        "batches": "propkit.data.batches",
        "cifar10": "propkit.data.cifar",
        "cifar100": "propkit.data.cifar",
        "digits": "propkit.data.digits",
        "image_folder": "propkit.data.folder",
        "load": "propkit.data.load",
    },
)
