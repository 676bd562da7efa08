import pytest
import torch
import torch.nn.functional as F
from torch import nn

from propkit.blocks import find_blocks
from propkit.models import LeakyBlock, plainnet, plainnet_conv
from propkit.training import initialize


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def norm(bn, x):
    return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias)


def test_a_hundred_layers():
    with torch.device("meta"):
        model = plainnet(100, in_features=256, width=64, num_classes=10)
    assert sum(isinstance(m, nn.Linear) for m in model.modules()) == 100
    # 99 layers with a bias and a batch norm each, and the classifier
    assert parameters(model) == 256 * 64 + 98 * 64**2 + 99 * 3 * 64 + 65 * 10


@pytest.mark.parametrize("batch_norm", [False, True])
def test_forward_by_hand(batch_norm):
    model = plainnet(5, 12, 6, 3, slope=0.3, batch_norm=batch_norm).eval()
    images = torch.randn(4, 1, 3, 4)
    x = images.reshape(4, 12)
    for layer in model.layers:
        x = x @ layer.linear.weight.T + layer.linear.bias
        if batch_norm:
            x = norm(layer.bn, x)
        x = torch.where(x > 0, x, 0.3 * x)
    torch.testing.assert_close(model(images), model.fc(x))
    assert any(isinstance(m, nn.BatchNorm1d) for m in model.modules()) == batch_norm


def test_he_uniform_bound_does_not_depend_on_the_slope():
    model = initialize(plainnet(4, 16, 24, slope=0.7), "he_uniform", torch.Generator())
    for layer in [m for m in model.modules() if isinstance(m, nn.Linear)]:
        bound = (6 / layer.in_features) ** 0.5
        assert 0.9 * bound < float(layer.weight.detach().abs().max()) <= bound


def test_fifty_convolutional_layers():
    with torch.device("meta"):
        model = plainnet_conv(50)
    assert parameters(model) == 755802
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == 50
    assert sum(isinstance(m, nn.LeakyReLU) for m in model.modules()) == 49
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())
    found = find_blocks(model)
    assert len(found) == 24
    assert all(isinstance(model.get_submodule(n), LeakyBlock) for n in found)


def test_convolutional_forward_by_hand():
    model = plainnet_conv(8, slope=0.4).eval()
    x = images = torch.randn(2, 3, 8, 8)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for conv, bn in zip(convs, norms, strict=True):
        x = norm(bn, conv(x))
        x = torch.where(x > 0, x, 0.4 * x)
    torch.testing.assert_close(model(images), model.fc(x.mean((2, 3))))


def test_wrong_depth():
    with pytest.raises(ValueError, match="at least 2, found 1"):
        plainnet(1)
    with pytest.raises(ValueError, match=r"6n\+2, found 51"):
        plainnet_conv(51)
