"""Zero-padded convolutions, as networks have them, against PyTorch's own layers and the matrix from the definition."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from propkit.spectra import (
    conv_arguments,
    conv_extremes,
    conv_singular_values,
    conv_singular_values_of,
    conv_spectral_norm,
    conv_zero_padding,
)
from tests.spectra.convolution_matrix import matrix, singular

LAYERS = {
    (1, False): nn.Conv1d,
    (2, False): nn.Conv2d,
    (3, False): nn.Conv3d,
    (1, True): nn.ConvTranspose1d,
    (2, True): nn.ConvTranspose2d,
    (3, True): nn.ConvTranspose3d,
}


def written_out(layer: nn.Module, size: tuple[int, ...]) -> torch.Tensor:
    """The matrix of `layer`, by applying it to each unit vector."""
    inputs = (layer.in_channels, *size)
    basis = torch.eye(int(np.prod(inputs)), dtype=torch.float64)
    return layer(basis.view(-1, *inputs)).flatten(1).detach()


@st.composite
def layers(draw):
    dims = draw(st.integers(1, 3))
    transposed = draw(st.booleans())
    groups = draw(st.integers(1, 2))
    most = {1: 7, 2: 4, 3: 2}[dims]

    def each(low, high):
        return [draw(st.integers(low, high)) for _ in range(dims)]

    kernel, stride, dilation, padding = each(1, 4), each(1, 3), each(1, 3), each(0, 3)
    size = each(1, most)
    arguments = {}
    for j in range(dims):  # enough for an output
        span = dilation[j] * (kernel[j] - 1)
        if transposed:
            while (size[j] - 1) * stride[j] - 2 * padding[j] + span < 0:
                size[j] += 1
        else:
            size[j] = max(size[j], span + 1 - 2 * padding[j])
    if transposed:
        largest = [max(s, d) - 1 for s, d in zip(stride, dilation, strict=True)]
        arguments["output_padding"] = tuple(draw(st.integers(0, m)) for m in largest)
    torch.manual_seed(draw(st.integers(0, 2**31)))
    layer = LAYERS[dims, transposed](
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 3)),
        tuple(kernel),
        stride=tuple(stride),
        dilation=tuple(dilation),
        padding=tuple(padding),
        groups=groups,
        bias=False,
        **arguments,
    )
    return layer.double(), tuple(size)


@settings(deadline=None, max_examples=120)
@given(layers())
def test_against_pytorchs_layers(case) -> None:
    layer, size = case
    a = written_out(layer, size)
    exact = torch.linalg.svdvals(a)
    weight, arguments = layer.weight.detach(), conv_arguments(layer)
    top = float(exact[0])
    found = conv_singular_values(weight, size, **arguments)
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-13 * top)

    norm = conv_spectral_norm(weight, size, **arguments)
    np.testing.assert_allclose(norm, top, rtol=1e-9)

    report = conv_zero_padding(weight, size, **arguments)
    frobenius = float(torch.linalg.vector_norm(a))
    np.testing.assert_allclose(report.frobenius_norm, frobenius, rtol=1e-13)
    assert top <= float(report.upper_bound)
    single = conv_zero_padding(weight, size, **arguments, dtype=torch.float32)
    assert top <= float(single.upper_bound) <= 1.00001 * float(report.upper_bound)
    rescaled = report.singular_values
    np.testing.assert_allclose(torch.linalg.vector_norm(rescaled), frobenius, rtol=1e-13)
    circular = conv_singular_values_of(layer, size).detach()
    torch.testing.assert_close(circular[0], report.circular_norm)
    scale = rescaled[0] / circular[0]
    torch.testing.assert_close(circular * scale, rescaled, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, (3, 2)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_zeros_are_pytorchs_same(kernel, dilation) -> None:
    layer = nn.Conv2d(2, 3, kernel, dilation=dilation, bias=False).double()
    pads = [dilation * (k - 1) for k in layer.kernel_size]
    # written out, since PyTorch warns of the copy that "same" makes for even kernels
    basis = torch.eye(2 * 20, dtype=torch.float64).view(-1, 2, 5, 4)
    around = (pads[1] // 2, pads[1] - pads[1] // 2, pads[0] // 2, pads[0] - pads[0] // 2)
    exact = torch.linalg.svdvals(layer(nn.functional.pad(basis, around)).flatten(1).detach())
    weight = layer.weight.detach()
    by_word = conv_singular_values(weight, (5, 4), dilation=dilation, padding="zeros")
    torch.testing.assert_close(by_word, exact)
    same = nn.Conv2d(2, 3, kernel, dilation=dilation, padding="same", bias=False)
    read = conv_singular_values(weight, (5, 4), **conv_arguments(same))
    torch.testing.assert_close(read, exact)


def test_no_padding_at_all() -> None:
    layer = nn.Conv2d(2, 3, 2, padding="valid", bias=False).double()
    exact = torch.linalg.svdvals(written_out(layer, (5, 4)))
    read = conv_singular_values(layer.weight.detach(), (5, 4), **conv_arguments(layer))
    torch.testing.assert_close(read, exact)


def test_what_networks_have() -> None:
    """3x3/2 on odd maps, a 7x7/2 stem, 1x1/2 shortcuts, 4x4/2 upsampling, depthwise."""
    cases = [
        (nn.Conv2d(3, 4, 3, 2, 1, bias=False), (7, 9)),
        (nn.Conv2d(3, 8, 7, 2, 3, bias=False), (12, 12)),
        (nn.Conv2d(4, 8, 1, 2, bias=False), (5, 5)),
        (nn.ConvTranspose2d(4, 2, 4, 2, 1, bias=False), (5, 4)),
        (nn.Conv2d(6, 6, 3, 1, 1, groups=6, bias=False), (6, 5)),
    ]
    for layer, size in cases:
        layer.double()
        exact = torch.linalg.svdvals(written_out(layer, size))
        weight, arguments = layer.weight.detach(), conv_arguments(layer)
        norm = conv_spectral_norm(weight, size, **arguments)
        np.testing.assert_allclose(norm, exact[0], rtol=1e-9)
        report = conv_zero_padding(weight, size, **arguments)
        assert exact[0] <= report.upper_bound
        assert report.upper_bound <= 1.5 * exact[0]  # a bound worth having
        assert exact[0] / 1.5 <= report.circular_norm <= 1.5 * exact[0]


def test_the_padding_is_where_the_arguments_say() -> None:
    """Uneven zeros, against the matrix from the definition."""
    weight = torch.randn(2, 3, 4, 3, dtype=torch.float64)
    size, stride, dilation, padding = (6, 7), (1, 2), (1, 2), [(0, 2), (3, 1)]
    outputs = [
        (n + sum(p) - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(size, padding, dilation, (4, 3), stride, strict=True)
    ]
    a = matrix(weight, size, outputs, stride, dilation, 1, low=(0, 3))
    arguments = {"stride": stride, "dilation": dilation, "padding": padding}
    found = conv_singular_values(weight, size, **arguments)
    np.testing.assert_allclose(found, singular(a), atol=1e-13)
    report = conv_zero_padding(weight, size, **arguments)
    np.testing.assert_allclose(report.frobenius_norm, np.linalg.norm(a), rtol=1e-14)
    assert singular(a)[0] <= report.upper_bound


def test_rescaling_brings_the_spectrum_nearer() -> None:
    weight = torch.randn(16, 8, 3, 3, dtype=torch.float64)
    exact = conv_singular_values(weight, 8, padding="zeros")
    circular = conv_singular_values(weight, 8)
    rescaled = conv_zero_padding(weight, 8).singular_values
    before, after = ((x - exact).abs().mean() for x in (circular, rescaled))
    assert after < before / 2


@pytest.mark.parametrize(
    ("shape", "size", "arguments"),
    [
        ((16, 16, 3, 3), (10, 10), {}),
        ((16, 8, 3, 3), (11, 9), {"stride": 2, "padding": 1}),
        ((16, 8, 3), (40,), {"transposed": True, "stride": 2}),
        ((12, 6, 3, 3), (9, 9), {"groups": 3, "padding": "circular", "stride": 2}),
        ((16, 8, 3, 3), (7, 7), {}),
    ],
)
def test_the_ends_without_writing_it_out(shape, size, arguments) -> None:
    groups = arguments.get("groups", 1)
    weight = torch.randn(shape[0], shape[1] // groups, *shape[2:], dtype=torch.float64)
    exact = conv_singular_values(weight, size, **{"padding": "zeros"} | arguments)
    found = conv_extremes(weight, size, **arguments, steps=300)
    assert float((found.largest - exact[0]).abs()) <= 1e-9 * float(exact[0])
    if found.smallest.isnan():
        assert exact[-1] < exact[0] / 30
    else:
        assert float((found.smallest - exact[-1]).abs()) <= 1e-6 * float(exact[-1])
    cut = conv_extremes(weight, size, **arguments, steps=3)
    assert cut.steps == 3
    assert cut.smallest.isnan()
    assert (exact - cut.largest).abs().min() <= cut.residuals[0]  # what the residual promises


def test_the_norm_of_a_layer_of_usual_size_against_arpack() -> None:
    layer = nn.Conv2d(16, 32, 3, 2, 1, bias=False).double().requires_grad_(False)
    shape = (32 * 256, 16 * 1024)

    def apply(v):
        return layer(torch.from_numpy(v).view(1, 16, 32, 32)).flatten().numpy()

    def transposed(u):
        y = torch.from_numpy(u).view(1, 32, 16, 16)
        x = nn.functional.conv_transpose2d(y, layer.weight, None, 2, 1, output_padding=1)
        return x.flatten().numpy()

    operator = scipy.sparse.linalg.LinearOperator(
        shape, matvec=apply, rmatvec=transposed, dtype=np.float64
    )
    start = np.random.default_rng(0).standard_normal(min(shape))
    exact = scipy.sparse.linalg.svds(operator, k=1, v0=start, return_singular_vectors=False)[0]
    norm = conv_spectral_norm(layer.weight, (32, 32), **conv_arguments(layer))
    np.testing.assert_allclose(norm, exact, rtol=1e-9)


@pytest.mark.parametrize("padding", [(0, 1), (1, 0)])
def test_the_bound_needs_room_for_the_zeros(padding) -> None:
    """On a circle of 3 points the difference operator has the norm √3, less than with a zero at one end."""
    weight = torch.tensor([[[1.0, -1.0]]], dtype=torch.float64)
    exact = 2 * np.cos(np.pi / 7)
    found = conv_singular_values(weight, 3, padding=[padding])
    np.testing.assert_allclose(found[0], exact, rtol=1e-14)
    report = conv_zero_padding(weight, 3, padding=[padding])
    np.testing.assert_allclose(report.circular_norm, np.sqrt(3), rtol=1e-14)
    np.testing.assert_allclose(report.upper_bound, 2, rtol=1e-14)  # on a circle of 4
