"""Activations themselves, a few of them, for pictures."""

import torch

from propkit.probe import probe
from propkit.schedules import log_spaced

_SAMPLES, _UNITS = 32, 64
_CHANNELS, _SIDE = 8, 16


@probe(
    sites="layer",
    dims={"value": "map_element"},
    units={"value": "output", "maps": "1", "height": "1", "width": "1"},
    reduce={"value": "mean", "maps": "max", "height": "max", "width": "max"},
    every=log_spaced(2),
    reference="Oyedotun et al., ICPR 2020",
)
def activation_maps(output: torch.Tensor) -> dict[str, torch.Tensor]:
    """A corner of what a layer returns, 2,048 numbers at most, about twice in each factor of ten steps.

    Of a layer that returns maps it is the first 8 channels for the first sample of the batch, every k-th row and
    column of each where one is longer than 16; of any other, a picture with a row for each of the first 32 samples
    and a column for each of the first 64 units (of their first tokens).

    The batch is that of the training, whose samples change from step to step: ``propkit.measure`` of a fixed batch,
    or a loader that does not shuffle, shows the same sample always. Micro-batches of one step are averaged, so that
    these pictures need steps of one batch. Pictures of one layer have one size in a run: where it changes (maps of
    another size, or a last batch of fewer than 32 samples), this probe is switched off with a remark.

    Args:
        output: What the layer returns: (samples, channels, height, width), (samples, units), or of any other shape,
            samples first.

    Returns:
        ``value``, flat, recorded as float32, and 0-d, float64, how to fold it: ``maps``, ``height`` and ``width``.

    >>> found = activation_maps(torch.arange(6.0).reshape(3, 2))
    >>> found["value"].tolist(), [float(found[k]) for k in ("maps", "height", "width")]
    ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 3.0, 2.0])
    """
    if output.ndim == 4:
        picture = output[0, :_CHANNELS]
        rows, columns = (-(-side // _SIDE) for side in picture.shape[1:])
        picture = picture[:, ::rows, ::columns]
    else:
        flat = output.reshape(len(output), -1) if output.ndim else output.reshape(1, 1)
        picture = flat[None, :_SAMPLES, :_UNITS]
    sizes = torch.tensor(picture.shape, device=output.device)
    if sizes.device.type != "mps":
        sizes = sizes.double()
    maps, height, width = sizes.unbind()
    return {"value": picture.flatten(), "maps": maps, "height": height, "width": width}
