"""The residual counterpart of the plain network of 6n+2 layers.

arXiv:1703.01827, Sec. 5: shortcuts around two convolutions, by a 3x3 convolution where the shape changes.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from propkit.models.depth import blocks_per_stage
from propkit.models.plain import CifarNet, PlainBlock


class ResidualBlock(PlainBlock):
    """`PlainBlock` with its input added before the last ReLU, through a 3x3 Conv-BN where shapes change.

    Args:
        in_channels: Channels of the input ``(N, in_channels, H, W)``.
        out_channels: Channels of the convolutions.
        stride: Stride of the first convolution and of the shortcut's.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.shortcut = projection_shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to ``(N, out_channels, ceil(H / stride), ceil(W / stride))``."""
        branch = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu2(branch + self.shortcut(x))
        return out


def projection_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """A 3x3 convolution and batch norm where a block changes the shape, else the identity."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def residual(
    depth: int = 44,
    num_classes: int = 10,
    in_channels: int = 3,
    widths: Sequence[int] = (16, 32, 64),
) -> CifarNet:
    """`propkit.models.plain` with shortcuts, for comparison (arXiv:1703.01827, Sec. 5.1).

    The paper says that projections are 3x3; that each has a batch norm is our reading. They do not
    count in the depth.

    Args:
        depth: 6n+2.
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        widths: Channels of the three stages.

    Raises:
        ValueError: The depth is not 6n+2 with n >= 1, or ``widths`` are not three.
    """
    blocks = blocks_per_stage(depth, 6, 2)
    return CifarNet(blocks, num_classes, in_channels, widths, ResidualBlock)
