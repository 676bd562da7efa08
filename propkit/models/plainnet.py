"""PlainNet: very deep networks without shortcuts that train by batch norm, leaky ReLU and max-norm.

Oyedotun et al., "Going Deeper With Neural Networks Without Skip Connections", ICPR 2020. β, widths and
the limit of the max-norm are not in the published slides; the defaults are ours.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from propkit.models.depth import blocks_per_stage
from propkit.models.plain import CifarNet, PlainBlock


class PlainNet(nn.Module):
    """Linear-BN-LeakyReLU, depth − 1 times, and a linear classifier.

    Names: ``layers.0.linear``, ``layers.0.bn``, ``layers.0.activation`` ..., ``fc``.

    Args:
        depth: Number of linear layers, at least 2.
        in_features: Numbers per sample, whatever its shape.
        width: Units of each layer.
        num_classes: Number of outputs.
        slope: β, the slope of the leaky ReLU below 0.
        batch_norm: Whether there is a batch norm before each activation function.

    Raises:
        ValueError: The depth is below 2.
    """

    def __init__(
        self,
        depth: int,
        in_features: int,
        width: int,
        num_classes: int,
        slope: float,
        batch_norm: bool,
    ) -> None:
        super().__init__()
        if depth < 2:
            raise ValueError(f"depth must be at least 2, found {depth}")
        self.layers = nn.Sequential(
            *(
                _layer(in_features if i == 0 else width, width, slope, batch_norm)
                for i in range(depth - 1)
            )
        )
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Samples ``(N, ...)`` to logits ``(N, num_classes)``."""
        out: Tensor = self.fc(self.layers(x.flatten(1)))
        return out


def _layer(fan_in: int, width: int, slope: float, batch_norm: bool) -> nn.Sequential:
    modules: OrderedDict[str, nn.Module] = OrderedDict(linear=nn.Linear(fan_in, width))
    if batch_norm:
        modules["bn"] = nn.BatchNorm1d(width)
    modules["activation"] = nn.LeakyReLU(slope)
    return nn.Sequential(modules)


class LeakyBlock(PlainBlock):
    """`PlainBlock` with leaky ReLUs.

    Args:
        in_channels: Channels of the input ``(N, in_channels, H, W)``.
        out_channels: Channels of both convolutions.
        stride: Stride of the first convolution.
        slope: β.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, slope: float = 0.5
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.relu1: nn.Module = nn.LeakyReLU(slope)
        self.relu2: nn.Module = nn.LeakyReLU(slope)


def plainnet(
    depth: int = 100,
    in_features: int = 256,
    width: int = 64,
    num_classes: int = 10,
    slope: float = 0.5,
    batch_norm: bool = True,
) -> PlainNet:
    """The fully connected PlainNet, of 100 layers in the paper.

    The paper's weights are uniform, `propkit.training.initialize(model, "he_uniform")`, and kept
    within max-norm, `propkit.training.max_norm`. Here they are PyTorch's defaults.

    Args:
        depth: Number of linear layers.
        in_features: Numbers per sample; 256 for USPS.
        width: Units of each layer.
        num_classes: Number of outputs.
        slope: β. Below 0.5 a hundred layers with batch norm have exploding gradients.
        batch_norm: False for the paper's "naive" network.

    Raises:
        ValueError: The depth is below 2.
    """
    return PlainNet(depth, in_features, width, num_classes, slope, batch_norm)


def plainnet_conv(
    depth: int = 50,
    num_classes: int = 10,
    in_channels: int = 3,
    widths: Sequence[int] = (16, 32, 64),
    slope: float = 0.5,
) -> CifarNet:
    """The convolutional PlainNet: `propkit.models.plain` with leaky ReLUs.

    With 50 layers it has 755 802 parameters; the paper says 0.72 million and does not give widths.

    Args:
        depth: 6n+2; 50 in the paper.
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        widths: Channels of the three stages.
        slope: β.

    Raises:
        ValueError: The depth is not 6n+2 with n >= 1, or ``widths`` are not three.
    """
    block = partial(LeakyBlock, slope=slope)
    net = CifarNet(blocks_per_stage(depth, 6, 2), num_classes, in_channels, widths, block)
    net.relu1 = nn.LeakyReLU(slope)
    return net
