import pytest
import torch
import torch.nn.functional as F
from torch import nn

from propkit.blocks import find_blocks
from propkit.models import PreactivationBottleneck, plain_bottleneck, procresnet, resnet
from propkit.models.procresnet import PROJECTED
from propkit.training import project


def on_meta(factory, *arguments, **options):
    with torch.device("meta"):
        return factory(*arguments, **options)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("factory", "depth", "millions"),
    [
        (resnet, 164, 1.7037),
        (procresnet, 166, 1.7150),
        (resnet, 272, 2.8165),
        (procresnet, 274, 2.8279),
    ],
)
def test_parameter_counts_of_the_official_code(factory, depth, millions):
    assert parameters(on_meta(factory, depth)) / 1e6 == pytest.approx(millions, abs=6e-5)


@pytest.mark.parametrize(
    ("factory", "depth", "blocks"),
    [
        (resnet, 20, 6),
        (resnet, 83, 27),
        (resnet, 632, 210),
        (resnet, 1001, 333),
        (plain_bottleneck, 20, 6),
        (plain_bottleneck, 164, 54),
        (procresnet, 22, 6),
        (procresnet, 634, 210),
        (procresnet, 1003, 333),
    ],
)
def test_depth_counts_layers_and_find_blocks_finds_the_blocks(factory, depth, blocks):
    model = on_meta(factory, depth)
    layers = [
        n
        for n, m in model.named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear) and "shortcut" not in n
    ]
    assert len(layers) == depth
    found = find_blocks(model)
    assert len(found) == blocks
    assert all(isinstance(model.get_submodule(n), PreactivationBottleneck) for n in found)


def norm(bn, x):
    return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias)


def branch(block, x, stride, erased):
    x = F.conv2d(F.relu(norm(block.bn1, x)), block.conv1.weight)
    x = F.conv2d(F.relu(norm(block.bn2, x)), block.conv2.weight, stride=stride, padding=1)
    x = norm(block.bn3, x)
    return F.conv2d(x if erased else F.relu(x), block.conv3.weight)


def blocks(model):
    """(block, stride) in order, with a transition's convolution as it comes."""
    for i in (1, 2, 3):
        for j, block in enumerate(getattr(model, f"layer{i}")):
            yield i, j, block


@pytest.mark.parametrize("erased", [False, True])
@pytest.mark.parametrize("factory", [resnet, plain_bottleneck, procresnet])
def test_forward_by_hand(factory, erased):
    depth = 22 if factory is procresnet else 20
    torch.manual_seed(3)
    model = factory(depth, 7, 2, (2, 3, 4), erase_relu=erased).eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight)
            nn.init.normal_(m.bias)
    images = torch.randn(3, 2, 9, 8)
    x = F.conv2d(images, model.conv1.weight, padding=1)
    if factory is not procresnet:
        x = F.relu(norm(model.bn1, x))
    for i, j, block in blocks(model):
        stride = 1
        if j == 0 and i > 1:
            if factory is procresnet:
                x = F.conv2d(x, getattr(model, f"trans_conv{i - 1}").weight, stride=2)
            else:
                stride = 2
        out = branch(block, x, stride, erased)
        if factory is plain_bottleneck:
            x = out
        elif factory is resnet and j == 0:
            bn, _, conv = block.shortcut
            x = out + F.conv2d(F.relu(norm(bn, x)), conv.weight, stride=stride)
        else:
            x = out + x
    last = model.bn if factory is procresnet else model.bn2
    expected = model.fc(F.relu(norm(last, x)).mean((2, 3)))
    torch.testing.assert_close(model(images), expected)


def test_relu_counts_of_erased_networks():
    def relus(model):
        return sum(isinstance(m, nn.ReLU) for m in model.modules())

    whole, erased = on_meta(resnet, 164), on_meta(resnet, 164, erase_relu=True)
    assert relus(whole) - relus(erased) == 54
    assert parameters(whole) == parameters(erased)
    assert not any(m.inplace for m in whole.modules() if isinstance(m, nn.ReLU))


def test_plain_is_the_residual_network_without_its_shortcuts():
    residual, plain = on_meta(resnet, 83), on_meta(plain_bottleneck, 83)
    own = {n: p.shape for n, p in residual.named_parameters() if "shortcut" not in n}
    assert own == {n: p.shape for n, p in plain.named_parameters()}


def test_projected_names_the_convolutions_that_change_the_channels():
    model = procresnet(22)
    with project(model, every=1, include=PROJECTED) as projection:
        assert list(projection.layers) == ["conv1", "trans_conv1", "trans_conv2"]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.randn(2, 3, 16, 16)).sum().backward()
        optimizer.step()
    assert projection.sizes == {"conv1": (16, 16)}
    for name in ("trans_conv1", "trans_conv2"):
        weight = getattr(model, name).weight.detach().flatten(1)
        torch.testing.assert_close(weight.T @ weight, 2 * torch.eye(weight.shape[1]))
    changed = [
        n
        for n, m in model.named_modules()
        if isinstance(m, nn.Conv2d) and "layer" not in n and m.in_channels != m.out_channels
    ]
    assert changed == list(projection.layers)


@pytest.mark.parametrize(
    ("factory", "depth", "message"),
    [
        (resnet, 44, r"9n\+2, found 44; the nearest are 38 and 47"),
        (plain_bottleneck, 2, r"9n\+2, found 2; the nearest are 11 and 20"),
        (procresnet, 164, r"9n\+4, found 164; the nearest are 157 and 166"),
    ],
)
def test_wrong_depth_names_the_nearest(factory, depth, message):
    with pytest.raises(ValueError, match=message):
        factory(depth)


@pytest.mark.parametrize(
    "factory", [lambda w: resnet(20, widths=w), lambda w: procresnet(22, widths=w)]
)
def test_wrong_widths(factory):
    with pytest.raises(ValueError, match="three stages"):
        factory((16, 32))
