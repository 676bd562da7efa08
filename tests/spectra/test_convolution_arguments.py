"""Convolution spectra: dtypes, devices, gradients, and what is refused."""

import pytest
import torch
from torch import nn

from propkit.spectra import (
    conv_arguments,
    conv_extremes,
    conv_singular_values,
    conv_singular_values_of,
    conv_spectral_norm,
    conv_zero_padding,
    convolution_gram,
)
from propkit.spectra.convolution_geometry import geometry
from propkit.spectra.convolution_symbol import canonical


def gaussian(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def test_dtypes() -> None:
    for dtype, kept in [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ]:
        weight = gaussian(3, 2, 3, dtype=dtype)
        exact = conv_singular_values(weight.double(), 5)
        found = conv_singular_values(weight, 5)
        assert found.dtype == kept
        torch.testing.assert_close(found, exact.to(kept))
        wide = conv_singular_values(weight, 5, dtype=torch.float64)
        torch.testing.assert_close(wide, exact, rtol=1e-12, atol=0)
        assert conv_spectral_norm(weight, 5, padding="zeros").dtype == kept
        assert conv_zero_padding(weight, 5).upper_bound.dtype == kept


@pytest.mark.parametrize(
    ("shape", "size", "arguments"),
    [
        ((3, 2, 3, 3), (5, 4), {"stride": (1, 2)}),
        ((2, 3, 3), (2,), {}),  # more taps than frequencies
        ((4, 2, 3), (7,), {"groups": 2, "dilation": 2}),
        ((2, 2, 3), (4,), {"padding": "zeros"}),
        ((3, 1, 3), (6,), {"groups": 3}),
    ],
)
def test_gradients(shape, size, arguments) -> None:
    weight = gaussian(*shape).requires_grad_()
    # a function of all values that does not see their order, which may change where two are equal
    assert torch.autograd.gradcheck(
        lambda w: conv_singular_values(w, size, **arguments).pow(3).sum(), weight
    )
    assert torch.autograd.gradcheck(lambda w: conv_spectral_norm(w, size, **arguments), weight)


def test_gradients_of_the_report() -> None:
    weight = gaussian(3, 2, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: conv_zero_padding(w, 4)[:3], weight)


def test_the_gradient_through_frequencies_that_are_done_again() -> None:
    weight = gaussian(3, 3, 3)
    weight[0] = weight[1] + 1e-6 * weight[0]  # every frequency has a value below the floor
    kernel = canonical(weight, geometry(weight, 5))
    values, _ = convolution_gram.values(kernel)
    assert (values.amin(-1) < convolution_gram.FLOOR * values.max()).all()
    weight.requires_grad_()
    (gradient,) = torch.autograd.grad(conv_singular_values(weight, 5).square().sum(), weight)
    torch.testing.assert_close(gradient, 2 * 5 * weight.detach())  # ‖C‖_F² = n ‖K‖_F²


def test_zero_weights_have_finite_gradients() -> None:
    weight = torch.zeros(2, 2, 3, dtype=torch.float64, requires_grad=True)
    total = conv_singular_values(weight, 4).sum() + conv_spectral_norm(weight, 4)
    (gradient,) = torch.autograd.grad(total, weight)
    assert gradient.isfinite().all()


def test_no_random_numbers_are_drawn() -> None:
    state = torch.get_rng_state()
    weight = torch.linspace(-1, 1, 24 * 24 * 9).view(24, 24, 3, 3)
    conv_spectral_norm(weight, 8)
    conv_extremes(weight[:2, :2], 4)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    for shape, size, arguments in [
        ((32, 24, 3, 3), (8, 8), {"stride": 2}),
        ((4, 3, 3, 3), (9, 6), {}),
        ((24, 24, 3), (50,), {}),
    ]:
        weight = gaussian(*shape)
        expected = conv_singular_values(weight, size, accurate=True, **arguments)
        found = conv_singular_values(weight.cuda(), size, **arguments)
        assert found.is_cuda
        assert float((found.cpu() - expected).abs().max()) <= 1e-11 * float(expected[0])
        norm = conv_spectral_norm(weight.cuda(), size, **arguments)
        torch.testing.assert_close(norm.cpu(), expected[0], rtol=1e-10, atol=0)
        report, here = (conv_zero_padding(w, size, **arguments) for w in (weight.cuda(), weight))
        torch.testing.assert_close([x.cpu() for x in report], list(here), rtol=1e-9, atol=1e-9)
        ends, here = (conv_extremes(w, size, **arguments) for w in (weight.cuda(), weight))
        torch.testing.assert_close(ends.largest.cpu(), here.largest, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"weight": torch.ones(2, 2, 3, dtype=torch.int64)}, TypeError, "int64"),
        ({"weight": torch.ones(2, 2, 3, dtype=torch.complex64)}, TypeError, "complex64"),
        ({"weight": torch.ones(2, 3)}, ValueError, r"\(2, 3\)"),
        ({"weight": torch.ones(0, 3, 3)}, ValueError, "no empty one"),
        ({"size": 0}, ValueError, "size must be an integer >= 1"),
        ({"size": (4, 4)}, ValueError, "size must be"),
        ({"size": 4.5}, TypeError, "size must be an integer"),
        ({"stride": 0}, ValueError, "stride"),
        ({"dilation": (1, 2)}, ValueError, "dilation"),
        ({"groups": 3}, ValueError, "groups=3"),
        ({"groups": 0}, ValueError, "groups=0"),
        ({"padding": "reflect"}, ValueError, "reflect"),
        ({"padding": -1}, ValueError, "padding"),
        ({"padding": 1.5}, TypeError, "padding"),
        ({"padding": [(1, 1), (1, 1)]}, ValueError, "each of 1 axes"),
        ({"padding": 0, "size": 2}, ValueError, "no output"),
        ({"output_padding": 1}, ValueError, "transposed"),
        ({"output_padding": 1, "transposed": True}, ValueError, "numbers"),
    ],
)
def test_errors(arguments, error, message) -> None:
    arguments = {"weight": torch.ones(2, 2, 3), "size": 4} | arguments
    with pytest.raises(error, match=message):
        conv_singular_values(**arguments)
    with pytest.raises(error, match=message):
        conv_spectral_norm(**arguments)


