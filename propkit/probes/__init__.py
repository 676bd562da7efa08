"""One quantity per file: pure functions of tensors. The file, the function and the group in the run share a name."""

from typing import TYPE_CHECKING

from propkit._lazy import publish

if TYPE_CHECKING:
    from propkit.probes.activation import activation
    from propkit.probes.activation_maps import activation_maps
    from propkit.probes.bn_jacobian import bn_jacobian
    from propkit.probes.error_moment import error_moment
    from propkit.probes.filter_correlation import filter_correlation
    from propkit.probes.filters import filters
    from propkit.probes.gradient_correlation import gradient_correlation
    from propkit.probes.gradient_norm import gradient_norm
    from propkit.probes.jacobian_spectrum import jacobian_spectrum
    from propkit.probes.modulation import modulation
    from propkit.probes.representation import representation
    from propkit.probes.singular_value_quantiles import singular_value_quantiles
    from propkit.probes.singular_values import singular_values
    from propkit.probes.weight import weight

__all__ = [
    "activation",
    "activation_maps",
    "bn_jacobian",
    "error_moment",
    "filter_correlation",
    "filters",
    "gradient_correlation",
    "gradient_norm",
    "jacobian_spectrum",
    "modulation",
    "representation",
    "singular_value_quantiles",
    "singular_values",
    "weight",
]

publish(__name__, {name: f"{__name__}.{name}" for name in __all__})
