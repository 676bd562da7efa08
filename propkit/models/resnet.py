"""Residual networks of pre-activation bottlenecks for small images, and the same without shortcuts.

He et al., arXiv:1603.05027; as trained in Zaeemzadeh et al., arXiv:1805.07477, Sec. 4.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from propkit.models.depth import blocks_per_stage

EXPANSION = 4
"""Channels of a bottleneck's output over its width."""
_STAGES = 3


class PreactivationBottleneck(nn.Module):
    """BN-ReLU-1x1, BN-ReLU-3x3 with the block's stride, BN-ReLU-1x1, added to the input.

    Where shapes change, the input passes a BN-ReLU-1x1 of its own.

    Args:
        in_channels: Channels of the input ``(N, in_channels, H, W)``.
        width: Channels of the first two convolutions; the output has four times as many.
        stride: Stride of the 3x3 convolution.
        shortcut: Add the input; without, this is the plain counterpart.
        erase_relu: Leave out the block's last ReLU, that before the third convolution (EraseReLU,
            Dong et al., arXiv:1709.07634; which one that is with pre-activation, is our reading).
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int = 1,
        shortcut: bool = True,
        erase_relu: bool = False,
    ) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.relu3 = nn.Identity() if erase_relu else nn.ReLU()
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.shortcut: nn.Module | None = nn.Identity() if shortcut else None
        if shortcut and (stride != 1 or in_channels != out_channels):
            self.shortcut = nn.Sequential(
                nn.BatchNorm2d(in_channels),
                nn.ReLU(),
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, C, H, W)`` to ``(N, 4 width, ceil(H / stride), ceil(W / stride))``."""
        out = self.conv1(self.relu1(self.bn1(x)))
        out = self.conv2(self.relu2(self.bn2(out)))
        out = self.conv3(self.relu3(self.bn3(out)))
        result: Tensor = out if self.shortcut is None else out + self.shortcut(x)
        return result


class PreactivationNet(nn.Module):
    r"""3x3 Conv-BN-ReLU, three stages of n bottlenecks, BN-ReLU, global average pooling, ``fc``.

    The first block of the second and of the third stage has stride 2. Names: ``conv1``, ``bn1``,
    ``relu1``, ``layer1.0`` ... ``layer3.<n-1>``, ``bn2``, ``relu2``, ``fc``.

    Args:
        blocks: n, the number of blocks in each stage.
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        widths: Widths of the three stages' bottlenecks; the first convolution has as many
            channels as the first.
        shortcut: As in `PreactivationBottleneck`.
        erase_relu: As in `PreactivationBottleneck`.

    Raises:
        ValueError: ``widths`` are not three.
    """

    def __init__(
        self,
        blocks: int,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (16, 32, 64),
        shortcut: bool = True,
        erase_relu: bool = False,
    ) -> None:
        super().__init__()
        check_widths(widths)
        block = partial(PreactivationBottleneck, shortcut=shortcut, erase_relu=erase_relu)
        outs = [EXPANSION * width for width in widths]
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu1 = nn.ReLU()
        self.layer1 = stage(block, blocks, widths[0], widths[0], stride=1)
        self.layer2 = stage(block, blocks, outs[0], widths[1], stride=2)
        self.layer3 = stage(block, blocks, outs[1], widths[2], stride=2)
        self.bn2 = nn.BatchNorm2d(outs[2])
        self.relu2 = nn.ReLU()
        self.fc = nn.Linear(outs[2], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, in_channels, H, W)``, H and W at least 4, to logits ``(N, num_classes)``."""
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        out: Tensor = self.fc(self.relu2(self.bn2(x)).mean((2, 3)))
        return out


def stage(
    block: "partial[PreactivationBottleneck]",
    count: int,
    in_channels: int,
    width: int,
    stride: int,
) -> nn.Sequential:
    """`count` blocks, the first of which has `in_channels` and the stride."""
    rest = [block(EXPANSION * width, width) for _ in range(count - 1)]
    return nn.Sequential(block(in_channels, width, stride), *rest)


def check_widths(widths: Sequence[int]) -> None:
    """Refuse widths that are not three."""
    if len(widths) != _STAGES:
        raise ValueError(f"widths are the channels of three stages, found {tuple(widths)}")


def resnet(
    depth: int = 164,
    num_classes: int = 10,
    in_channels: int = 3,
    widths: Sequence[int] = (16, 32, 64),
    erase_relu: bool = False,
) -> PreactivationNet:
    """ResNet-164 and its like, of arXiv:1805.07477.

    As in the authors' PyTorch code: the stride of a stage is in its first 3x3 convolution (their code
    for Chainer has it in the 1x1 before), and BN-ReLU follows the first convolution. The weights are
    PyTorch's defaults.

    Args:
        depth: 9n+2: 20, 83, 164, 272, 632, 1001 in the paper.
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        widths: Widths of the three stages' bottlenecks.
        erase_relu: Without the last ReLU of each block.

    Raises:
        ValueError: The depth is not 9n+2 with n >= 1, or ``widths`` are not three.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     sum(p.numel() for p in resnet(164).parameters())
        1703706
    """
    blocks = blocks_per_stage(depth, 9, 2)
    return PreactivationNet(blocks, num_classes, in_channels, widths, erase_relu=erase_relu)


def plain_bottleneck(
    depth: int = 164,
    num_classes: int = 10,
    in_channels: int = 3,
    widths: Sequence[int] = (16, 32, 64),
    erase_relu: bool = False,
) -> PreactivationNet:
    """The plain counterpart of `resnet`: the same without shortcuts ("Plain" in arXiv:1805.07477).

    Args:
        depth: 9n+2: 20, 83, 164 in the paper, the last of which diverges.
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        widths: Widths of the three stages' bottlenecks.
        erase_relu: Without the last ReLU of each block.

    Raises:
        ValueError: As for `resnet`.
    """
    blocks = blocks_per_stage(depth, 9, 2)
    return PreactivationNet(
        blocks, num_classes, in_channels, widths, shortcut=False, erase_relu=erase_relu
    )
