"""How the mean square of errors grows through convolution, batch normalisation and activation."""

import numpy as np
import numpy.typing as npt

from propkit.spectra.activations import Activation, Floats, Function, activation_named


def batch_norm_growth(
    activation: str | Function | Activation = "relu", m: int | None = None, slope: float = 0.01
) -> float:
    """Factor by which the error's mean square grows, on its way down, per layer of weights, batch norm and activation.

    Through weights and activation an error's mean square is multiplied by σ_w² E φ'(z)², with z ~ N(0, 1) after
    normalisation; over the batch, pre-activations have the variance σ_w² Var φ(z), by which normalisation divides. So
    the weights' variance cancels, and E φ'²/Var φ is left. In a batch of m the inverse of the estimated variance is
    larger, E 1/σ̂² = m/((m − 3)σ²), and m − 2 of m directions pass: times (m − 2)/(m − 3).
    The first layer, whose input is no activation, has no such growth.

    Args:
        activation: As for `propkit.spectra.mean_field.MeanField`.
        m: Elements that a channel is normalised over, for independent samples; None for infinitely many.
        slope: β of ``leaky_relu``.

    Returns:
        q(error at layer l)/q(error at layer l + 1): π/(π − 1) = 1.467 for ReLU, where fan-in equals fan-out.

    Raises:
        ValueError: ``m <= 3``, where the mean is infinite.

    Source: Yang et al., arXiv:1902.08129, for infinite m; the factor of finite m holds to about 3 % at m = 8, 1 % at
    m = 16 (it takes pre-activations as Gaussian).

    >>> round(batch_norm_growth(), 6), round(batch_norm_growth(m=32), 3)
    (1.466942, 1.518)
    """
    if m is not None and m <= 3:
        raise ValueError(f"expected m > 3 (the mean growth is infinite up to there), found {m}")
    expectations = activation_named(activation, slope)
    variance = float(expectations.second_moment(1.0)) - float(expectations.mean(1.0)) ** 2
    growth = float(expectations.slope_second_moment(1.0)) / variance
    return growth if m is None else growth * (m - 2) / (m - 3)


def fourier_eigenvalues(tap_variance: npt.ArrayLike, size: int | tuple[int, ...]) -> Floats:
    """|λ_α|: how a convolution with random weights and circular padding carries spatial patterns of variance.

    Averaged over channels, a deviation of covariances from their fixed point that varies in space as the Fourier mode α
    is multiplied by χ λ_α per layer, with the χ of the fully connected network: its depth scale is −1/log(χ |λ_α|).
    λ is the Fourier transform of the taps' shares of the variance. Equal variances damp all modes but the constant one;
    a kernel with its centre tap alone (delta-orthogonal initialisation) carries all of them.

    Args:
        tap_variance: Variance of the weights at each tap, (k,), (kh, kw), ...; only its proportions count.
        size: Size of the feature map, an integer for equal ones in all dimensions.

    Returns:
        |λ_α| for each frequency, of shape `size`, in the order of ``numpy.fft.fftn``; the first is 1.

    Raises:
        ValueError: Dimensions do not fit, or a variance is negative, or all are 0.

    Source: Xiao et al., arXiv:1806.05393, Sec. 2.2.

    >>> fourier_eigenvalues([1, 1, 1], 4).round(3).tolist()
    [1.0, 0.333, 0.333, 0.333]
    """
    variance = np.asarray(tap_variance, dtype=np.float64)
    sizes = (size,) * variance.ndim if isinstance(size, int) else tuple(size)
    if not variance.ndim or len(sizes) != variance.ndim or any(n < 1 for n in sizes):
        raise ValueError(
            f"expected a positive size for each of {variance.ndim} dimensions of taps, found {size}"
        )
    if not (np.isfinite(variance).all() and (variance >= 0).all() and variance.sum() > 0):
        raise ValueError("expected variances of taps that are finite, >= 0 and not all 0")
    for axis, n in enumerate(sizes):  # taps that are n apart meet in the same place
        k = variance.shape[axis]
        padding = [(0, 0)] * variance.ndim
        padding[axis] = (0, -k % n)
        padded = np.moveaxis(np.pad(variance, padding), axis, 0)
        variance = np.moveaxis(padded.reshape(-1, n, *padded.shape[1:]).sum(0), 0, axis)
    return np.asarray(np.abs(np.fft.fftn(variance / variance.sum())))
