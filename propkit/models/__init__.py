"""The architectures that the papers train."""

from typing import TYPE_CHECKING

from propkit._lazy import publish

if TYPE_CHECKING:
    from propkit.models.imagenet import (
        ImageNet,
        PlainBottleneck,
        ResidualBottleneck,
        plain_imagenet,
        residual_imagenet,
    )
    from propkit.models.plain import CifarNet, PlainBlock, plain
    from propkit.models.plainnet import LeakyBlock, PlainNet, plainnet, plainnet_conv
    from propkit.models.procresnet import ProcResNet, procresnet
    from propkit.models.residual import ResidualBlock, residual
    from propkit.models.resnet import (
        PreactivationBottleneck,
        PreactivationNet,
        plain_bottleneck,
        resnet,
    )
    from propkit.models.three_layer import ThreeLayer, three_layer

__all__ = [
    "CifarNet",
    "ImageNet",
    "LeakyBlock",
    "PlainBlock",
    "PlainBottleneck",
    "PlainNet",
    "PreactivationBottleneck",
    "PreactivationNet",
    "ProcResNet",
    "ResidualBlock",
    "ResidualBottleneck",
    "ThreeLayer",
    "plain",
    "plain_bottleneck",
    "plain_imagenet",
    "plainnet",
    "plainnet_conv",
    "procresnet",
    "residual",
    "residual_imagenet",
    "resnet",
    "three_layer",
]

publish(
    __name__,
    {
        "CifarNet": "propkit.models.plain",
        "ImageNet": "propkit.models.imagenet",
        "LeakyBlock": "propkit.models.plainnet",
        "PlainBlock": "propkit.models.plain",
        "PlainBottleneck": "propkit.models.imagenet",
        "PlainNet": "propkit.models.plainnet",
        "PreactivationBottleneck": "propkit.models.resnet",
        "PreactivationNet": "propkit.models.resnet",
        "ProcResNet": "propkit.models.procresnet",
        "ResidualBlock": "propkit.models.residual",
        "ResidualBottleneck": "propkit.models.imagenet",
        "ThreeLayer": "propkit.models.three_layer",
        "plain": "propkit.models.plain",
        "plain_bottleneck": "propkit.models.resnet",
        "plain_imagenet": "propkit.models.imagenet",
        "plainnet": "propkit.models.plainnet",
        "plainnet_conv": "propkit.models.plainnet",
        "procresnet": "propkit.models.procresnet",
        "residual": "propkit.models.residual",
        "residual_imagenet": "propkit.models.imagenet",
        "resnet": "propkit.models.resnet",
        "three_layer": "propkit.models.three_layer",
    },
)
