"""The filters of the first convolution themselves, for pictures of them."""

import torch
from torch import nn

from propkit.probe import probe
from propkit.schedules import log_spaced

_IMAGE_CHANNELS = (1, 3)


def _sees_images(module: nn.Module) -> bool:
    """Whether a module is a 2-d convolution of images, grey or in colours."""
    return (
        isinstance(module, nn.Conv2d)
        and module.groups == 1
        and module.in_channels in _IMAGE_CHANNELS
    )


@probe(
    sites=_sees_images,
    dims={"value": "filter_element"},
    units={"value": "weight"},
    reduce={"value": "max", "channels": "max", "height": "max", "width": "max"},
    once=True,
    every=log_spaced(4),
    reference="arXiv:1703.01827, Fig. 6",
)
def filters(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Weights of the convolutions that look at images: those with 1 or 3 input channels, the first of a network.

    They are recorded now and then, about four times in each factor of ten steps. A step of the CIFAR networks holds
    432 numbers, one of ImageNet's 9,408. For other layers, make a probe of the same function with other sites:
    ``dataclasses.replace(propkit.probes.filters, sites=lambda module: module is model.conv2)``.

    Args:
        weight: The layer's weight, (filters, channels, height, width).

    Returns:
        ``value``: the weight, flat, recorded as float32. 0-d, float64: ``channels``, ``height`` and ``width``, which
        tell how to fold it.

    >>> found = filters(torch.arange(8.0).reshape(2, 1, 2, 2))
    >>> found["value"].tolist(), [float(found[k]) for k in ("channels", "height", "width")]
    ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [1.0, 2.0, 2.0])
    """
    sizes = torch.tensor(weight.shape[1:], device=weight.device)
    if sizes.device.type != "mps":
        sizes = sizes.double()
    channels, height, width = sizes.unbind()
    return {"value": weight.flatten(), "channels": channels, "height": height, "width": width}
