"""Singular values of convolutional layers: of the operator that the layer executes on a map of a given size.

Stride 1: H. Sedghi, V. Gupta, P. M. Long, The Singular Values of Convolutional Layers, arXiv:1805.10408. One idea each
is in ``convolution_geometry`` (what is read where), ``convolution_symbol`` (stride, dilation and wrapped kernels made
plain), ``convolution_gram`` (the fast and the accurate route), ``convolution_norm``, ``convolution_zero_padding``,
``convolution_operator`` (the layer in space) and ``convolution_bidiagonalization`` (the ends of its spectrum).
"""

import torch
from torch.nn.modules.conv import _ConvNd

from propkit.spectra.convolution_bidiagonalization import Extremes, extremes
from propkit.spectra.convolution_geometry import (
    Geometry,
    Padding,
    Sizes,
    conv_arguments,
    count,
    geometry,
)
from propkit.spectra.convolution_gram import circular_values
from propkit.spectra.convolution_norm import largest
from propkit.spectra.convolution_operator import ConvolutionOperator
from propkit.spectra.convolution_scaling import Scaled
from propkit.spectra.convolution_symbol import canonical
from propkit.spectra.convolution_zero_padding import nearest_circular

DENSE = 2048
"""Operators whose smaller dimension, per group, is at most this may be written out as matrices."""

DENSE_ENTRIES = 2**25
"""The most entries of an operator that is written out: 256 MB."""


