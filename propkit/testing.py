"""Tiny models and a brute-force oracle, for the tests of propkit and of third-party probes.

The oracle shares nothing with the hooks: it runs a copy of the model whose modules' ``forward`` is wrapped, keeps every
tensor and lets autograd retain every gradient.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass
class Signals:
    """What one call of one module received and returned, with the gradients (None where there is none)."""

    module: nn.Module
    input: torch.Tensor
    output: torch.Tensor
    grad_input: torch.Tensor | None = None
    grad_output: torch.Tensor | None = None


def brute_force(
    model: nn.Module, loss: Callable[[nn.Module], torch.Tensor]
) -> dict[str, list[Signals]]:
    """Signals of every module at one batch, by autograd with retained gradients on a copy of `model`.

    Args:
        model: The model; it is left as it is. In-place activations are made out-of-place in the copy.
        loss: Function of the (copied) model that gives the scalar to differentiate.

    Returns:
        Qualified name -> one entry per call, in the order of the calls.
    """
    model = copy.deepcopy(model)
    calls: dict[str, list[Signals]] = {}
    for name, module in model.named_modules():
        if hasattr(module, "inplace"):
            module.inplace = False
        module.forward = _recording(module, module.forward, calls.setdefault(name, []))
    loss(model).backward()
    for entries in calls.values():
        for entry in entries:
            entry.grad_input, entry.grad_output = entry.input.grad, entry.output.grad
    return calls


def _recording(
    module: nn.Module, forward: Callable[..., Any], entries: list[Signals]
) -> Callable[..., Any]:
    def recorded(*args: Any, **kwargs: Any) -> Any:
        result = forward(*args, **kwargs)
        received = next(a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor))
        returned = result if isinstance(result, torch.Tensor) else _first(result)
        for tensor in (received, returned):
            if tensor.requires_grad and not tensor.is_leaf:
                tensor.retain_grad()
        entries.append(Signals(module, received, returned))
        return result

    return recorded


def _first(result: Any) -> torch.Tensor:
    values = result.values() if isinstance(result, dict) else result
    for value in values:
        if isinstance(value, torch.Tensor):
            return value
        if isinstance(value, (tuple, list, dict)):
            return _first(value)
    raise TypeError(f"no tensor in {type(result).__name__}")


def mlp(depth: int = 4, width: int = 12, classes: int = 3) -> nn.Sequential:
    """Linear layers with ReLU between them, for inputs ``(N, width)``."""
    layers: list[nn.Module] = []
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, classes))


class ResidualBlock(nn.Module):
    """Two Conv-BN-ReLU with a skip connection; the second ReLU, in place, follows the addition."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, channels, H, W)`` to the same shape."""
        branch = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        result: torch.Tensor = self.relu(branch + x)
        return result


class TinyResNet(nn.Module):
    """A stem, `depth` residual blocks, global average pooling and a linear head, for ``(N, 3, H, W)``."""

    def __init__(self, depth: int = 3, channels: int = 6, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(depth)))
        self.head = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(N, classes)``."""
        result: torch.Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return result


class TinyPlain(nn.Module):
    """Conv-BN-ReLU `depth` times with in-place ReLU, global average pooling and a linear head."""

    def __init__(self, depth: int = 4, channels: int = 6, classes: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [
                nn.Conv2d(channels if i else 3, channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(N, classes)``."""
        result: torch.Tensor = self.head(self.features(x).mean((2, 3)))
        return result
