import math

import pytest
import torch
from torch import nn

from propkit.training import (
    glorot_normal_,
    glorot_uniform_,
    he_normal_,
    he_uniform_,
    initialize,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("fill", "variance", "uniform"),
    [
        (he_normal_, 2 / 180, False),
        (he_uniform_, 2 / 180, True),
        (glorot_normal_, 2 / (180 + 3600), False),
        (glorot_uniform_, 2 / (180 + 3600), True),
    ],
)
def test_variance_and_shape_of_the_distribution(fill, variance, uniform):
    """Of 400 filters of 20 x 3 x 3; a uniform distribution has kurtosis 9/5, a normal one 3."""
    weight = fill(torch.empty(400, 20, 3, 3), seeded())
    assert float(weight.mean()) == pytest.approx(0, abs=4 * math.sqrt(variance / weight.numel()))
    assert float(weight.var()) == pytest.approx(variance, rel=0.02)
    kurtosis = float((weight**4).mean() / weight.var() ** 2)
    assert kurtosis == pytest.approx(1.8 if uniform else 3.0, rel=0.05)
    if uniform:
        bound = math.sqrt(3 * variance)
        assert 0.999 * bound < float(weight.abs().max()) <= bound


@pytest.mark.parametrize("fill", [he_uniform_, glorot_normal_, glorot_uniform_])
def test_in_place_from_its_own_generator(fill):
    weight = nn.Parameter(torch.empty(4, 3, dtype=torch.bfloat16))
    before = torch.random.get_rng_state()
    assert fill(weight, seeded(3)) is weight
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(weight, fill(torch.empty(4, 3, dtype=torch.bfloat16), seeded(3)))
    assert not torch.equal(weight, fill(torch.empty(4, 3, dtype=torch.bfloat16), seeded(4)))
    for bad in (torch.empty(5), torch.empty(0, 3)):
        with pytest.raises(ValueError, match="two or more dimensions and elements"):
            fill(bad)


@pytest.mark.parametrize("fill", [he_normal_, he_uniform_, glorot_normal_, glorot_uniform_])
def test_numbers_come_from_the_cpu_whatever_the_default_device(fill):
    weight, other = torch.empty(2, 4, 3)
    torch.manual_seed(0)
    fill(weight)
    torch.manual_seed(0)
    with torch.device("meta"):
        fill(other)
    assert torch.equal(weight, other)


@pytest.mark.parametrize(
    ("scheme", "fill"),
    [("he_uniform", he_uniform_), ("glorot", glorot_normal_), ("glorot_uniform", glorot_uniform_)],
)
def test_schemes_of_initialize(scheme, fill):
    model = initialize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 5)), scheme, seeded(1))
    generator = seeded(1)
    for layer in model:
        assert torch.equal(layer.weight, fill(torch.empty_like(layer.weight), generator))
        assert not layer.bias.any()
