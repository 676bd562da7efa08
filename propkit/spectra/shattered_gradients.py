"""Correlation of the gradients at two inputs of a ReLU network (Balduzzi et al., arXiv:1702.08591).

`propkit.spectra.mean_field.MeanField.gradient_correlation` is the wide limit of a feed-forward network. Here are that
of a residual network, and the paper's own idealisation.
"""

from typing import Literal, get_args

import numpy as np

from propkit.spectra.activations import Floats, kappa_0, kappa_1

Network = Literal["feed_forward", "residual", "residual_batch_norm"]


def residual_gradient_correlation(depth: int, c: float = 0.0) -> Floats:
    """Wide limit for the residual network x ← x + W relu(x), W of variance 2/width, without normalisation.

    Correlations go as c ← (c + κ₁(c))/2 and gradients as Π (1 + κ₀(c_l))/2.

    Args:
        depth: Number of blocks L.
        c: Correlation of the two inputs.

    Returns:
        (depth,): correlation at the input of each block, with equal gradients at the output of the last.

    Raises:
        ValueError: ``depth < 1`` or c is outside [−1, 1].
    """
    _check_depth(depth)
    if not -1 <= c <= 1:
        raise ValueError(f"expected a correlation between -1 and 1, found {c}")
    correlations = [c]
    for _ in range(depth - 1):
        correlations.append((correlations[-1] + float(kappa_1(correlations[-1]))) / 2)
    return np.asarray(np.cumprod((1 + kappa_0(correlations[::-1])) / 2)[::-1])


def idealised_gradient_correlation(
    depth: int, network: Network = "feed_forward", beta: float = 1.0
) -> float:
    """The paper's correlation for activation masks that are independent from layer to layer and input to input.

    Args:
        depth: Number of layers or blocks L.
        network: ``feed_forward``: 2^−L; ``residual``: (3/4)^L; ``residual_batch_norm``: the product whose limit is
            2/√(πL) for β = 1.
        beta: Factor β of a normalised block's residual branch; of no effect on the others.

    Raises:
        ValueError: ``depth < 1`` or the network is unknown.

    Source: Balduzzi et al., Theorems 1-3.

    >>> idealised_gradient_correlation(4), idealised_gradient_correlation(2, "residual")
    (0.0625, 0.5625)
    """
    _check_depth(depth)
    if network == "feed_forward":
        return 0.5**depth
    if network == "residual":
        return 0.75**depth
    if network == "residual_batch_norm":
        branch = beta**2 / (1 + beta**2 * np.arange(depth))
        return float(np.prod((1 + branch / 2) / (1 + branch)))
    raise ValueError(f"unknown network {network!r}; there are {', '.join(get_args(Network))}")


def _check_depth(depth: int) -> None:
    if depth < 1:
        raise ValueError(f"expected depth >= 1, found {depth}")
