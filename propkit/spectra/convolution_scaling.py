"""Weights in float64 and in range, whatever their dtype and size."""

import torch


class Scaled:
    """A weight in float64, divided by a power of 2 that keeps its squares in range; and the way back.

    Args:
        weight: Any real floating tensor.
        dtype: Of results; by default that of `weight`, float32 for half precision.
    """

    def __init__(self, weight: torch.Tensor, dtype: torch.dtype | None = None) -> None:
        if dtype is None:
            kept = weight.dtype in (torch.float32, torch.float64)
            dtype = weight.dtype if kept else torch.float32
        self.dtype = dtype
        top = weight.detach().double().abs().amax()
        self.finite = bool(torch.isfinite(top))
        exponent = torch.frexp(top).exponent.clamp(-1000, 1000)
        self._factor = torch.pow(2.0, exponent.double())
        self.weight = weight.double() / self._factor

    def back(self, values: torch.Tensor) -> torch.Tensor:
        """`values` of the scaled weight as those of the weight, in the dtype of the results."""
        return (values * self._factor).to(self.dtype)