def test_operators_too_large_to_write_out_name_the_way_out() -> None:
    weight = torch.ones(64, 64, 3, 3)
    with pytest.raises(ValueError, match="conv_zero_padding"):
        conv_singular_values(weight, 8, padding="zeros")
    with pytest.raises(ValueError, match="1 matrices of 512 x 262144"):
        conv_singular_values(torch.ones(2, 1024, 1, 1), 16, padding="zeros")
    with pytest.raises(ValueError, match="multiple of the stride"):
        conv_singular_values(weight, 17, stride=2)
    with pytest.raises(ValueError, match="conv_singular_values is exact"):
        conv_zero_padding(weight, 8, padding="circular")


def test_layers_that_are_refused() -> None:
    with pytest.raises(TypeError, match="Linear"):
        conv_arguments(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="reflect"):
        conv_singular_values_of(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), 8)
    with pytest.raises(ValueError, match="number of outputs"):
        conv_arguments(nn.Conv2d(2, 2, 3, padding=2, padding_mode="circular"))


@pytest.mark.parametrize("arguments", [{"tolerance": 0.0}, {"steps": 0}])
def test_iterations_that_make_no_sense(arguments) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        conv_extremes(torch.ones(2, 2, 3), 4, **arguments)


def test_gradients_after_inference_mode() -> None:
    weight = gaussian(3, 2, 4)
    with torch.inference_mode():
        conv_singular_values(weight, 11)  # a size that no other test has: nothing is cached yet
    weight.requires_grad_()
    conv_singular_values(weight, 11).sum().backward()
    assert weight.grad.isfinite().all()
