"""Autocast, half precision, scaled losses."""

import copy
import gc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import propkit
from propkit.testing import TinyResNet
from tests.zoo import oracle, vision
from tests.zoo.batches import BLOCKS, LABELS, images, normal
from tests.zoo.harness import EXACT, check, outputs, sgd


@pytest.mark.parametrize("make", [TinyResNet, vision.UNet, vision.Mixer, vision.Inplace])
def test_autocast(make) -> None:
    def loss(net: nn.Module) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = net(normal(4, 3, 8, 8))
        return out.float().square().mean()

    blocks = {TinyResNet: BLOCKS, vision.Mixer: BLOCKS[:2]}.get(make)
    check(make(), loss, blocks=blocks)


def test_pure_bf16_channels_last() -> None:
    model = TinyResNet().to(torch.bfloat16, memory_format=torch.channels_last)
    x = images().bfloat16().contiguous(memory_format=torch.channels_last)
    check(model, lambda m: F.cross_entropy(m(x).float(), LABELS), blocks=BLOCKS)


def test_double_precision() -> None:
    check(
        TinyResNet().double(),
        lambda m: F.cross_entropy(m(images().double()), LABELS),
        blocks=BLOCKS,
    )


def scaled(model: nn.Module, steps: int, scaler) -> list[float]:
    optimizer, losses = sgd(model), []
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = F.cross_entropy(model(images()), LABELS)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return losses


def test_fp16_with_a_gradient_scaler() -> None:
    gc.collect()  # scalers of other tests
    model = TinyResNet()
    bare = copy.deepcopy(model)
    scale = 2.0**10

    def scaled_loss(net: nn.Module) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            return F.cross_entropy(net(images()), LABELS) * scale

    want = oracle.observe(bare, scaled_loss)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    expected = scaled(bare, 4, scaler)
    del scaler
    gc.collect()
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    with propkit.attach(model) as recorder:
        assert scaled(model, 4, scaler) == expected
    for a, b in zip(model.parameters(), bare.parameters(), strict=True):
        assert torch.equal(a, b)
    assert recorder.run["error_moment"]["step"].values.tolist() == [0, 1, 2, 3]
    for name, value in outputs(recorder).items():
        np.testing.assert_allclose(
            value, oracle.error_moment(want[name])["output"] / scale**2, **EXACT
        )
    for name, value in outputs(recorder, group="gradient_norm").items():
        np.testing.assert_allclose(
            value, oracle.gradient_norm(want[name])["output"] / scale, **EXACT
        )
