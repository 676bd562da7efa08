"""A training that stops and goes on is, bit by bit, the one that never stopped."""

import pytest
import torch
from torch import nn

from propkit.data import ImageSet
from propkit.training import Checkpoint, generator, initialize, modulate, sgd, train
from propkit.training.checkpoint import read


def image_set():
    source = torch.Generator().manual_seed(0)
    images, labels = torch.rand(50, 1, 4, 4, generator=source), torch.arange(50) % 3
    return ImageSet.from_tensors("noise", (images, labels), (images, labels), 3, flip=True)


def network():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3),
        nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3),
    )  # fmt: skip
    return initialize(model, "he", generator(0, "init"))


class Record:
    def __init__(self):
        self.steps, self.losses = [], []

    def on_step(self, step, loss, accuracy):
        self.steps.append(step)
        self.losses.append(float(loss))


def run(model, optimizer, steps, checkpoint=None, start=0):
    seen = Record()
    result = train(
        model, image_set(), steps=steps, optimizer=optimizer, batch_size=16, milestones=(4, 9),
        warm_up=3, orthonormality=0.01, seed=5, callbacks=[seen], checkpoint=checkpoint, start=start,
        progress=False,
    )  # fmt: skip
    return seen, result


KINDS = {
    "sgd": lambda model: sgd(model, 0.05),
    "adam": lambda model: torch.optim.Adam(model.parameters(), 0.01),
}


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_training_is_the_same(tmp_path, kind):
    torch.manual_seed(1)
    whole = network()
    optimizer = KINDS[kind](whole)
    with modulate(whole, "always", 8):
        expected, result = run(whole, optimizer, 13)

    path = tmp_path / "c"
    saved = []
    torch.manual_seed(1)
    first = network()
    optimizer = KINDS[kind](first)
    with modulate(first, "always", 8) as modulation:
        checkpoint = Checkpoint(
            path, 6, {"modulation": modulation}, {"a": [1]}, before_save=saved.append
        )
        run(first, optimizer, 8, checkpoint)
    assert saved == [6]
    torch.manual_seed(99)  # another process
    second = network()
    optimizer = KINDS[kind](second)
    with modulate(second, "always", 8) as modulation:
        checkpoint = Checkpoint(path, 6, {"modulation": modulation}, {"a": [1]})
        start = checkpoint.load(second, optimizer)
        found, resumed = run(second, optimizer, 13, checkpoint, start)
        assert modulation.steps == 8  # and over
    assert start == 6
    assert found.steps == [6, 7, 8, 9, 10, 11, 12]
    assert found.losses == expected.losses[6:]
    assert resumed.steps == result.steps == 13
    for (name, a), b in zip(whole.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert read(path)["steps"] == 12
    assert [f.name for f in tmp_path.iterdir()] == ["c"]


def test_a_crash_while_saving_leaves_the_one_before(tmp_path, monkeypatch):
    model = network()
    optimizer = sgd(model)
    checkpoint = Checkpoint(tmp_path / "c", 1)
    checkpoint.save(1, model, optimizer)
    torch_save = torch.save

    def half(state, file):
        torch_save(state, file)
        file.truncate(100)
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(2, model, optimizer)
    assert checkpoint.load(model, optimizer) == 1


def test_nothing_is_saved_of_a_training_that_diverged(tmp_path):
    model = network()
    with pytest.raises(ArithmeticError):
        run(model, sgd(model, lr=1e30), 9, Checkpoint(tmp_path / "c", 9))
    assert not (tmp_path / "c").exists()


def test_what_does_not_fit(tmp_path):
    model = network()
    optimizer = sgd(model)
    path = tmp_path / "c"
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        Checkpoint(path, 1).load(model, optimizer)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="c is no checkpoint of propkit"):
        Checkpoint(path, 1).load(model, optimizer)
    Checkpoint(path, 1, config={"lr": 0.1}).save(3, model, optimizer)
    with pytest.raises(ValueError, match=r"another training: lr was 0.1, now 0.2"):
        Checkpoint(path, 1, config={"lr": 0.2}).load(model, optimizer)
    with (
        modulate(model) as m,
        pytest.raises(ValueError, match=r"the training has \['modulation'\]"),
    ):
        Checkpoint(path, 1, {"modulation": m}, {"lr": 0.1}).load(model, optimizer)
    with pytest.raises(ValueError, match="at least 1, found 0"):
        Checkpoint(path, 0)
    for start in (-1, 5):
        with pytest.raises(ValueError, match=f"below steps=5, found {start}"):
            train(model, image_set(), steps=5, start=start)
