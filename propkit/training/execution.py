"""How a training is computed: precision, memory layout, compilation, determinism."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Execution:
    """Choices that change speed and rounding, not what is trained.

    Attributes:
        bf16: Compute the forward pass in bfloat16 (autocast); weights, gradients and the loss stay
            float32.
        channels_last: Keep images and convolutions' weights with channels innermost.
        compile: Train through `torch.compile`.
        deterministic: Use algorithms that give the same bits every time, and raise RuntimeError
            where there is none. The same bits on the same machine and versions only.
    """

    bf16: bool = False
    channels_last: bool = False
    compile: bool = False
    deterministic: bool = False

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model to call, which shares its parameters with the given one."""
        if self.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # undeclared
        return torch.compile(model) if self.compile else model  # type: ignore[return-value]  # acts as the module

    def images(self, images: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` in the layout to compute with."""
        layout = torch.channels_last if self.channels_last else torch.preserve_format
        return images.to(memory_format=layout)

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context of the forward pass."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bf16)

    @contextlib.contextmanager
    def algorithms(self) -> Iterator[None]:
        """Deterministic algorithms where asked for; PyTorch's setting is put back."""
        if not self.deterministic:
            yield
            return
        # cuBLAS reads it once, when first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        before = torch.are_deterministic_algorithms_enabled()
        benchmark = torch.backends.cudnn.benchmark
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warn_only)
            torch.backends.cudnn.benchmark = benchmark
