"""Circular convolution spectra against the matrix of the operator, written out entry by entry."""

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from propkit.spectra import (
    conv_arguments,
    conv_singular_values,
    conv_singular_values_of,
    conv_spectral_norm,
)
from tests.spectra.convolution_matrix import matrix, singular


@st.composite
def circular_cases(draw):
    """A layer whose matrix has at most some 300 rows."""
    dims = draw(st.integers(1, 3))
    most = {1: 8, 2: 4, 3: 2}[dims]  # points of the smaller map, per axis
    groups = draw(st.integers(1, 3))
    filters = groups * draw(st.integers(1, 3))
    channels = draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, {1: 9, 2: 4, 3: 3}[dims])) for _ in range(dims)]
    stride = [draw(st.integers(1, 3)) for _ in range(dims)]
    dilation = [draw(st.integers(1, 4)) for _ in range(dims)]
    small = [draw(st.integers(1, most)) for _ in range(dims)]
    return (
        (filters, channels, *kernel),
        small,
        stride,
        dilation,
        groups,
        draw(st.booleans()),
        draw(st.integers(0, 2**31)),
    )


@settings(deadline=None, max_examples=150)
@given(circular_cases(), st.booleans())
@example(((2, 1, 3), [4], [1], [3], 1, False, 0), False)  # dilation puts the taps out of order
@example(((2, 2, 5, 5), [3, 2], [1, 1], [1, 1], 1, False, 0), False)  # kernel > map
@example(((4, 3, 3, 3), [4, 2], [2, 3], [1, 2], 2, True, 0), False)
@example(((3, 3, 2, 3, 2), [3, 2, 2], [1, 2, 1], [1, 1, 2], 1, False, 0), False)
def test_circular_spectra_are_those_of_the_matrix(case, accurate) -> None:
    shape, small, stride, dilation, groups, transposed, seed = case
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    large = [n * s for n, s in zip(small, stride, strict=True)]
    expected = singular(matrix(weight, large, small, stride, dilation, groups))
    arguments = (small if transposed else large, stride, dilation, groups, transposed)
    found = conv_singular_values(weight, *arguments, accurate=accurate)
    assert found.dtype == torch.float64
    assert found.shape == expected.shape
    assert (found[1:] <= found[:-1]).all()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * expected[0])
    above = expected >= 3e-2 * expected[0]
    np.testing.assert_allclose(found[above], expected[above], rtol=1e-12)
    norm = conv_spectral_norm(weight, *arguments)
    np.testing.assert_allclose(norm, expected[0], rtol=1e-12)

    single = conv_singular_values(weight.float(), *arguments, accurate=accurate)
    assert single.dtype == torch.float32
    exact = singular(matrix(weight.float(), large, small, stride, dilation, groups))
    np.testing.assert_allclose(single[above], exact[above], rtol=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 3),
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 4)), min_size=1, max_size=2
    ),
    st.integers(0, 2**31),
)
def test_a_stride_that_does_not_divide_the_map(channels, axes, seed) -> None:
    kernel, sizes, stride = (list(x) for x in zip(*axes, strict=True))
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, channels, *kernel, generator=generator, dtype=torch.float64)
    outputs = [-(-n // s) for n, s in zip(sizes, stride, strict=True)]
    expected = singular(matrix(weight, sizes, outputs, stride, [1] * len(axes), 1))
    found = conv_singular_values(weight, sizes, stride)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * expected[0])
    norm = conv_spectral_norm(weight, sizes, stride)
    np.testing.assert_allclose(norm, expected[0], rtol=1e-9)


def test_pytorchs_circular_padding() -> None:
    for k, s, p in [(3, 1, 1), (3, 2, 1), (4, 2, 1), (5, 1, 2)]:
        layer = nn.Conv2d(2, 3, k, s, p, padding_mode="circular", bias=False).double()
        basis = torch.eye(2 * 6 * 8, dtype=torch.float64).view(-1, 2, 6, 8)
        expected = torch.linalg.svdvals(layer(basis).flatten(1))
        found = conv_singular_values(layer.weight, (6, 8), **conv_arguments(layer))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(conv_singular_values_of(layer, (6, 8)), found)
