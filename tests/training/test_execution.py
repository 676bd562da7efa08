import pytest
import torch
from torch import nn

from propkit.data import ImageSet
from propkit.training import Execution, generator, initialize, sgd, train


def image_set():
    source = torch.Generator().manual_seed(0)
    images, labels = torch.rand(48, 2, 6, 6, generator=source), torch.arange(48) % 3
    return ImageSet.from_tensors("noise", (images, labels), (images, labels), 3)


class Spy(nn.Module):
    """Notes how it was called."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.fc = nn.Linear(64, 3)
        self.seen = []

    def forward(self, x):
        out = self.conv(x)
        if not torch.compiler.is_compiling():
            layout = x.is_contiguous(memory_format=torch.channels_last)
            self.seen.append((layout, out.dtype, torch.are_deterministic_algorithms_enabled()))
        return self.fc(out.relu().flatten(1))


def losses(execution):
    model, found = initialize(Spy(), "he", generator(0, "init")), []

    class Record:
        def on_step(self, step, loss, accuracy):
            assert loss.dtype == torch.float32
            found.append(float(loss))

    train(
        model, image_set(), steps=5, optimizer=sgd(model, 0.05), batch_size=16,
        execution=execution, callbacks=[Record()], progress=False,
    )  # fmt: skip
    assert all(p.dtype == torch.float32 for p in model.parameters())
    return found, model


@pytest.mark.parametrize(
    ("execution", "seen", "tolerance"),
    [
        (Execution(), (False, torch.float32, False), 0),
        (Execution(deterministic=True), (False, torch.float32, True), 0),
        (Execution(channels_last=True), (True, torch.float32, False), 1e-5),
        (Execution(bf16=True), (False, torch.bfloat16, False), 0.03),
    ],
)
def test_choices_reach_the_forward_pass_and_change_rounding_alone(execution, seen, tolerance):
    expected, _ = losses(None)
    found, model = losses(execution)
    assert model.seen == [seen] * 5
    assert found == pytest.approx(expected, rel=tolerance, abs=0)
    assert not torch.are_deterministic_algorithms_enabled()
    if execution.channels_last:
        assert model.conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_compiled(monkeypatch):
    compiled = []

    def compile_(model):
        compiled.append(model)
        return lambda images: model(images)

    monkeypatch.setattr(torch, "compile", compile_)
    found, model = losses(Execution(compile=True))
    assert compiled == [model]
    assert found == losses(None)[0]


def test_setting_is_put_back_after_an_error():
    context = Execution(deterministic=True).algorithms()
    context.__enter__()
    assert torch.are_deterministic_algorithms_enabled()
    assert not context.__exit__(KeyError, KeyError(), None)
    assert not torch.are_deterministic_algorithms_enabled()
