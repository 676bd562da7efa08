"""The Procrustes projection: weights that keep the norm of back-propagated gradients.

Zaeemzadeh, Rahnavard & Shah, arXiv:1805.07477, Sec. 3: the nearest operator all of whose singular
values are σ, with σ such that an isotropic gradient leaves the layer with the norm it came with.
"""

import math

import torch
from torch import Tensor

from propkit.spectra.convolution_geometry import Axis, Geometry, Padding, Sizes, geometry, integers
from propkit.spectra.convolution_symbol import Kernel, canonical
from propkit.training.polar_factor import (
    convolution_polar_factor,
    kernel_lags,
    matrix_polar_factor,
    newton_schulz_step,
)


@torch.no_grad()
def procrustes_(
    weight: Tensor,
    size: Sizes | None,
    stride: Sizes = 1,
    relu: bool = False,
    *,
    dilation: Sizes = 1,
    groups: int = 1,
    transposed: bool = False,
    iterations: int = 1,
    refinements: int = 0,
    rescale: bool = False,
    padding: Padding = "circular",
    bug_compat: bool = False,
) -> Tensor:
    r"""Replace a weight by the nearest that keeps the norm of gradients, in place.

    All singular values of the layer, seen as a circular convolution, become σ with σ² = dim y / rank
    (arXiv:1805.07477, Eqs. 7 and 8): 1 for a layer that does not widen, c_out / c_in for one that
    does, and at stride s, for kernels that read every pixel, c_out / min(s² c_in, c_out). A 1x1
    kernel at stride 2 does not, and has c_out / min(c_in, c_out). Twice that before a ReLU.

    Layers with one tap (linear, 1x1) are projected exactly. Otherwise the operator nearest to the
    kernel has as many taps as the map, and is cut to the kernel's own, so that singular values
    spread around σ, by 0.1 to 0.5 of it at first. Projecting every few steps brings them together, as
    do ``iterations`` (cut and project, in turn) and, more cheaply, ``refinements``.

    Precision: float64 for float64 weights, else float32 (a matrix without taps: float64 where it is
    far from orthonormal). Float32 symbols are projected by products of matrices where those converge,
    which is checked; others by the eigenvalues of their Gram matrices
    (`propkit.training.inverse_root.InverseRoots` has the rule). Both are exact to rounding, so that no
    number of iterations has to be chosen; singular values below √(mε) of the largest, 0.003 in
    float32 for 64 channels, are raised only in part. A weight of zeros stays zero.

    Args:
        weight: ``(c_out, c_in / groups, *kernel)``, ``(c_in, c_out / groups, *kernel)`` if
            transposed, or a linear layer's ``(c_out, c_in)``. Any real floating dtype.
        size: The layer's input map per axis, or one number for all; rounded up to a multiple of the
            stride. Without meaning, and may be None, where there is one tap.
        stride: As in the layer.
        relu: A ReLU follows, which takes half of the gradient's energy.
        dilation: As in the layer.
        groups: As in the layer.
        transposed: The layer is a transposed convolution.
        iterations: Projections in turn with the cut to the kernel, at least 1.
        refinements: Newton-Schulz steps K ← (3 K − K ⋆ Kᵀ ⋆ K / σ²) / 2, cut to the kernel, after
            that; a step costs two convolutions of the kernel with itself.
        rescale: Scale the kernel so that isotropic gradients keep their norm exactly (in the mean
            square) in spite of the cut.
        padding: What ``rescale`` counts on: ``"circular"``, ``"zeros"`` or numbers of zeros, as in
            `propkit.spectra.conv_spectral_norm`.
        bug_compat: Repeat the error of both official repositories, which read the spectrum back
            conjugated: the projected kernel is cut at the wrong place, position −t of the map for
            tap t, and most of a kernel with several taps is lost. 1x1 is not concerned. For
            replication alone; stride 1, and the σ of this function.

    Returns:
        The weight.

    Raises:
        TypeError: The weight is no real floating tensor.
        ValueError: The arguments do not fit together, or the weight has values that are not finite.

    Example:
        >>> W = procrustes_(torch.randn(8, 4, 1, 1), size=16).flatten(1)
        >>> torch.allclose(W.T @ W, 2 * torch.eye(4), atol=1e-5)
        True
    """
    steps = (
        integers(iterations, 1, "iterations", least=1)[0],
        integers(refinements, 1, "refinements", least=0)[0],
    )
    kernel = weight.detach().unsqueeze(2) if weight.ndim == 2 else weight.detach()
    if weight.ndim == 2 or size is None:
        size = _any_size(kernel, stride, transposed)
    actual = geometry(kernel, size, stride, dilation, groups, transposed, padding)
    layout = _circular(actual, transposed)
    if bug_compat and any(axis.stride > 1 for axis in layout.axes):
        raise ValueError("bug_compat is for convolutions of stride 1, as in the official code")
    low, high = torch.aminmax(kernel)
    top = torch.maximum(-low, high)
    if not torch.isfinite(top):
        raise ValueError("the weight has values that are not finite; there is nothing to project")
    # The projection ignores scale, and squares of what is at most 1 stay in range.
    kernel = kernel.to(torch.promote_types(weight.dtype, torch.float32)) / top.where(top > 0, 1.0)
    if _one_tap(kernel):
        kernel = _project_matrix(kernel, layout, transposed)
    else:
        kernel = _project_kernel(
            kernel, layout, transposed, *steps, rescale and actual.circular, bug_compat
        )
    if rescale and not actual.circular:
        kernel = _rescale(kernel, actual, transposed)
    return weight.copy_(kernel.reshape(weight.shape) * (math.sqrt(2) if relu else 1))


def _one_tap(kernel: Tensor) -> bool:
    return math.prod(kernel.shape[2:]) == 1


