"""Small convolutional networks and their kin."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


class UNet(nn.Module):
    """Encoder and decoder with concatenations, a transposed convolution and in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True))
        self.down2 = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(inplace=True))
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.merge = nn.Sequential(nn.Conv2d(8, 4, 3, padding=1), nn.ReLU(inplace=True))
        self.out = nn.Conv2d(4, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        return self.out(self.merge(torch.cat([self.up(second), first], 1)))


class Dimensions(nn.Module):
    """1-D, 2-D and 3-D convolutions, their transposes, groups, dilation and a bilinear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3 = nn.Conv3d(2, 4, 3, padding=1, groups=2)
        self.up3 = nn.ConvTranspose3d(4, 2, 2, stride=2, groups=2)
        self.conv2 = nn.Conv2d(2, 3, 3, dilation=2)
        self.up2 = nn.ConvTranspose2d(3, 2, 3)
        self.conv1 = nn.Conv1d(2, 4, 3, padding="same")
        self.up1 = nn.ConvTranspose1d(4, 3, 3)
        self.bilinear = nn.Bilinear(3, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up3(torch.tanh(self.conv3(x))).mean(2)
        x = self.up2(torch.tanh(self.conv2(x))).mean(2)
        x = self.up1(torch.tanh(self.conv1(x))).mean(2)
        return self.bilinear(x, x)


class MixerBlock(nn.Module):
    """Mixes tokens, then channels, each with a skip connection."""

    def __init__(self, tokens: int, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.tokens = nn.Sequential(nn.Linear(tokens, 8), nn.GELU(), nn.Linear(8, tokens))
        self.channels = nn.Sequential(nn.Linear(channels, 8), nn.GELU(), nn.Linear(8, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    """An MLP-mixer on patches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 4, stride=4)
        self.blocks = nn.Sequential(MixerBlock(4, 6), MixerBlock(4, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x).flatten(2).transpose(1, 2)).mean(1))


class DenseLayer(nn.Module):
    """BN-ReLU-Conv twice on the concatenation of all that came before."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 8, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, growth, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        x = self.conv1(self.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(self.relu(self.norm2(x)))


class DenseNet(nn.Module):
    """A dense block, whose layers receive a list."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layers = nn.ModuleList(DenseLayer(4 + 2 * i, 2) for i in range(3))
        self.head = nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(features))
        return self.head(torch.cat(features, 1).mean((2, 3)))


class Inplace(nn.Module):
    """Everything that can be done in place is done in place, on views too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.tokens = nn.Linear(6, 6)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.bn1(self.conv1(x)), inplace=True)
        x = self.act(self.conv2(x).add_(1.0))
        x = x.flatten(2).transpose(1, 2)
        x = self.tokens(x).mul_(1.5).tanh_()
        y = self.mix(x)
        y[:, 0] = 0.5
        y += 1.0
        return self.head(y.mean(1))


class ResBlock(nn.Module):
    """Conv-BN-ReLU-Conv and a skip connection."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.relu(self.conv1(x), inplace=True))


class Checkpointed(nn.Module):
    """Residual blocks under activation checkpointing; `reentrant` None: without it."""

    def __init__(self, reentrant: bool | None, whole: bool = False) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.whole = whole
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.ModuleList([ResBlock(), ResBlock(), ResBlock()])
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self._run(self.all_blocks if self.whole else None, self.stem(x))
        return self.head(x.mean((2, 3)))

    def all_blocks(self, x: torch.Tensor) -> torch.Tensor:
        """All blocks, the last one a second time."""
        for block in [*self.blocks, self.blocks[-1]]:
            x = block(x)
        return x

    def _run(self, function, x: torch.Tensor) -> torch.Tensor:
        functions = [function] if function else [*self.blocks, self.blocks[-1]]
        for f in functions:
            x = f(x) if self.reentrant is None else checkpoint(f, x, use_reentrant=self.reentrant)
        return x


class StochasticDepth(nn.Module):
    """Blocks that are left out by chance, or all but those that are `kept`."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p
        self.kept: tuple[int, ...] | None = None
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.ModuleList(ResBlock() for _ in range(4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            if torch.rand(()) > self.p if self.kept is None else i in self.kept:
                x = block(x)
        return self.head(x.mean((2, 3)))


class Functional(nn.Module):
    """Activations and pooling as functions, one weight used by a function alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.direct = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.gelu(self.conv(x)), 2).mean((2, 3))
        return self.head(F.leaky_relu(F.linear(x, self.direct.weight, self.direct.bias)))
