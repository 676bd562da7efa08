"""The small network of arXiv:1805.07477, Fig. 2: one Conv-ReLU whose numbers of channels are free."""

from torch import Tensor, nn


class ThreeLayer(nn.Module):
    """1x1 Conv-ReLU, 3x3 Conv-ReLU from c to d channels, 1x1 convolution, global average pooling.

    The outer convolutions only change the number of channels. Names: ``layer1.conv``, ``layer2.conv``
    ..., ``conv3``; ``layer2`` is the Conv-ReLU that is measured.

    Args:
        c: Channels that the second layer reads.
        d: Channels that it makes.
        num_classes: Number of outputs.
        in_channels: Channels of the images.
    """

    def __init__(self, c: int, d: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.layer1 = _conv_relu(in_channels, c, 1)
        self.layer2 = _conv_relu(c, d, 3)
        self.conv3 = nn.Conv2d(d, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, in_channels, H, W)`` to logits ``(N, num_classes)``."""
        out: Tensor = self.conv3(self.layer2(self.layer1(x))).mean((2, 3))
        return out


def _conv_relu(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    block = nn.Sequential()
    block.add_module(
        "conv", nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    )
    block.add_module("relu", nn.ReLU())
    return block


def three_layer(c: int, d: int, num_classes: int = 10, in_channels: int = 3) -> ThreeLayer:
    """The network of arXiv:1805.07477, Fig. 2.

    Kernel sizes and the head are not in the paper's text; these are ours. There a ReLU follows the third
    convolution, too, which is the classifier here. The weights are PyTorch's defaults.

    Args:
        c: Channels that the second layer reads.
        d: Channels that it makes.
        num_classes: Number of outputs.
        in_channels: Channels of the images.

    Raises:
        ValueError: A number of channels is not positive.
    """
    if min(c, d) < 1:
        raise ValueError(f"numbers of channels must be at least 1, found c={c}, d={d}")
    return ThreeLayer(c, d, num_classes, in_channels)
