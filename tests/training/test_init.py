import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from propkit.models import plain
from propkit.training import generator, he_normal_, initialize, orthonormal_
from propkit.training.kernels import fans, group_sizes, kernel_groups, parametric_layers


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gram_schmidt(gaussian):
    """Rows one by one, twice over, in float64: the procedure as the paper words it."""
    rows = []
    for v in gaussian.double():
        for _ in range(2):
            for r in rows:
                v = v - (v @ r) * r
        rows.append(v / v.norm())
    return torch.stack(rows)


@pytest.mark.parametrize(
    "shape", [(4, 9), (10, 64), (16, 3, 3, 3), (64, 64, 3, 3), (6, 6), (5, 2, 4)]
)
def test_is_gram_schmidt_of_a_gaussian(shape):
    weight = orthonormal_(torch.empty(shape, dtype=torch.float64), generator=seeded())
    M, fan_in = shape[0], math.prod(shape[1:])
    gaussian = torch.randn((fan_in, M), generator=seeded(), dtype=torch.float64).T
    torch.testing.assert_close(weight.flatten(1), gram_schmidt(gaussian), atol=1e-9, rtol=0)


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 3, 3), (16, 3, 3, 3), (10, 64)])
def test_float32_kernels_are_orthonormal_to_rounding(shape):
    W = orthonormal_(torch.empty(shape), generator=seeded()).flatten(1).double()
    assert (W @ W.T - torch.eye(len(W))).abs().max() < 1e-6


def test_uniform_over_the_sphere():
    """Signs of a kernel's elements are even, unlike those of a QR without the sign fix."""
    first = torch.stack(
        [orthonormal_(torch.empty(3, 3), generator=seeded(s)).diagonal() for s in range(400)]
    )
    assert (first > 0).float().mean(0).sub(0.5).abs().max() < 0.1


@pytest.mark.parametrize(
    ("shape", "groups", "sizes"),
    [
        ((64, 27), "ceil", [27, 27, 10]),
        ((64, 27), "literal", [6, 6, 6, 6, 5, 5, 5, 5, 5, 5, 5, 5]),
        ((256, 64, 1, 1), "ceil", [64] * 4),
        ((256, 64, 1, 1), "literal", [64] * 4),
        ((10, 9), "ceil", [9, 1]),
        ((10, 9), "literal", [5, 5]),
        ((16, 3), "ceil", [3] * 5 + [1]),
        ((16, 3), "literal", [3, 3, 3, 3, 2, 2]),
        ((16, 27), "literal", [16]),
    ],
)
def test_groups_of_more_kernels_than_inputs(shape, groups, sizes):
    W = orthonormal_(torch.empty(shape, dtype=torch.float64), groups, seeded()).flatten(1)
    assert [len(part) for part in kernel_groups(W, groups)] == sizes
    for part in W.split(sizes):
        torch.testing.assert_close(part @ part.T, torch.eye(len(part), dtype=W.dtype))
    # Kernels of two groups are not orthogonal: there is no room.
    if len(sizes) > 1:
        assert (W @ W.T - torch.eye(len(W))).abs().max() > 0.05


def test_full_groups_cover_the_space():
    """k full groups: WᵀW = k I, and every kernel keeps the energy of an isotropic signal."""
    W = orthonormal_(torch.empty(12, 4, dtype=torch.float64), generator=seeded())
    torch.testing.assert_close(W.T @ W, 3 * torch.eye(4, dtype=W.dtype))


@given(fan_out=st.integers(1, 200), fan_in=st.integers(1, 200))
@settings(max_examples=200, deadline=None)
def test_group_sizes_are_a_partition_that_fits(fan_out, fan_in):
    ceil, literal = group_sizes(fan_out, fan_in), group_sizes(fan_out, fan_in, "literal")
    for sizes in (ceil, literal):
        assert sum(sizes) == fan_out
        assert 1 <= min(sizes) <= max(sizes) <= fan_in
    assert len(ceil) == math.ceil(fan_out / fan_in)
    if fan_out > fan_in:
        assert len(literal) == fan_out // fan_in + fan_out % fan_in
        assert max(literal) - min(literal) <= 1
    else:
        assert literal == [fan_out]


