"""Blocks found by themselves in the layouts that the common libraries use."""

from collections import OrderedDict

import torch
from torch import nn

import propkit
from propkit.blocks import find_blocks
from propkit.testing import TinyPlain, TinyResNet, mlp


class BasicBlock(nn.Module):
    def __init__(self, c: int = 4) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1)
        self.downsample = nn.Sequential(nn.Conv2d(c, c, 1), nn.BatchNorm2d(c))

    def forward(self, x):
        return self.conv2(self.conv1(x)) + self.downsample(x)


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)


class MoELayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Linear(4, 4)
        self.experts = nn.ModuleList(Expert() for _ in range(3))


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.downsample = nn.Conv2d(4, 4, 1)
        self.blocks = nn.Sequential(BasicBlock(), BasicBlock())


def _named(**children: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(children))


def test_common_layouts() -> None:
    torchvision_like = _named(
        conv1=nn.Conv2d(3, 4, 1),
        layer1=nn.Sequential(BasicBlock(), BasicBlock()),
        layer2=nn.Sequential(BasicBlock()),
    )
    assert find_blocks(torchvision_like) == ["layer1.0", "layer1.1", "layer2.0"]
    timm_like = _named(stem=nn.Conv2d(3, 4, 1), stages=nn.Sequential(Stage(), Stage()))
    assert find_blocks(timm_like) == [f"stages.{i}.blocks.{j}" for i in (0, 1) for j in (0, 1)]
    transformer = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3, enable_nested_tensor=False
    )
    assert find_blocks(_named(encoder=transformer)) == [f"encoder.layers.{i}" for i in range(3)]
    experts = _named(layers=nn.ModuleList([MoELayer(), MoELayer()]))
    assert find_blocks(experts) == ["layers.0", "layers.1"]
    assert find_blocks(_named(experts=nn.ModuleList([Expert(), Expert()]))) == [
        "experts.0",
        "experts.1",
    ]


def test_networks_without_blocks() -> None:
    assert find_blocks(mlp()) == []
    assert find_blocks(TinyPlain()) == []


def test_attach_uses_the_blocks_it_finds() -> None:
    model = TinyResNet()
    with propkit.attach(model, probes="gradient_norm") as recorder:
        model(torch.randn(2, 3, 5, 5)).sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert recorder.run["gradient_norm"]["site"].values.tolist() == [
        "blocks.0",
        "blocks.1",
        "blocks.2",
    ]


def test_squeeze_and_excitation_is_no_block() -> None:
    """It comes once in a block, and the blocks come one after the other."""

    class SqueezeExcitation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)

    class SELayer(SqueezeExcitation):
        pass

    class InvertedResidual(nn.Module):
        def __init__(self, squeeze: type[nn.Module]) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(4, 4, 1), squeeze(), nn.Conv2d(4, 4, 1))

    class YLayer(InvertedResidual):
        pass

    for block, squeeze in ((InvertedResidual, SqueezeExcitation), (YLayer, SELayer)):
        stages = nn.Sequential(
            nn.Sequential(block(squeeze), block(squeeze)), nn.Sequential(block(squeeze))
        )
        assert find_blocks(_named(features=stages)) == [
            "features.0.0",
            "features.0.1",
            "features.1.0",
        ]


def test_a_transition_block_comes_once_in_a_stage() -> None:
    class Squeeze(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)

    class ResBlock(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), self.part())

        def part(self) -> nn.Module:
            return nn.ReLU()

    class TransitionBlock(ResBlock):
        pass

    class SqueezedBlock(ResBlock):
        def part(self) -> nn.Module:
            return Squeeze()

    class SqueezedTransitionBlock(SqueezedBlock):
        pass

    class Unit(SqueezedBlock):
        def part(self) -> nn.Module:
            return SELayer()

    class SELayer(Squeeze):
        pass

    class TransitionUnit(Unit):
        pass

    every = ["0.0", "0.1", "1.0", "1.1", "1.2"]
    for block, transition in (
        (ResBlock, TransitionBlock),
        (SqueezedBlock, SqueezedTransitionBlock),
        (Unit, TransitionUnit),
    ):
        stages = nn.Sequential(
            nn.Sequential(block(), block()), nn.Sequential(transition(), block(), block())
        )
        assert find_blocks(stages) == every
