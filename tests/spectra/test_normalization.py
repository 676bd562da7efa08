"""Layer, group and RMS normalisation's spectra against the Jacobians that autograd gives, in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.functional import jacobian

from propkit.spectra.normalization import (
    group_norm_singular_values,
    layer_norm_singular_values,
    power_sums,
    rms_norm_singular_values,
)

GAMMAS = st.sampled_from(["none", "constant", "negative", "some equal", "varies", "with zeros"])


def _gamma(kind: str, n: int, generator: torch.Generator) -> torch.Tensor | None:
    g = torch.randn(n, dtype=torch.float64, generator=generator)
    return {
        "none": None,
        "constant": torch.full_like(g, 1.7),
        "negative": torch.full_like(g, -0.6),
        "some equal": g.round(),
        "varies": g,
        "with zeros": g * (torch.arange(n) % 2),
    }[kind]


def _singular_values(layer, x: torch.Tensor) -> torch.Tensor:
    dense = jacobian(layer, x).reshape(x.numel(), x.numel())
    return torch.linalg.svdvals(dense)


def _close(found: torch.Tensor, expected: torch.Tensor) -> None:
    found = found.flatten().sort(descending=True).values
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-9 * max(1.0, float(expected.max()))


def _layer(x, gamma, eps):
    return F.layer_norm(x, x.shape[-1:], gamma, None, eps)


def _groups(x, groups, gamma, eps):
    """Written out, as PyTorch refuses a group of one element."""
    sets = x.reshape(len(x), groups, -1)
    centred = sets - sets.mean(-1, keepdim=True)
    out = (centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()).reshape(x.shape)
    return out if gamma is None else out * gamma.view(-1, *[1] * (x.ndim - 2))


def _rms(x, gamma, eps):
    return F.rms_norm(x, x.shape[-1:], gamma, eps)


@pytest.mark.parametrize(
    ("spectrum", "layer"),
    [(layer_norm_singular_values, _layer), (rms_norm_singular_values, _rms)],
)
@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 3),
    st.integers(1, 9),
    GAMMAS,
    st.sampled_from([1e-5, 0.1, 3.0]),
    st.integers(0, 2**31),
)
def test_any_set(spectrum, layer, sets: int, n: int, kind: str, eps: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(sets, n, dtype=torch.float64, generator=generator) + 1
    gamma = _gamma(kind, n, generator)
    found = spectrum(x, gamma, eps)
    assert found.values.shape[0] == sets
    assert found.multiplicities.sum() == n
    _close(found.expand(), _singular_values(lambda x: layer(x, gamma, eps), x))


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 3),
    st.lists(st.integers(1, 3), max_size=2),
    GAMMAS,
    st.sampled_from([1e-5, 0.1, 3.0]),
    st.integers(0, 2**31),
)
def test_any_groups(n, groups, each, spatial, kind, eps, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    channels = groups * each
    x = torch.randn(n, channels, *spatial, dtype=torch.float64, generator=generator) - 2
    gamma = _gamma(kind, channels, generator)
    found = group_norm_singular_values(x, groups, gamma, eps)
    assert found.values.shape[:2] == (n, groups)
    assert found.multiplicities.sum() == x.numel() // n // groups
    _close(
        found.expand(),
        _singular_values(lambda x: _groups(x, groups, gamma, eps), x),
    )


def test_gamma_that_differs_between_groups_only_has_a_closed_form() -> None:
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    gamma = torch.tensor([2.0, 2.0, -1.0, -1.0], dtype=torch.float64)
    found = group_norm_singular_values(x, 2, gamma, 0.1)
    assert found.multiplicities.tolist() == [1, 1, 4]
    _close(found.expand(), _singular_values(lambda x: F.group_norm(x, 2, gamma, None, 0.1), x))


@pytest.mark.parametrize("shape", [(3, 6), (3, 2, 5), (2, 4, 3, 3)])
def test_constant_sets(shape) -> None:
    x = torch.ones(shape, dtype=torch.float64)
    gamma = torch.randn(shape[-1], dtype=torch.float64)
    _close(
        layer_norm_singular_values(x, gamma, 0.1).expand(),
        _singular_values(lambda x: _layer(x, gamma, 0.1), x),
    )
    zero = 0 * x
    _close(
        rms_norm_singular_values(zero, gamma, 0.1).expand(),
        _singular_values(lambda x: _rms(x, gamma, 0.1), zero),
    )


def test_rms_norm_s_default_eps_is_pytorch_s() -> None:
    x = 1e-4 * torch.randn(1, 5)
    expected = _singular_values(lambda x: F.rms_norm(x, (5,)), x)
    found = rms_norm_singular_values(x).expand().flatten().float()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected[0]))


@settings(deadline=None, max_examples=30)
@given(st.integers(3, 30), st.booleans(), st.integers(0, 2**31))
def test_singular_values_interlace_with_gamma(n: int, centred: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dtype=torch.float64, generator=generator)
    gamma = torch.randn(n, dtype=torch.float64, generator=generator)
    spectrum = layer_norm_singular_values if centred else rms_norm_singular_values
    found = spectrum(x, gamma, 0.1).values
    s = ((x.var(correction=0) if centred else x.square().mean()) + 0.1).sqrt()
    bound = (gamma.abs() / s).sort(descending=True).values
    removed = 2 if centred else 1
    assert (found <= bound + 1e-12).all()
    assert (found[: n - removed] >= bound[removed:] - 1e-12).all()


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 5),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from([1e-5, 0.3]),
    st.integers(0, 2**31),
)
def test_power_sums(classes: int, size: int, centred: bool, eps: float, seed: int) -> None:
    """Sums over classes of `size` elements with one γ each, against the dense Jacobian."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, classes, size, dtype=torch.float64, generator=generator) + 1
    gamma = torch.randn(classes, dtype=torch.float64, generator=generator)
    second, fourth, s = power_sums(
        x.mean(-1)[:, None],
        x.var(-1, correction=0)[:, None],
        size,
        gamma[None],
        eps,
        centred=centred,
    )
    layer = _layer if centred else _rms
    for i in range(3):
        flat = x[i].flatten()
        values = _singular_values(
            lambda x: layer(x[None], gamma.repeat_interleave(size), eps)[0], flat
        )
        # rounding is relative to what the null directions take away
        rho = size**0.5 * float((gamma / s[i]).abs().max())
        assert abs(float(second[i]) - values.pow(2).sum()) <= 1e-13 * classes * rho**2
        assert abs(float(fourth[i]) - values.pow(4).sum()) <= 1e-13 * classes * rho**4
        moment = flat.var(correction=0) if centred else flat.square().mean()
        torch.testing.assert_close(s[i, 0], (moment + eps).sqrt())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layer_norm_singular_values(torch.randn(4), torch.ones(3)), "gamma of shape"),
        (lambda: rms_norm_singular_values(torch.randn(4), eps=-1.0), "eps >= 0"),
        (lambda: rms_norm_singular_values(torch.ones(4, dtype=torch.int64)), "floating"),
        (lambda: layer_norm_singular_values(torch.empty(0, 3)), "not empty"),
        (lambda: layer_norm_singular_values(torch.randn(2050), torch.randn(2050)), "order 2050"),
        (lambda: group_norm_singular_values(torch.randn(4), 1), "2 dimension"),
        (lambda: group_norm_singular_values(torch.randn(2, 4), 3), "divides 4"),
        (lambda: group_norm_singular_values(torch.randn(2, 4), 0), "divides 4"),
        (
            lambda: group_norm_singular_values(torch.randn(2, 4), 2, torch.ones(2)),
            "gamma of shape",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
