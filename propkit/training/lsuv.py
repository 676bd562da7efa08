"""Layer-sequential unit variance: weights scaled until every layer's output has variance 1."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from propkit.training.init import orthonormal_
from propkit.training.kernels import Layer, parametric_layers


@torch.no_grad()
def lsuv_(
    model: nn.Module,
    *inputs: Any,
    tolerance: float = 0.1,
    max_iterations: int = 10,
    orthonormal: bool = True,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Initialise by layer-sequential unit variance (Mishkin & Matas, arXiv:1511.06422, Alg. 1), in place.

    Weights become orthonormal, biases zero; then each convolution and linear layer, in the order of
    execution, is divided by the standard deviation of its output over a batch, until the variance is
    within ``tolerance`` of 1. All in one forward pass, without gradients: a layer's output is
    computed anew before the next layer sees it.

    The model runs in the mode it is in. Its buffers (batch norm's running statistics) and the state
    of PyTorch's global generators (dropout draws from them) are the same afterwards. Layers that do
    not run, and a layer's later calls, are left alone.

    Args:
        model: Changed in place.
        *inputs: What the model is called with: a batch that is like the data.
        tolerance: |variance − 1| at which a layer is done.
        max_iterations: At most so many divisions of a layer; without a bias one is exact.
        orthonormal: Begin with `orthonormal_` weights and zero biases; if not, with what is there.
        generator: Source of the orthonormal weights.

    Returns:
        The model.

    Raises:
        ValueError: The model has no convolution and no linear layer, or a layer's output is constant
            or not finite.
    """
    layers = {layer: name for name, layer in parametric_layers(model)}
    if not layers:
        raise ValueError("the model has no convolution and no linear layer to initialise")
    if orthonormal:
        for layer in layers:
            groups = 1 if isinstance(layer, nn.Linear) else layer.groups
            orthonormal_(layer.weight, generator=generator, channel_groups=groups)
            if layer.bias is not None:
                layer.bias.zero_()
    handles: dict[nn.Module, RemovableHandle] = {}

    def scale(layer: Layer, received: tuple[Any, ...], output: Tensor) -> Tensor:
        handles.pop(layer).remove()
        for _ in range(max_iterations):
            variance = float(output.double().var(correction=0))
            if abs(variance - 1) <= tolerance:
                break
            if not 0 < variance < float("inf"):
                raise ValueError(
                    f"the output of {layers[layer] or 'the layer'} has variance {variance}; "
                    "give a batch in which it varies"
                )
            layer.weight.div_(variance**0.5)
            output = layer.forward(*received)
        return output

    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = {p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"}
    for layer in layers:
        handles[layer] = layer.register_forward_hook(scale)
    try:
        with torch.random.fork_rng(devices):
            model(*inputs)
    finally:
        for handle in handles.values():
            handle.remove()
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return model
