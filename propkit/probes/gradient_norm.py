"""Gradient norms at the two ends of a block (Zaeemzadeh, Rahnavard & Shah, TPAMI 2020)."""

import torch

from propkit.probe import probe
from propkit.probes._reductions import frobenius_norm_at_once


@probe(
    sites="block",
    units={"output": "loss/output"},
    reduce={"output": "norm"},
    degree=1,
    reference="arXiv:1805.07477, Sec. 4.1",
)
def gradient_norm(grad_output: torch.Tensor) -> dict[str, float | torch.Tensor]:
    """Frobenius norm of the gradient at the block's output.

    The paper's ratio is ``output / input``: above 1 the gradient shrinks on its way to the input, below 1 it grows.

    Args:
        grad_output: Gradient of the whole mini-batch with respect to the block's output, any shape.

    Returns:
        ``output``: 0-d, float64, units loss/output; a number if the gradient is on the CPU.
    """
    return {"output": frobenius_norm_at_once(grad_output)}


@gradient_norm.also(units={"input": "loss/input"}, reduce={"input": "norm"}, degree=1)
def gradient_norm_at_input(grad_input: torch.Tensor) -> dict[str, float | torch.Tensor]:
    """Frobenius norm of the gradient at the block's input, its skip connection and its branch together."""
    return {"input": frobenius_norm_at_once(grad_input)}
