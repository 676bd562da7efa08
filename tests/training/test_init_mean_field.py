"""The measured moments of wide random networks against FACTS of mean-field theory."""

import pytest
import torch
from torch import nn

from propkit.training import critical_, gaussian_


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_moments_of_weights_and_biases():
    model = nn.Sequential(nn.Conv2d(10, 500, 3), nn.BatchNorm2d(500), nn.Linear(100, 4000))
    gaussian_(model, 1.7, 0.3, seeded())
    assert float(model[0].weight.detach().var()) * 90 == pytest.approx(1.7, rel=0.03)
    assert float(model[2].weight.detach().var()) * 100 == pytest.approx(1.7, rel=0.03)
    assert float(model[2].bias.detach().var()) == pytest.approx(0.3, rel=0.1)
    assert (model[1].weight == 1).all()
    assert torch.equal(
        model[0].weight,
        gaussian_(nn.Sequential(nn.Conv2d(10, 500, 3)), 1.7, 0.0, seeded())[0].weight,
    )


def test_the_critical_point_of_tanh_is_that_of_the_literature():
    """q* = 1/16: (1.115381, 2.36877e-4), by the moments of what was drawn."""
    model = critical_(nn.Linear(1000, 3000), "tanh", 1 / 16, generator=seeded())
    assert float(model.weight.detach().var()) * 1000 == pytest.approx(1.115381, rel=0.005)
    assert float(model.bias.detach().var()) == pytest.approx(2.36877e-4, rel=0.1)


@pytest.mark.parametrize(
    ("activation", "module", "slope", "q"),
    [
        ("tanh", nn.Tanh(), 0.01, 0.8),
        ("relu", nn.ReLU(), 0.01, 1.0),
        ("leaky_relu", nn.LeakyReLU(0.5), 0.5, 1.0),
    ],
)
def test_gradients_and_lengths_stay(activation, module, slope, q):
    """A wide network started at length q: both keep their mean square through 8 layers."""
    width, depth = 1500, 8
    layers = [nn.Linear(width, width) for _ in range(depth)]
    critical_(nn.Sequential(*layers), activation, q, slope, seeded())
    z = (q**0.5 * torch.randn(64, width, generator=seeded(1))).requires_grad_()
    out = z
    for layer in layers:
        out = layer(module(out))
    out.backward(torch.randn(out.shape, generator=seeded(2)))
    assert float(out.detach().square().mean()) == pytest.approx(q, rel=0.15)
    assert float(z.grad.square().mean()) == pytest.approx(1.0, rel=0.15)


def test_wrong_arguments():
    for variances in ((-1.0, 0.0), (1.0, float("nan")), (float("inf"), 0.0)):
        with pytest.raises(ValueError, match="finite variance"):
            gaussian_(nn.Linear(2, 2), *variances)
    with pytest.raises(ValueError, match="no convolution and no linear"):
        gaussian_(nn.ReLU(), 1.0)
    with pytest.raises(ValueError, match="unknown activation"):
        critical_(nn.Linear(2, 2), "swoosh")
    with pytest.raises(ValueError, match="positive, finite length q"):
        critical_(nn.Linear(2, 2), q=0.0)


def test_biases_are_zero_unless_said_and_variances_may_be():
    model = gaussian_(nn.Sequential(nn.Linear(50, 400), nn.Linear(3, 2, bias=False)), 2.0)
    assert not model[0].bias.any()
    assert float(model[0].weight.detach().var()) * 50 == pytest.approx(2.0, rel=0.05)
    assert not gaussian_(nn.Linear(3, 2), 0.0, 0.0).weight.any()


def test_critical_without_arguments_is_tanh_at_length_one():
    found = critical_(nn.Linear(40, 30), generator=seeded())
    expected = critical_(nn.Linear(40, 30), "tanh", 1.0, generator=seeded())
    assert torch.equal(found.weight, expected.weight)
    assert torch.equal(found.bias, expected.bias)
    leaky = critical_(nn.Linear(200, 900), "leaky_relu", generator=seeded())
    assert float(leaky.weight.detach().var()) * 200 == pytest.approx(2 / 1.0001, rel=0.02)
