"""ProcResNet: residual networks whose channels change outside of the blocks, in projected convolutions.

Zaeemzadeh, Rahnavard & Shah, arXiv:1805.07477, Sec. 3.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from propkit.models.depth import blocks_per_stage
from propkit.models.resnet import EXPANSION, PreactivationBottleneck, check_widths, stage

PROJECTED = r"conv1|trans_conv\d"
"""The convolutions outside of the blocks: ``propkit.training.project(model, include=PROJECTED)``."""


class ProcResNet(nn.Module):
    r"""``conv1``, then three stages of n identity blocks with a 1x1 convolution of stride 2 between.

    All blocks keep their shape. No BN, ReLU or bias is between a stage and the convolutions
    ``trans_conv1`` and ``trans_conv2`` (the paper's conv*). Names: ``conv1``, ``layer1.0`` ...,
    ``trans_conv1``, ``layer2.0`` ..., ``trans_conv2``, ``layer3.0`` ..., ``bn``, ``relu``, ``fc``;
    ``layer\d\.\d+|trans_conv\d`` selects all maps between conv1 and bn.

    Args:
        blocks: n, the number of blocks in each stage.
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        widths: Widths of the three stages' bottlenecks; their maps have four times as many channels.
        erase_relu: Without the last ReLU of each block (`PreactivationBottleneck`).

    Raises:
        ValueError: ``widths`` are not three.
    """

    def __init__(
        self,
        blocks: int,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (16, 32, 64),
        erase_relu: bool = False,
    ) -> None:
        super().__init__()
        check_widths(widths)
        block = partial(PreactivationBottleneck, erase_relu=erase_relu)
        outs = [EXPANSION * width for width in widths]
        self.conv1 = nn.Conv2d(in_channels, outs[0], 3, padding=1, bias=False)
        self.layer1 = stage(block, blocks, outs[0], widths[0], stride=1)
        self.trans_conv1 = nn.Conv2d(outs[0], outs[1], 1, stride=2, bias=False)
        self.layer2 = stage(block, blocks, outs[1], widths[1], stride=1)
        self.trans_conv2 = nn.Conv2d(outs[1], outs[2], 1, stride=2, bias=False)
        self.layer3 = stage(block, blocks, outs[2], widths[2], stride=1)
        self.bn = nn.BatchNorm2d(outs[2])
        self.relu = nn.ReLU()
        self.fc = nn.Linear(outs[2], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, in_channels, H, W)``, H and W at least 4, to logits ``(N, num_classes)``."""
        x = self.trans_conv1(self.layer1(self.conv1(x)))
        x = self.layer3(self.trans_conv2(self.layer2(x)))
        out: Tensor = self.fc(self.relu(self.bn(x)).mean((2, 3)))
        return out


def procresnet(
    depth: int = 166,
    num_classes: int = 10,
    in_channels: int = 3,
    widths: Sequence[int] = (16, 32, 64),
    erase_relu: bool = False,
) -> ProcResNet:
    """ProcResNet-166 and its like; project its three convolutions while training it.

    The weights are PyTorch's defaults.

    Args:
        depth: 9n+4: 166, 274, 634, 1003 in the paper.
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        widths: Widths of the three stages' bottlenecks.
        erase_relu: Without the last ReLU of each block.

    Raises:
        ValueError: The depth is not 9n+4 with n >= 1, or ``widths`` are not three.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     sum(p.numel() for p in procresnet(166).parameters())
        1715018
    """
    return ProcResNet(blocks_per_stage(depth, 9, 4), num_classes, in_channels, widths, erase_relu)
