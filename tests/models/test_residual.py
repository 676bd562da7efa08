import pytest
import torch
import torch.nn.functional as F
from torch import nn

from propkit.blocks import find_blocks
from propkit.models import (
    ResidualBlock,
    plain,
    plain_imagenet,
    residual,
    residual_imagenet,
)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def norm(bn, x):
    return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias)


@pytest.mark.parametrize("depth", [8, 44, 110])
def test_is_plain_and_two_projections(depth):
    with torch.device("meta"):
        shortcuts, without = residual(depth), plain(depth)
    projections = 9 * 16 * 32 + 2 * 32 + 9 * 32 * 64 + 2 * 64
    assert parameters(shortcuts) == parameters(without) + projections
    own = {n: p.shape for n, p in shortcuts.named_parameters() if "shortcut" not in n}
    assert own == {n: p.shape for n, p in without.named_parameters()}
    found = find_blocks(shortcuts)
    assert len(found) == (depth - 2) // 2
    assert all(isinstance(shortcuts.get_submodule(n), ResidualBlock) for n in found)


@pytest.mark.parametrize(("channels", "stride"), [((4, 4), 1), ((4, 6), 2), ((4, 4), 2)])
def test_residual_block_by_hand(channels, stride):
    block = ResidualBlock(*channels, stride).eval()
    x = torch.randn(2, channels[0], 7, 6)
    out = F.relu(norm(block.bn1, F.conv2d(x, block.conv1.weight, stride=stride, padding=1)))
    out = norm(block.bn2, F.conv2d(out, block.conv2.weight, padding=1))
    if stride == 1:
        skip = x
    else:
        conv, bn = block.shortcut
        skip = norm(bn, F.conv2d(x, conv.weight, stride=2, padding=1))
        assert conv.weight.shape[2:] == (3, 3)
    torch.testing.assert_close(block(x), F.relu(out + skip))


def test_wrong_depth():
    with pytest.raises(ValueError, match=r"6n\+2, found 45; the nearest are 44 and 50"):
        residual(45)


def conv(c_in, c_out, k):
    return c_in * c_out * k * k + 2 * c_out


def expected(depth, shortcuts):
    """Parameters by the table: convolutions with batch norms, and the classifier."""
    counts = {34: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]
    total, c = conv(3, 64, 7), 64
    for count, width in zip(counts, (64, 128, 256, 512), strict=True):
        out = width if depth == 34 else 4 * width
        if shortcuts and c != out:
            total += conv(c, out, 3)
        for _ in range(count):
            if depth == 34:
                total += conv(c, out, 3) + conv(out, out, 3)
            else:
                total += conv(c, width, 1) + conv(width, width, 1) + conv(width, out, 3)
            c = out
    return total + conv(c, 1024, 3) + 1025 * 1000


@pytest.mark.parametrize("depth", [34, 101])
@pytest.mark.parametrize(
    ("factory", "shortcuts"), [(plain_imagenet, False), (residual_imagenet, True)]
)
def test_networks_for_large_images(depth, factory, shortcuts):
    with torch.device("meta"):
        model = factory(depth)
    assert parameters(model) == expected(depth, shortcuts)
    layers = {
        n: m
        for n, m in model.named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear) and "shortcut" not in n
    }
    assert len(layers) == depth + 1  # conv2, before the classifier, does not count
    # All kernels of a layer can be orthonormal.
    assert all(m.weight.shape[0] <= m.weight[0].numel() for m in layers.values())
    strided = [n for n, m in layers.items() if getattr(m, "stride", (1, 1)) == (2, 2)]
    assert strided == ["conv1", *(f"layer{i}.0.conv1" for i in (2, 3, 4))]
    assert len(find_blocks(model)) == (16 if depth == 34 else 33)
    assert model(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 1000)


@pytest.mark.parametrize("shortcuts", [False, True])
def test_bottleneck_order_by_hand(shortcuts):
    with torch.device("meta"):
        model = (residual_imagenet if shortcuts else plain_imagenet)(101)
    block = type(model.layer2[0])(8, 12, 2).eval()
    x = torch.randn(2, 8, 6, 6)
    out = F.relu(norm(block.bn1, F.conv2d(x, block.conv1.weight, stride=2)))
    out = F.relu(norm(block.bn2, F.conv2d(out, block.conv2.weight)))
    out = norm(block.bn3, F.conv2d(out, block.conv3.weight, padding=1))
    if shortcuts:
        projection, bn = block.shortcut
        out = out + norm(bn, F.conv2d(x, projection.weight, stride=2, padding=1))
    torch.testing.assert_close(block(x), F.relu(out))


def test_forward_of_a_whole_network_by_hand():
    model = plain_imagenet(34, num_classes=5).eval()
    x = torch.randn(1, 3, 33, 40)
    with torch.no_grad():
        out = F.conv2d(x, model.conv1.weight, stride=2, padding=3)
        out = F.max_pool2d(F.relu(norm(model.bn1, out)), 3, 2, 1)
        for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
            out = layer(out)
        out = F.relu(norm(model.bn2, F.conv2d(out, model.conv2.weight, padding=1)))
        torch.testing.assert_close(model(x), model.fc(out.mean((2, 3))))


def test_unknown_depth_of_a_network_for_large_images():
    with pytest.raises(ValueError, match="34 or 101, found 50"):
        plain_imagenet(50)