def conv_singular_values(
    weight: torch.Tensor,
    size: Sizes,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    groups: int = 1,
    transposed: bool = False,
    *,
    padding: Padding = "circular",
    output_padding: Sizes = 0,
    accurate: bool = False,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """All singular values of a convolution as a linear operator on a map, descending, with their multiplicities.

    With circular padding the operator falls apart into one small matrix per frequency. Everything is computed in
    float64, whatever the dtype of `weight`, on its device; the result can be differentiated.

    The route: Gram matrices of the symbol from the autocorrelation of the kernel where T(T+1) <= 8F (T taps, F
    frequencies), from the symbol otherwise, and their eigenvalues. That loses small values: an absolute error of some
    1e-16 σ_max² / σ. So frequencies with a value below 1e-4 σ_max (of its group) get an SVD of the symbol instead. The
    absolute error of every value stays below 1e-11 σ_max, and the relative one below 1e-12 for values above
    3e-2 σ_max. ``accurate=True`` takes the SVD everywhere: an absolute error of some 1e-15 σ_max, at two to three
    times the cost.

    Circular padding with a stride that does not divide the map, and zero padding, have no such form. Their operators
    are written out as matrices where the smaller dimension is at most 2048 per group (and there are at most 2^25
    entries); for larger ones see `conv_zero_padding`, `conv_spectral_norm` and `conv_extremes`.

    Args:
        weight: (c_out, c_in / groups, *kernel) with 1 to 3 spatial axes; (c_in, c_out / groups, *kernel) if
            `transposed`, as in PyTorch. Any real floating dtype.
        size: Spatial size of the map at the layer's *input*, of a transposed layer too; an integer for all axes or
            one each. A kernel that is larger wraps round.
        stride: As in PyTorch. The circular layer has ceil(size / stride) outputs per axis, a transposed one
            size · stride.
        dilation: As in PyTorch.
        groups: As in PyTorch.
        transposed: The weight is that of a transposed convolution.
        padding: "circular", "zeros" (which makes as many outputs as "circular"; for stride 1 PyTorch's ``"same"``: the
            odd zero of an even kernel comes last), or the zeros themselves: a number, one per axis, or a pair
            (before, after) per axis. Where circular padding starts changes no singular value.
        output_padding: Of a transposed convolution with zero padding in numbers.
        accurate: SVD at every frequency.
        dtype: Of the result; by default that of `weight`, float32 for half precision.

    Returns:
        (min(rows, columns) of the operator,), NaN throughout where `weight` is not finite.

    Raises:
        TypeError: `weight` is no real floating tensor, or a size is no integer.
        ValueError: The arguments do not fit together, or the operator would have to be written out and is too large.

    Example:
        A kernel that only moves the image changes no norm:

        >>> import torch
        >>> shift = torch.zeros(1, 1, 3, 3)
        >>> shift[0, 0, 0, 2] = 1
        >>> conv_singular_values(shift, (2, 3))
        tensor([1., 1., 1., 1., 1., 1.])
    """
    layout = geometry(weight, size, stride, dilation, groups, transposed, padding, output_padding)
    scaled = Scaled(weight, dtype)
    if not scaled.finite:
        return scaled.back(scaled.weight.new_full((count(weight, layout),), float("nan")))
    if layout.stationary:
        return scaled.back(circular_values(scaled.weight, layout, accurate))
    return scaled.back(_dense(scaled.weight, layout))


def conv_singular_values_of(
    module: _ConvNd,
    size: Sizes,
    *,
    accurate: bool = False,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Singular values of a convolutional layer as if its padding were circular, at the cost of that.

    Zero padding is taken for circular, and a map that the stride does not divide is rounded up. `conv_zero_padding`
    says what difference that makes; ``conv_singular_values(module.weight, size, **conv_arguments(module))`` is exact
    where it can be.

    Args:
        module: ``nn.Conv1d``, ``2d``, ``3d`` or one of their transposed versions.
        size: Spatial size of the map at its input.
        accurate: As in `conv_singular_values`.
        dtype: As there.

    Returns:
        As `conv_singular_values`.

    Raises:
        TypeError: `module` is no convolution.
        ValueError: `size` does not fit it.
    """
    arguments = conv_arguments(module)
    layout = geometry(module.weight, size, **arguments)
    nearest = nearest_circular(layout)
    sizes = [a.outputs if arguments["transposed"] else a.size for a in nearest.axes]
    arguments |= {"padding": "circular", "output_padding": 0}
    return conv_singular_values(module.weight, sizes, **arguments, accurate=accurate, dtype=dtype)


def conv_spectral_norm(
    weight: torch.Tensor,
    size: Sizes,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    groups: int = 1,
    transposed: bool = False,
    *,
    padding: Padding = "circular",
    output_padding: Sizes = 0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Largest singular value of a convolution, cheaper than all of them.

    Circular: Lanczos' method picks up to 16 frequencies, and eigenvalues there give the value to rounding, or, if it
    picked wrongly, one that is too small by less than the difference between good candidates. Otherwise: Golub-Kahan
    bidiagonalisation with the layer itself until the residual is 1e-7 of the value, or for 2000 steps; the error is
    usually far below the residual (its square over the gap to the next value). `conv_extremes` tells the residual.

    Args:
        weight: As in `conv_singular_values`.
        size: As there: the map at the layer's input.
        stride: As there.
        dilation: As there.
        groups: As there.
        transposed: As there.
        padding: As there.
        output_padding: As there.
        dtype: As there.

    Returns:
        0-d, NaN where `weight` is not finite. It can be differentiated.

    Raises:
        TypeError: As there.
        ValueError: The arguments do not fit together.

    Example:
        >>> import torch
        >>> blur = torch.full((1, 1, 3, 3), 1 / 9, dtype=torch.float64)
        >>> round(float(conv_spectral_norm(blur, 8)), 6)  # a constant map passes
        1.0
        >>> round(float(conv_spectral_norm(blur, 8, padding="zeros")), 6)  # but loses at the edges
        0.921207
    """
    layout = geometry(weight, size, stride, dilation, groups, transposed, padding, output_padding)
    scaled = Scaled(weight, dtype)
    if not scaled.finite:
        return scaled.back(scaled.weight.new_full((), float("nan")))
    if layout.stationary:
        return scaled.back(largest(canonical(scaled.weight, layout)))
    operator = ConvolutionOperator(scaled.weight, layout)
    return scaled.back(extremes(operator, 1e-7, 2000, smallest=False).largest)


def conv_extremes(
    weight: torch.Tensor,
    size: Sizes,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    groups: int = 1,
    transposed: bool = False,
    *,
    padding: Padding = "zeros",
    output_padding: Sizes = 0,
    tolerance: float = 1e-7,
    steps: int = 500,
) -> Extremes:
    """Largest and smallest singular value of the layer as it is, without writing it out: padding of any kind.

    Golub-Kahan bidiagonalisation in float64 with products of the layer and of its transpose. The small end is reached
    in reasonable time only where it is well above 0, say above σ_max / 30: layers that change the number of channels.
    For square layers it is NaN unless the map is tiny; `conv_singular_values` has it for operators that can be
    written out. Residuals prove that a singular value is there, not that none lies beyond.

    Args:
        weight: As in `conv_singular_values`.
        size: As there: the map at the layer's input.
        stride: As there.
        dilation: As there.
        groups: As there.
        transposed: As there.
        padding: As there.
        output_padding: As there.
        tolerance: Residual, relative to the value, at which it counts as reached.
        steps: The most products with the layer, and with its transpose.

    Returns:
        ``largest``, ``smallest`` (NaN where it was not reached), ``residuals`` (a singular value is known to lie
        that near to each) and the number of ``steps``; float64. ``largest`` can be differentiated.

    Raises:
        TypeError: As there.
        ValueError: The arguments do not fit together, or `tolerance` or `steps` is not positive.
    """
    layout = geometry(weight, size, stride, dilation, groups, transposed, padding, output_padding)
    if not tolerance > 0 or steps < 1:
        raise ValueError(
            f"tolerance and steps must be positive, found tolerance={tolerance}, steps={steps}"
        )
    scaled = Scaled(weight, torch.float64)
    if not scaled.finite:
        nothing = scaled.weight.new_full((), float("nan"))
        return Extremes(nothing, nothing, nothing.expand(2), 0)
    found = extremes(ConvolutionOperator(scaled.weight, layout), tolerance, steps, smallest=True)
    return Extremes(
        scaled.back(found.largest),
        scaled.back(found.smallest),
        scaled.back(found.residuals),
        found.steps,
    )


def _dense(weight: torch.Tensor, layout: Geometry) -> torch.Tensor:
    operator = ConvolutionOperator(weight, layout)
    rows, columns = operator.shape()
    if min(rows, columns) > DENSE or layout.groups * rows * columns > DENSE_ENTRIES:
        kind = "circular padding with a stride that does not divide the map"
        raise ValueError(
            f"{kind if layout.circular else 'zero padding'} has no frequencies, and {layout.groups} matrices of "
            f"{rows} x {columns} are too large to be written out (at most {DENSE} for the smaller side and "
            f"{DENSE_ENTRIES} entries); use conv_zero_padding for an estimate of the spectrum with bounds, "
            "conv_spectral_norm or conv_extremes for the ends, or a circular map that is a multiple of the stride"
        )
    found: torch.Tensor = torch.linalg.svdvals(operator.matrices())
    return found.flatten().sort(descending=True).values
