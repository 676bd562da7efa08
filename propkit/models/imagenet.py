"""Plain and residual networks for large images, of 34 and 101 layers.

arXiv:1703.01827, Table 1, after arXiv:1512.03385, Table 1: a 3x3 convolution of 1024 channels before the
classifier and bottlenecks in the order 1x1, 1x1, 3x3 see to it that no layer has more kernels than weights in
one, so that all kernels can be orthonormal.
"""

from torch import Tensor, nn

from propkit.models.plain import Block, PlainBlock
from propkit.models.residual import ResidualBlock, projection_shortcut

_WIDTHS = (64, 128, 256, 512)
_LAST = 1024


class PlainBottleneck(nn.Module):
    """Conv-BN-ReLU three times, 1x1, 1x1 and 3x3; the last has four times the channels.

    Args:
        in_channels: Channels of the input ``(N, in_channels, H, W)``.
        out_channels: Channels of the output, a multiple of 4.
        stride: Stride of the first convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        width = out_channels // 4
        self.conv1 = nn.Conv2d(in_channels, width, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, out_channels, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu3 = nn.ReLU()

    def branch(self, x: Tensor) -> Tensor:
        """All but the last ReLU."""
        x = self.relu1(self.bn1(self.conv1(x)))
        out: Tensor = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(x)))))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, C, H, W)`` to ``(N, out_channels, ceil(H / stride), ceil(W / stride))``."""
        out: Tensor = self.relu3(self.branch(x))
        return out


class ResidualBottleneck(PlainBottleneck):
    """`PlainBottleneck` with its input added before the last ReLU; arguments as there."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.shortcut = projection_shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, C, H, W)`` to ``(N, out_channels, ceil(H / stride), ceil(W / stride))``."""
        out: Tensor = self.relu3(self.branch(x) + self.shortcut(x))
        return out


_NETWORKS: dict[int, tuple[tuple[int, ...], int, Block, Block]] = {
    34: ((3, 4, 6, 3), 1, PlainBlock, ResidualBlock),
    101: ((3, 4, 23, 3), 4, PlainBottleneck, ResidualBottleneck),
}


class ImageNet(nn.Module):
    r"""7x7 Conv-BN-ReLU and pooling, four stages, 3x3 Conv-BN-ReLU, global average pooling, ``fc``.

    Names: ``conv1``, ``bn1``, ``relu1``, ``pool``, ``layer1.0`` ... ``layer4.2``, ``conv2``, ``bn2``,
    ``relu2``, ``fc``; ``layer\d\.\d+`` selects the blocks. The first block of stages 2 to 4 has
    stride 2.

    Args:
        depth: 34 or 101.
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        shortcuts: Whether the blocks have them.

    Raises:
        ValueError: The depth is neither.
    """

    def __init__(
        self, depth: int, num_classes: int = 1000, in_channels: int = 3, shortcuts: bool = False
    ) -> None:
        super().__init__()
        if depth not in _NETWORKS:
            raise ValueError(f"depth must be 34 or 101, found {depth}")
        counts, expansion, plain, residual = _NETWORKS[depth]
        block = residual if shortcuts else plain
        self.conv1 = nn.Conv2d(in_channels, _WIDTHS[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        self.relu1 = nn.ReLU()
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = _WIDTHS[0]
        for i, (count, width) in enumerate(zip(counts, _WIDTHS, strict=True)):
            out = expansion * width
            rest = [block(out, out, 1) for _ in range(count - 1)]
            blocks = nn.Sequential(block(channels, out, 2 if i else 1), *rest)
            self.add_module(f"layer{i + 1}", blocks)
            channels = out
        self.conv2 = nn.Conv2d(channels, _LAST, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(_LAST)
        self.relu2 = nn.ReLU()
        self.fc = nn.Linear(_LAST, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, in_channels, H, W)`` to logits ``(N, num_classes)``; the paper's are 224 x 224."""
        x = self.pool(self.relu1(self.bn1(self.conv1(x))))
        for i in range(len(_WIDTHS)):
            x = self.get_submodule(f"layer{i + 1}")(x)
        x = self.relu2(self.bn2(self.conv2(x)))
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


def plain_imagenet(depth: int = 34, num_classes: int = 1000, in_channels: int = 3) -> ImageNet:
    """The plain network of arXiv:1703.01827, Table 1.

    As in the network's name, the convolution before the classifier does not count in the depth.
    Widths are those of arXiv:1512.03385, and the stride of a bottleneck is in its first convolution:
    our reading of the table. The weights are PyTorch's defaults.

    Args:
        depth: 34 or 101.
        num_classes: Number of outputs.
        in_channels: Channels of the images.

    Raises:
        ValueError: The depth is neither.
    """
    return ImageNet(depth, num_classes, in_channels)


def residual_imagenet(depth: int = 34, num_classes: int = 1000, in_channels: int = 3) -> ImageNet:
    """`plain_imagenet` with shortcuts, by 3x3 Conv-BN where shapes change.

    Args:
        depth: 34 or 101.
        num_classes: Number of outputs.
        in_channels: Channels of the images.

    Raises:
        ValueError: The depth is neither.
    """
    return ImageNet(depth, num_classes, in_channels, shortcuts=True)
