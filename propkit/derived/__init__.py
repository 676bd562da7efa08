"""Quantities computed from recorded ones: pure functions of a run's datasets, and ``run.derived`` for short.

**Which layers.** Xie, Xiong & Pu (arXiv:1703.01827) count convolutional layers, and so do the
ratios of errors: every convolution of the group, in order of execution, wherever it stands. A
convolution in a shortcut is one of them, since the group does not say what is a shortcut; leave
such sites out with ``attach(..., exclude=...)``. A network with fewer than two convolutions (an
MLP, a transformer) has no ratio in this sense, so all its parametric layers are taken instead.

**Direction.** A ratio of errors is that of a layer to a *higher* one, nearer the loss: above 1 the error
grows on its way to the input, below 1 it vanishes. Zaeemzadeh et al. (arXiv:1805.07477) use the
opposite direction; `gradient_norm_ratio` asks which.

Of what xarray opened by itself, ``xr.open_datatree("run.zarr").propkit.error_ratio()`` is the same as ``run.derived``:
see `propkit.derived.xarray_accessor`.

A ratio whose denominator is zero or not finite is NaN. Lazy datasets stay lazy, and only the sites that
a function needs are read, unless its description says otherwise.
"""

from propkit.derived import xarray_accessor as _registered  # noqa: F401 - gives xarray's objects .propkit
from propkit.derived._arrays import is_convolution, layers
from propkit.derived.activations import near_singularity, normalized_mean_activation
from propkit.derived.bounds import residual_bound
from propkit.derived.errors import (
    consecutive_ratio,
    corrected_end_to_end_ratio,
    corrected_error_ratio,
    end_to_end_ratio,
    error_ratio,
)
from propkit.derived.filters import layer_correlation, pooled_correlation
from propkit.derived.gradients import gradient_norm_ratio
from propkit.derived.operators import (
    operator_condition_number,
    operator_effective_rank,
    operator_stable_rank,
)
from propkit.derived.weights import stable_rank, update_ratio

QUANTITIES = (
    "error_ratio",
    "end_to_end_ratio",
    "consecutive_ratio",
    "corrected_error_ratio",
    "corrected_end_to_end_ratio",
    "gradient_norm_ratio",
    "residual_bound",
    "layer_correlation",
    "pooled_correlation",
    "normalized_mean_activation",
    "near_singularity",
    "stable_rank",
    "update_ratio",
    "operator_condition_number",
    "operator_stable_rank",
    "operator_effective_rank",
)
"""Names of the functions that ``run.derived`` offers; each takes groups of a run, named after them, and options."""

__all__ = [
    "QUANTITIES",
    "consecutive_ratio",
    "corrected_end_to_end_ratio",
    "corrected_error_ratio",
    "end_to_end_ratio",
    "error_ratio",
    "gradient_norm_ratio",
    "is_convolution",
    "layer_correlation",
    "layers",
    "near_singularity",
    "normalized_mean_activation",
    "operator_condition_number",
    "operator_effective_rank",
    "operator_stable_rank",
    "pooled_correlation",
    "residual_bound",
    "stable_rank",
    "update_ratio",
]
