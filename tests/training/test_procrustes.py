"""The Procrustes projection against dense operators built by autograd, and polar factors by SVD."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from propkit.training import procrustes_


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def circular(weight, x, stride=1, dilation=1, groups=1):
    """The layer on a periodic map: x comes with all it reads appended, by index."""
    for axis, k in enumerate(weight.shape[2:]):
        n = x.shape[2 + axis]
        reach = (n // stride - 1) * stride + dilation * (k - 1) + 1
        x = x.index_select(2 + axis, torch.arange(reach) % n)
    convolution = (F.conv1d, F.conv2d, F.conv3d)[weight.ndim - 3]
    return convolution(x, weight, stride=stride, dilation=dilation, groups=groups)


def dense(layer, channels, size, dims):
    """(dim y, dim x) of a linear map, column by column."""
    basis = torch.eye(channels * size**dims, dtype=torch.float64)
    return layer(basis.view(-1, channels, *[size] * dims)).flatten(1).T.numpy()


def polar(a):
    """Polar factor times √(rows / rank); directions without gain stay so."""
    u, s, v = np.linalg.svd(a, full_matrices=False)
    kept = s > 1e-9 * s[0]
    return u[:, kept] @ v[kept] * math.sqrt(len(a) / kept.sum())


def taps_of(operator, shape, size, stride, dilation, groups):
    """The weight read off the rows of a dense operator that make the first output pixel."""
    filters, channels, *kernel = shape
    dims = len(kernel)
    maps = operator.reshape(filters, *[size // stride] * dims, channels * groups, *[size] * dims)
    found = torch.empty(shape, dtype=torch.float64)
    for o, c, *t in np.ndindex(*shape):
        column = c + o // (filters // groups) * channels
        place = tuple(dilation * x % size for x in t)
        found[(o, c, *t)] = maps[(o, *[0] * dims, column, *place)]
    return found


CASES = [  # shape, size, stride, dilation, groups
    ((4, 3, 3, 3), 6, 1, 1, 1),
    ((3, 5, 3, 3), 5, 1, 1, 1),
    ((4, 3, 3, 3), 6, 2, 1, 1),  # 4 <= 2² 3
    ((9, 2, 3, 3), 6, 2, 1, 1),  # 9 > 2² 2
    ((4, 2, 3), 8, 2, 1, 2),
    ((4, 2, 3), 9, 1, 2, 2),
    ((5, 3, 2, 2), 6, 3, 1, 1),  # pixels that nothing reads
    ((6, 4, 1, 1), 4, 2, 1, 1),
    ((3, 7, 1, 1), 4, 1, 1, 1),
    ((2, 3, 2, 2, 2), 4, 1, 1, 1),
    ((4, 1, 3, 3), 6, 1, 1, 4),
    ((9, 3, 7), 8, 1, 1, 1),  # by the symbol
    ((36, 34, 3), 12, 1, 1, 1),  # two, and one, of the taps at a time
    ((50, 50, 3), 10, 1, 1, 1),
    ((3, 2, 5, 5), 6, 1, 1, 1),
]


@pytest.mark.parametrize(("shape", "size", "stride", "dilation", "groups"), CASES)
def test_is_the_polar_factor_of_the_dense_operator_cut_to_the_kernel(
    shape, size, stride, dilation, groups
):
    weight = gaussian(*shape)
    operator = dense(
        lambda x: circular(weight, x, stride, dilation, groups),
        shape[1] * groups,
        size,
        len(shape) - 2,
    )
    expected = taps_of(polar(operator), shape, size, stride, dilation, groups)
    found = procrustes_(weight.clone(), size, stride, dilation=dilation, groups=groups)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    single = procrustes_(weight.float(), size, stride, dilation=dilation, groups=groups)
    torch.testing.assert_close(single.double(), expected, atol=1e-4, rtol=0)


def test_transposed_convolution_is_the_polar_factor_of_its_dense_operator():
    """Stride 2 on a map of 4: a 3x3 kernel scatters onto 8 x 8 pixels."""
    weight, size = gaussian(5, 2, 3, 3), 4

    def scatter(x):
        out = F.conv_transpose2d(x, weight, stride=2)  # 9 x 9: what goes over the edge comes back
        for axis in (2, 3):
            head, tail = out.split([2 * size, 1], axis)
            head = head.clone()
            head.narrow(axis, 0, 1).add_(tail)
            out = head
        return out

    projected = polar(dense(scatter, 5, size, 2)).reshape(2, 8, 8, 5, size, size)
    expected = torch.from_numpy(projected[:, :3, :3, :, 0, 0].transpose(3, 0, 1, 2))
    found = procrustes_(weight.clone(), size, 2, transposed=True)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("shape", "stride", "expected"),
    [
        ((8, 4, 1, 1), 1, 2.0),
        ((4, 8, 1, 1), 1, 1.0),
        ((128, 64, 1, 1), 2, 2.0),
        ((64, 3), 1, 64 / 3),
        ((6, 1, 1), 1, 6.0),
    ],
)
def test_squared_gain_of_layers_with_one_tap(shape, stride, expected):
    weight = procrustes_(gaussian(*shape), None, stride).flatten(1)
    squares = torch.linalg.svdvals(weight).square()
    torch.testing.assert_close(squares, torch.full_like(squares, expected))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    ("shape", "size", "stride"),
    [
        ((12, 5, 3, 3), 8, 1),
        ((5, 12, 3, 3), 8, 1),
        ((16, 3, 3, 3), 8, 2),
        ((6, 4, 3, 3), 8, 2),
        ((16, 8, 1, 1), 8, 2),
    ],
)
def test_isotropic_gradients_keep_their_norm(shape, size, stride, relu):
    """By a backward pass through the layer; a ReLU passes a random half of the gradient."""
    weight = procrustes_(gaussian(*shape), size, stride, relu, rescale=True)
    x = torch.zeros(64, shape[1], size, size, dtype=torch.float64, requires_grad=True)
    y = circular(weight, x, stride)
    arriving = gaussian(*y.shape, seed=1)
    mask = (gaussian(*y.shape, seed=2) > 0) if relu else 1.0
    y.backward(arriving * mask)
    # standard error below 1 %
    assert float(x.grad.norm() / arriving.norm()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("shape", "size", "stride", "padding"),
    [
        ((6, 4, 3, 3), 4, 1, 1),
        ((6, 4, 3, 3), 7, 2, 1),
        ((4, 6, 5, 5), 6, 1, 2),
        ((4, 3, 3, 3), 6, 1, 0),
    ],
)
def test_rescaled_for_zero_padding_exactly(shape, size, stride, padding):
    """E ‖Aᵀg‖² / ‖g‖² = ‖A‖_F² / dim y, A the layer with zeros around."""
    weight = procrustes_(gaussian(*shape), size, stride, rescale=True, padding=[padding] * 2)
    a = dense(lambda x: F.conv2d(x, weight, stride=stride, padding=padding), shape[1], size, 2)
    assert (a**2).sum() / len(a) == pytest.approx(1, rel=1e-12)


def test_rescaled_for_zero_padding_transposed_and_grouped():
    weight = procrustes_(
        gaussian(4, 3, 3, 3), 5, 2, groups=2, transposed=True, rescale=True, padding=[1, 1]
    )
    a = dense(lambda x: F.conv_transpose2d(x, weight, stride=2, padding=1, groups=2), 4, 5, 2)
    assert (a**2).sum() / len(a) == pytest.approx(1, rel=1e-12)


def test_the_cut_loses_norm_and_rescaling_restores_it():
    weight = gaussian(8, 8, 3, 3)
    cut = procrustes_(weight.clone(), 8).square().sum()
    assert 0.5 * 8 < cut < 0.99 * 8
    assert float(procrustes_(weight.clone(), 8, rescale=True).square().sum()) == pytest.approx(8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(8, 4, 1, 1), (4, 8, 1, 1), (8, 8), (6, 6, 3, 3), (6, 4, 3, 3)])
def test_what_is_on_target_stays(shape, dtype):
    """Fixed points: any orthogonal 1x1, and the delta-orthogonal kernel wherever its tap is."""
    c_out, c_in = shape[:2]
    sigma = math.sqrt(c_out / min(c_out, c_in))
    orthogonal = torch.nn.init.orthogonal_(torch.empty(c_out, c_in, dtype=torch.float64)) * sigma
    weight = torch.zeros(shape, dtype=torch.float64)
    if len(shape) == 4 and shape[2] > 1:
        weight[:, :, 1, 2] = orthogonal
    else:
        weight = orthogonal.reshape(shape)
    found = procrustes_(weight.to(dtype), 8)
    torch.testing.assert_close(found, weight.to(dtype), atol=10 * torch.finfo(dtype).eps, rtol=0)


@given(
    c_out=st.integers(1, 12),
    c_in=st.integers(1, 12),
    scale=st.floats(1e-20, 1e15),
    near=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_one_tap_is_idempotent_and_ignores_scale(c_out, c_in, scale, near, seed):
    weight = gaussian(c_out, c_in, seed=seed)
    if near:  # takes Newton-Schulz steps at once
        weight = procrustes_(weight, None) + 0.02 * gaussian(c_out, c_in, seed=seed + 1)
    once = procrustes_(weight.clone(), None)
    torch.testing.assert_close(procrustes_(once.clone(), None), once, atol=1e-12, rtol=0)
    expected = torch.from_numpy(polar(weight.numpy()))
    torch.testing.assert_close(once, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(procrustes_(weight * scale, None), once, atol=1e-6, rtol=0)


def test_refinements_are_newton_schulz_steps_by_the_dense_operator():
    weight = procrustes_(gaussian(4, 3, 3, 3), 6)
    a = dense(lambda x: circular(weight, x), 3, 6, 2)
    sigma2 = 4 / 3
    expected = taps_of(1.5 * a - 0.5 * a @ a.T @ a / sigma2, weight.shape, 6, 1, 1, 1)
    found = procrustes_(gaussian(4, 3, 3, 3), 6, refinements=1)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_kernel_larger_than_the_map_gets_the_operator_right():
    """3x3 on a map of 2: taps 0 and 2 are the same pixel."""
    weight = procrustes_(gaussian(4, 4, 3, 3), 2)
    a = dense(lambda x: circular(weight, x), 4, 2, 2)
    np.testing.assert_allclose(np.linalg.svd(a, compute_uv=False), 1, atol=1e-9)


def test_a_size_that_the_stride_does_not_divide_is_rounded_up():
    weight = gaussian(6, 4, 3, 3)
    odd, even = (procrustes_(weight.clone(), size, 2) for size in (7, 8))
    torch.testing.assert_close(odd, even, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 1, 1), (4, 3, 3, 3)])
@pytest.mark.parametrize("rescale", [False, True])
def test_zeros_stay_zeros(shape, rescale):
    assert not procrustes_(torch.zeros(shape), 8, rescale=rescale).any()


def test_a_missing_direction_gets_no_gain_out_of_noise():
    weight = gaussian(6, 4, 3, 3).float()
    weight[:, 3] = 1e-9 * weight[:, 2]
    found = procrustes_(weight, 8)
    assert found.isfinite().all()
    assert found[:, 3].norm() < 0.01 * found[:, 2].norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_in_place_keeps_dtype_layout_and_parameter(dtype):
    weight = torch.nn.Parameter(
        gaussian(6, 4, 3, 3).to(dtype).to(memory_format=torch.channels_last)
    )
    expected = procrustes_(weight.detach().double(), 8)
    assert procrustes_(weight, 8) is weight
    assert weight.dtype == dtype
    assert weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(weight.detach().double(), expected, atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"weight": torch.zeros(2, 2, 3, 3), "size": None}, ValueError, "give its size"),
        ({"weight": torch.zeros(2, 2, 3, 3, dtype=torch.int64)}, TypeError, "floating-point"),
        ({"weight": torch.zeros(2)}, ValueError, "spatial axes"),
        ({"weight": torch.full((2, 2, 1, 1), math.nan)}, ValueError, "not finite"),
        ({"size": 0}, ValueError, "size must be"),
        ({"stride": 0}, ValueError, "stride must be"),
        ({"groups": 4}, ValueError, "does not divide"),
        ({"iterations": 0}, ValueError, "iterations must be"),
        ({"refinements": -1}, ValueError, "refinements must be"),
        ({"stride": 2, "bug_compat": True}, ValueError, "stride 1"),
    ],
)
def test_arguments_that_do_not_fit(arguments, error, message):
    weight = arguments.pop("weight", torch.ones(2, 2, 3, 3))
    with pytest.raises(error, match=message):
        procrustes_(weight, arguments.pop("size", 8), **arguments)
