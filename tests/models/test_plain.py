import re

import pytest
import torch
from torch import nn

from propkit.models import CifarNet, PlainBlock, plain


@pytest.mark.parametrize(
    ("depth", "parameters"), [(20, 269722), (44, 658586), (56, 853018), (110, 1727962)]
)
def test_parameter_counts(depth, parameters):
    assert sum(p.numel() for p in plain(depth).parameters()) == parameters


@pytest.mark.parametrize("depth", [8, 20, 44])
def test_depth_counts_convolutions_and_the_classifier(depth):
    layers = [m for m in plain(depth).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth
    assert isinstance(layers[-1], nn.Linear)


def test_strides_channels_and_spatial_sizes_of_the_44_layer_net():
    shapes = {}
    model = plain(44)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda _m, _i, out, name=name: shapes.__setitem__(name, tuple(out.shape[1:]))
            )
    model(torch.zeros(2, 3, 32, 32))
    by_shape = list(shapes.values())
    assert by_shape == [(16, 32, 32)] * 15 + [(32, 16, 16)] * 14 + [(64, 8, 8)] * 14
    strided = [n for n, m in model.named_modules() if getattr(m, "stride", (1, 1)) == (2, 2)]
    assert strided == ["layer2.0.conv1", "layer3.0.conv1"]
    assert all(m.bias is None for m in model.modules() if isinstance(m, nn.Conv2d))


def test_forward_is_conv_bn_relu_throughout():
    """The modules in the order they run, and their composition by hand."""
    model = plain(8).eval()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = x
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for conv, norm in zip(convs, norms, strict=True):
        expected = torch.relu(norm(conv(expected)))
    expected = model.fc(expected.mean(dim=(-2, -1)))
    torch.testing.assert_close(model(x), expected)


def test_pattern_selects_the_building_blocks():
    names = [n for n, _ in plain(44).named_modules() if re.fullmatch(r"layer\d\.\d+", n)]
    assert len(names) == 3 * 7
    assert names[0] == "layer1.0"
    assert names[-1] == "layer3.6"
    assert all(isinstance(plain(44).get_submodule(n), PlainBlock) for n in names)


def test_relu_is_a_module_out_of_place():
    relus = [m for m in plain(20).modules() if isinstance(m, nn.ReLU)]
    assert len(relus) == 19
    assert not any(m.inplace for m in relus)


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (8, 8), (28, 28), (32, 32)])
def test_any_input_size(size):
    assert plain(8, num_classes=7, in_channels=1)(torch.zeros(2, 1, *size)).shape == (2, 7)


@pytest.mark.parametrize(
    ("depth", "nearest"), [(45, "44 and 50"), (43, "38 and 44"), (2, "8 and 14"), (-4, "8 and 14")]
)
def test_wrong_depth_names_the_nearest(depth, nearest):
    with pytest.raises(ValueError, match=f"6n\\+2, found {depth}; the nearest are {nearest}"):
        plain(depth)


def test_wrong_widths():
    with pytest.raises(ValueError, match="three stages"):
        plain(8, widths=(16, 32))


def test_another_block_is_one_argument():
    class Residual(PlainBlock):
        def forward(self, x):
            out = super().forward(x)
            return out + x if out.shape == x.shape else out

    net = CifarNet(2, block=Residual)
    assert isinstance(net.layer1[1], Residual)
    assert net(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
