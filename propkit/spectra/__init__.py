"""The mathematics of spectra, usable without any model."""

from typing import TYPE_CHECKING

from propkit._lazy import publish

if TYPE_CHECKING:
    from propkit.spectra.activations import Activation
    from propkit.spectra.batch_norm import (
        Spectrum,
        bn_eigenvalues,
        bn_eigenvalues_from_variance,
        channel_moments,
        pool_moments,
    )
    from propkit.spectra.convolution import (
        conv_extremes,
        conv_singular_values,
        conv_singular_values_of,
        conv_spectral_norm,
    )
    from propkit.spectra.convolution_geometry import conv_arguments
    from propkit.spectra.convolution_zero_padding import ZeroPadding, conv_zero_padding
    from propkit.spectra.gradient_growth import batch_norm_growth, fourier_eigenvalues
    from propkit.spectra.jacobian import (
        jacobian_density,
        jacobian_extremes,
        jacobian_matrix,
        jacobian_moments,
        jacobian_singular_values,
    )
    from propkit.spectra.linearize import Jacobian
    from propkit.spectra.mean_field import MeanField, critical_variances
    from propkit.spectra.normalization import (
        group_norm_singular_values,
        layer_norm_singular_values,
        rms_norm_singular_values,
    )
    from propkit.spectra.shattered_gradients import (
        idealised_gradient_correlation,
        residual_gradient_correlation,
    )

_NAMES = {
    "Activation": "propkit.spectra.activations",
    "Jacobian": "propkit.spectra.linearize",
    "MeanField": "propkit.spectra.mean_field",
    "Spectrum": "propkit.spectra.batch_norm",
    "ZeroPadding": "propkit.spectra.convolution_zero_padding",
    "batch_norm_growth": "propkit.spectra.gradient_growth",
    "bn_eigenvalues": "propkit.spectra.batch_norm",
    "bn_eigenvalues_from_variance": "propkit.spectra.batch_norm",
    "channel_moments": "propkit.spectra.batch_norm",
    "conv_arguments": "propkit.spectra.convolution_geometry",
    "conv_extremes": "propkit.spectra.convolution",
    "conv_singular_values": "propkit.spectra.convolution",
    "conv_singular_values_of": "propkit.spectra.convolution",
    "conv_spectral_norm": "propkit.spectra.convolution",
    "conv_zero_padding": "propkit.spectra.convolution_zero_padding",
    "critical_variances": "propkit.spectra.mean_field",
    "fourier_eigenvalues": "propkit.spectra.gradient_growth",
    "group_norm_singular_values": "propkit.spectra.normalization",
    "idealised_gradient_correlation": "propkit.spectra.shattered_gradients",
    "jacobian_density": "propkit.spectra.jacobian",
    "jacobian_extremes": "propkit.spectra.jacobian",
    "jacobian_matrix": "propkit.spectra.jacobian",
    "jacobian_moments": "propkit.spectra.jacobian",
    "jacobian_singular_values": "propkit.spectra.jacobian",
    "layer_norm_singular_values": "propkit.spectra.normalization",
    "pool_moments": "propkit.spectra.batch_norm",
    "residual_gradient_correlation": "propkit.spectra.shattered_gradients",
    "rms_norm_singular_values": "propkit.spectra.normalization",
}
__all__ = [
    "Activation",
    "Jacobian",
    "MeanField",
    "Spectrum",
    "ZeroPadding",
    "batch_norm_growth",
    "bn_eigenvalues",
    "bn_eigenvalues_from_variance",
    "channel_moments",
    "conv_arguments",
    "conv_extremes",
    "conv_singular_values",
    "conv_singular_values_of",
    "conv_spectral_norm",
    "conv_zero_padding",
    "critical_variances",
    "fourier_eigenvalues",
    "group_norm_singular_values",
    "idealised_gradient_correlation",
    "jacobian_density",
    "jacobian_extremes",
    "jacobian_matrix",
    "jacobian_moments",
    "jacobian_singular_values",
    "layer_norm_singular_values",
    "pool_moments",
    "residual_gradient_correlation",
    "rms_norm_singular_values",
]

publish(__name__, _NAMES)
