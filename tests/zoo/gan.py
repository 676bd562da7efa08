"""A generator, a discriminator, and a module that holds both."""

import torch
import torch.nn.functional as F
from torch import nn


class Generator(nn.Module):
    """Noise (N, 4) to images (N, 1, 4, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 16)
        self.up = nn.ConvTranspose2d(4, 1, 2, stride=2)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.up(F.relu(self.fc(z)).view(-1, 4, 2, 2)))


class Discriminator(nn.Module):
    """Images (N, 1, 4, 4) to logits (N, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.act = nn.LeakyReLU(0.2, inplace=True)
        self.fc = nn.Linear(64, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.act(self.conv(x)).flatten(1))


class GAN(nn.Module):
    """Both networks; they are called as ``gan.generator(z)``, never as ``gan(z)``."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.discriminator = Generator(), Discriminator()
