"""Second-order moments of the back-propagated errors (Xie, Xiong & Pu, CVPR 2017)."""

import torch

from propkit.probe import probe
from propkit.probes._reductions import mean_square_at_once


@probe(
    sites="parametric",
    units={"output": "loss^2/output^2"},
    degree=2,
    reference="arXiv:1703.01827, Sec. 5.2, Figs. 3-4",
)
def error_moment(grad_output: torch.Tensor) -> dict[str, float | torch.Tensor]:
    """Mean square of the error at the layer's output, q = mean(δ²).

    This error is the gradient that arrives at the layer, with respect to what it returns: the paper's "input error" of
    a convolution, before batch normalisation. Batch, channels and space are averaged alike, uncentred.

    Args:
        grad_output: Gradient with respect to the layer's output, any shape and floating dtype.

    Returns:
        ``output``: 0-d, float64, units loss²/output²; a number if the gradient is on the CPU.
    """
    return {"output": mean_square_at_once(grad_output)}


@error_moment.also(units={"input": "loss^2/input^2"}, degree=2)
def error_moment_at_input(grad_input: torch.Tensor) -> dict[str, float | torch.Tensor]:
    """Mean square of the error at the layer's input, q = mean(δ²).

    Not there (NaN) where the input needs no gradient, as the images of the first layer.
    """
    return {"input": mean_square_at_once(grad_input)}
