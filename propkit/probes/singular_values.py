"""All singular values of layers as operators on their maps (Sedghi, Gupta & Long, ICLR 2019)."""

import torch
from torch import nn

from propkit.probe import probe
from propkit.probes._operators import NORM_RULES, REFERENCE, UNITS, operator
from propkit.schedules import log_spaced


@probe(
    sites="filters",
    dims={"value": "singular_value"},
    units=dict.fromkeys(("value", *NORM_RULES), UNITS),
    reduce={"value": "max", **NORM_RULES},
    once=True,
    every=log_spaced(10),
    reference=REFERENCE,
)
def singular_values(
    weight: torch.Tensor, module: nn.Module, input: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Singular values of a layer as a linear operator on a map of the size that it receives.

    Stride, dilation, groups and transposition are those of the layer. Zero padding is taken for circular, with a map
    rounded up to a multiple of the stride: so there is a closed form. What the zeros change is said beside it: for 3x3
    kernels the circular norm is too large by 12-16 % on maps of 4, 4-5 % on 8, about 1 % on 16, 0.3 % on 32. A linear
    layer has the singular values of its matrix.

    A layer with maps of several sizes in a run has no one spectrum: this probe is switched off then, and
    ``singular_value_quantiles`` is the one to take.

    Args:
        weight: The layer's weight.
        module: The layer, for its stride, padding and so on.
        input: What it receives; only the shape is looked at.

    Returns:
        ``value``: all singular values, descending, (K,), recorded as float32. 0-d, float64: ``spectral_norm``,
        ``smallest`` and ``frobenius_norm`` of the same operator; for a convolution that pads with zeros (or not at all)
        ``padded_frobenius_norm``, exact, and ``padded_norm_bound``, never below its spectral norm.

    >>> shift = torch.zeros(1, 1, 3, 3)
    >>> shift[0, 0, 0, 1] = 2
    >>> found = singular_values(shift, nn.Conv2d(1, 1, 3, padding=1), torch.zeros(8, 1, 2, 2))
    >>> found["value"].tolist(), round(float(found["padded_frobenius_norm"]), 4)
    ([2.0, 2.0, 2.0, 2.0], 2.8284)
    """
    layer = operator(weight, module, input.shape)
    return {"value": layer.values, **layer.norms()}