def test_grouped_convolution_is_orthonormal_within_its_channel_groups():
    conv = nn.Conv2d(8, 12, 1, groups=4)  # fan_in 2, three kernels per channel group
    initialize(conv, "orthonormal", seeded())
    parts = kernel_groups(conv.weight, "ceil", 4)
    assert [len(p) for p in parts] == [2, 1] * 4
    for W in parts:
        torch.testing.assert_close(W @ W.T, torch.eye(len(W)))


def test_he_normal_moments():
    weight = he_normal_(torch.empty(400, 30, 3, 3), seeded())
    assert float(weight.mean()) == pytest.approx(0, abs=4 * math.sqrt(2 / 270 / weight.numel()))
    assert float(weight.var()) == pytest.approx(2 / 270, rel=0.02)
    # The mean squared norm of a kernel is 2.
    assert float(weight.flatten(1).square().sum(1).mean()) == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize("fill", [he_normal_, orthonormal_])
@pytest.mark.parametrize("weight", [torch.empty(5), torch.empty(0, 3), torch.empty(3, 0)])
def test_weights_that_have_no_kernels(fill, weight):
    with pytest.raises(ValueError, match="two or more dimensions and elements"):
        fill(weight)


def test_unknown_groups_and_scheme():
    with pytest.raises(ValueError, match="'ceil' or 'literal', found 'floor'"):
        orthonormal_(torch.empty(3, 4), "floor")
    with pytest.raises(ValueError, match=r"one of he, .*, delta_orthogonal, found 'xavier'"):
        initialize(nn.Linear(2, 2), "xavier")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_in_place_keeps_dtype_layout_and_parameter(dtype):
    weight = nn.Parameter(
        torch.empty(4, 3, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
    )
    result = orthonormal_(weight, generator=seeded())
    assert result is weight
    assert weight.dtype == dtype
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert weight.grad_fn is None
    expected = orthonormal_(torch.empty(4, 3, 3, 3, dtype=torch.float64), generator=seeded())
    torch.testing.assert_close(weight.double(), expected, atol=0.01, rtol=0)


@pytest.mark.parametrize("scheme", ["he", "orthonormal"])
def test_initialize_sets_all_layers_biases_and_norms(scheme):
    model = nn.Sequential(plain(8), nn.Linear(10, 12), nn.GroupNorm(3, 12), nn.LayerNorm(12))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(7.0)
        model[0].bn1.running_mean.fill_(3.0)
    before = torch.random.get_rng_state()
    assert initialize(model, scheme, seeded()) is model
    assert torch.equal(before, torch.random.get_rng_state())
    for _, layer in parametric_layers(model):
        W = layer.weight.detach().flatten(1)
        if scheme == "orthonormal":
            for part in kernel_groups(layer.weight):
                torch.testing.assert_close(part @ part.T, torch.eye(len(part)))
        else:
            assert float(W.std()) == pytest.approx(math.sqrt(2 / fans(layer.weight)[1]), rel=0.3)
        if layer.bias is not None:
            assert not layer.bias.any()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            assert (module.weight == 1).all()
            assert not module.bias.any()
    assert not model[0].bn1.running_mean.any()


def test_initialize_is_reproducible_and_depends_on_the_seed():
    def weights(seed):
        return torch.cat(
            [p.flatten() for p in initialize(plain(8), "he", seeded(seed)).parameters()]
        )

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_transposed_convolutions_are_named():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ConvTranspose2d(2, 2, 3))
    weight = model[1].weight.clone()
    with pytest.warns(UserWarning, match="transposed convolutions as they are: 1") as caught:
        initialize(model, "he")
    assert caught[0].filename == __file__  # the caller's line
    assert torch.equal(model[1].weight, weight)


def test_streams_are_independent_and_stable():
    drawn = {
        (seed, stream): float(torch.rand((), generator=generator(seed, stream)))
        for seed in (0, 1)
        for stream in ("init", "shuffle", "augment")
    }
    assert len(set(drawn.values())) == 6
    assert drawn[0, "init"] == float(torch.rand((), generator=generator(0, "init")))
    with pytest.raises(ValueError, match="one of init, shuffle, augment, found 'noise'"):
        generator(0, "noise")
    with pytest.raises(ValueError, match="at least 0, found -1"):
        generator(-1, "init")
