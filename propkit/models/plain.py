"""The plain network of 6n+2 layers for small images: Conv-BN-ReLU throughout, no shortcuts.

arXiv:1703.01827, Sec. 5.1, after the CIFAR networks of arXiv:1512.03385, Sec. 4.2.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from propkit.models.depth import blocks_per_stage

Block = Callable[[int, int, int], nn.Module]
"""Makes a building block from (in_channels, out_channels, stride)."""

_STAGES = 3


class PlainBlock(nn.Module):
    """Two 3x3 Conv-BN-ReLU, the first with the block's stride: a residual block less its shortcut.

    Args:
        in_channels: Channels of the input ``(N, in_channels, H, W)``.
        out_channels: Channels of both convolutions.
        stride: Stride of the first convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1: nn.Module = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2: nn.Module = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to ``(N, out_channels, ceil(H / stride), ceil(W / stride))``."""
        x = self.relu1(self.bn1(self.conv1(x)))
        out: Tensor = self.relu2(self.bn2(self.conv2(x)))
        return out


class CifarNet(nn.Module):
    r"""A 3x3 Conv-BN-ReLU stem, three stages of n building blocks, global average pooling, ``fc``.

    The first block of the second and of the third stage has stride 2. Names: ``conv1``, ``bn1``,
    ``relu1``, ``layer1.0`` ... ``layer3.<n-1>``, ``fc``; ``layer\d\.\d+`` selects the blocks.

    Args:
        blocks: n, the number of building blocks in each stage.
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        widths: Channels of the three stages; the stem has those of the first.
        block: The building block; a network with shortcuts differs in this argument alone.
    """

    def __init__(
        self,
        blocks: int,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (16, 32, 64),
        block: Block = PlainBlock,
    ) -> None:
        super().__init__()
        if len(widths) != _STAGES:
            raise ValueError(f"widths are the channels of three stages, found {tuple(widths)}")
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu1: nn.Module = nn.ReLU()
        self.layer1 = _stage(block, blocks, widths[0], widths[0], stride=1)
        self.layer2 = _stage(block, blocks, widths[0], widths[1], stride=2)
        self.layer3 = _stage(block, blocks, widths[1], widths[2], stride=2)
        self.fc = nn.Linear(widths[2], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, in_channels, H, W)``, H and W at least 4, to logits ``(N, num_classes)``."""
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


def _stage(block: Block, count: int, in_channels: int, width: int, stride: int) -> nn.Sequential:
    rest = [block(width, width, 1) for _ in range(count - 1)]
    return nn.Sequential(block(in_channels, width, stride), *rest)


def plain(
    depth: int = 44,
    num_classes: int = 10,
    in_channels: int = 3,
    widths: Sequence[int] = (16, 32, 64),
) -> CifarNet:
    """The plain network of arXiv:1703.01827, Sec. 5.1, of ``depth`` layers that have weights.

    The weights are PyTorch's defaults; `propkit.training.initialize` sets those of the paper.

    Args:
        depth: 6n+2: the stem, 6n convolutions in 3n building blocks, the classifier.
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        widths: Channels of the three stages.

    Raises:
        ValueError: The depth is not 6n+2 with n >= 1, or ``widths`` are not three.

    Example:
        >>> sum(p.numel() for p in plain(44).parameters())
        658586
    """
    return CifarNet(blocks_per_stage(depth, 6, 2), num_classes, in_channels, widths)