def _any_size(kernel: Tensor, stride: Sizes, transposed: bool) -> Sizes:
    """A map for a layer that treats all alike."""
    if not _one_tap(kernel):
        raise ValueError(
            f"the projection of a kernel {tuple(kernel.shape[2:])} depends on the map: give its size"
        )
    return 1 if transposed else stride


def _circular(actual: Geometry, transposed: bool) -> Geometry:
    """The layer on a periodic map whose size the stride divides, with as many outputs."""
    axes = []
    for axis in actual.axes:
        points = -(-axis.size // axis.stride) if not transposed else axis.outputs
        axes.append(axis._replace(size=points * axis.stride, outputs=points, low=0))
    return Geometry(tuple(axes), actual.groups, circular=True)


def _gain(layout: Geometry, kernel: Tensor, columns: int, transposed: bool) -> float:
    """σ = √(dim y / rank) of a layer whose Fourier symbol has `columns` columns in each group."""
    filters = kernel.shape[0] // layout.groups
    outputs = kernel.shape[1] * math.prod(a.stride for a in layout.axes) if transposed else filters
    return math.sqrt(outputs / min(filters, columns))


def _project_matrix(kernel: Tensor, layout: Geometry, transposed: bool) -> Tensor:
    matrices = kernel.reshape(layout.groups, -1, kernel.shape[1])
    tall = matrices.shape[1] > matrices.shape[2]
    factor = matrix_polar_factor(matrices.mT if tall else matrices)
    factor = factor.mT if tall else factor
    return factor.reshape(kernel.shape) * _gain(layout, kernel, kernel.shape[1], transposed)


def _project_kernel(
    kernel: Tensor,
    layout: Geometry,
    transposed: bool,
    iterations: int,
    refinements: int,
    rescale: bool,
    bug_compat: bool,
) -> Tensor:
    form = _CanonicalForm(kernel, layout)
    for _ in range(iterations):
        form.set(convolution_polar_factor(form.kernel, bug_compat))
    if refinements:
        lags = kernel_lags(form.kernel)
        for _ in range(refinements):
            form.set(newton_schulz_step(form.kernel.taps, lags))
    taps = form.kernel.taps
    factor = _gain(layout, kernel, form.columns, transposed)
    if rescale:  # Σ of the squares of a group's singular values, over all frequencies
        norm = taps.square().sum((1, 2, 3), keepdim=True)
        form.set(taps * (taps.shape[1] / norm.clamp_min(torch.finfo(norm.dtype).tiny)).sqrt())
    return form.weight() * factor


class _CanonicalForm:
    """A kernel in canonical form, and the way back: taps of the form that the kernel lacks are cut."""

    def __init__(self, weight: Tensor, layout: Geometry) -> None:
        self._original = weight
        with torch.enable_grad():
            self._leaf = weight.clone().requires_grad_()
            self._form = canonical(self._leaf, layout)
        self.kernel: Kernel = self._form._replace(taps=self._form.taps.detach())
        self._wraps = any(_meet(axis) for axis in layout.axes)
        # How many taps of the weight make an entry: 0 for those cut, above 1 where the kernel wraps.
        self._merged: Tensor | None = None
        if self._wraps or any(axis.stride > 1 for axis in layout.axes):
            self._merged = canonical(torch.ones_like(weight), layout).taps
        filters = weight.shape[0] // layout.groups
        _, m, _, c = self.kernel.taps.shape
        self.columns = c if m == filters else m

    def set(self, taps: Tensor) -> None:
        """Replace the taps, less those that the kernel lacks."""
        if self._merged is not None:
            taps = taps * (self._merged > 0)
        self.kernel = self.kernel._replace(taps=taps)

    def weight(self) -> Tensor:
        """The weight that has the present taps; where it wraps, of all those the nearest to the first."""
        taps = self.kernel.taps
        if self._merged is not None and self._wraps:
            change = (taps - self._form.taps.detach()) / self._merged.clamp_min(1)
            return self._original + self._adjoint(change)
        return self._adjoint(taps)

    def _adjoint(self, taps: Tensor) -> Tensor:
        """The transpose of what makes taps of a weight: where that is one to one, its inverse."""
        (back,) = torch.autograd.grad(self._form.taps, self._leaf, taps)
        return back


def _meet(axis: Axis) -> bool:
    """Whether several taps read the same point of the periodic map."""
    return len({axis.dilation * t % axis.size for t in range(axis.taps)}) < axis.taps


def _rescale(kernel: Tensor, actual: Geometry, transposed: bool) -> Tensor:
    """The kernel times what makes ‖A‖_F² = dim y in each group, A the layer with zeros around."""
    weights = kernel.square()
    for j, axis in enumerate(actual.axes):
        shape = [-1 if i == 2 + j else 1 for i in range(kernel.ndim)]
        weights = weights * torch.tensor(_times_read(axis), device=kernel.device).view(shape)
    norm = weights.reshape(actual.groups, -1).sum(1)
    filters = kernel.shape[0] // actual.groups
    if transposed:
        dim_y = kernel.shape[1] * math.prod(a.size for a in actual.axes)
    else:
        dim_y = filters * math.prod(a.outputs for a in actual.axes)
    factor = (dim_y / norm.clamp_min(torch.finfo(norm.dtype).tiny)).sqrt()
    return kernel * factor.repeat_interleave(filters).view(-1, *[1] * (kernel.ndim - 1))


def _times_read(axis: Axis) -> list[int]:
    """For each tap, how many outputs it reads the map for, not the padding."""
    return [
        sum(
            0 <= axis.stride * i + axis.dilation * t - axis.low < axis.size
            for i in range(axis.outputs)
        )
        for t in range(axis.taps)
    ]
