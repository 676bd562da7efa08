"""Gaussian weights and biases of mean-field theory, and the critical ones among them."""

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from propkit.training.init_variance import normal
from propkit.training.kernels import fans, parametric_layers

if TYPE_CHECKING:
    from propkit.spectra.activations import Activation, Function


@torch.no_grad()
def gaussian_(
    model: nn.Module,
    sigma_w2: float,
    sigma_b2: float = 0.0,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Fill weights with N(0, σ_w² / fan_in), biases with N(0, σ_b²), in place.

    The random network of `propkit.spectra.MeanField` (Poole et al., arXiv:1606.05340; convolutions:
    Xiao et al., arXiv:1806.05393).

    Args:
        model: Its convolutions and linear layers change; the rest stays.
        sigma_w2: σ_w².
        sigma_b2: σ_b²; layers without a bias do without.
        generator: Source of the numbers, on any device; drawn in the order of ``named_modules()``.

    Returns:
        The model.

    Raises:
        ValueError: A variance is negative or not finite, or the model has no layer to fill.
    """
    for name, value in (("sigma_w2", sigma_w2), ("sigma_b2", sigma_b2)):
        if not 0 <= value < math.inf:
            raise ValueError(f"expected a finite variance {name} >= 0, found {value}")
    layers = [layer for _, layer in parametric_layers(model)]
    if not layers:
        raise ValueError("the model has no convolution and no linear layer to initialise")
    for layer in layers:
        scale = math.sqrt(sigma_w2 / fans(layer.weight)[1])
        layer.weight.copy_(normal(layer.weight.shape, generator) * scale)
        if layer.bias is not None:
            layer.bias.copy_(normal(layer.bias.shape, generator) * math.sqrt(sigma_b2))
    return model


def critical_(
    model: nn.Module,
    activation: "str | Function | Activation" = "tanh",
    q: float = 1.0,
    slope: float = 0.01,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """`gaussian_` on the edge of chaos, χ_1 = 1: gradients neither vanish nor explode, in the mean.

    Schoenholz et al., arXiv:1611.01232; the variances are those of
    `propkit.spectra.critical_variances`. Of batch norm it knows nothing: that has a growth of its own.

    Args:
        model: Its convolutions and linear layers change.
        activation: Between the layers: a name that `propkit.spectra.MeanField` takes, or a function.
        q: Mean square of the pre-activations at the fixed point, which the weights are chosen for.
            For ReLU and leaky ReLU without effect, σ_b² being 0.
        slope: β of ``leaky_relu``.
        generator: Source of the numbers.

    Returns:
        The model.

    Raises:
        ValueError: The activation is unknown, ``q`` is not positive or no critical point has it, or
            the model has no layer to fill.

    Example:
        >>> model = critical_(nn.Linear(1000, 500), "relu", generator=torch.Generator().manual_seed(0))
        >>> round(model.weight.var().item() * 1000, 1), model.bias.abs().max().item()
        (2.0, 0.0)
    """
    from propkit.spectra.mean_field import critical_variances  # SciPy, which no other part needs

    return gaussian_(model, *critical_variances(q, activation, slope), generator)
