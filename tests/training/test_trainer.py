import io
import math

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

from propkit.data import ImageSet, batches
from propkit.training import (
    DivergenceError,
    evaluate,
    generator,
    initialize,
    monitor,
    orthonormality,
    progress,
    sgd,
    train,
)


def image_set(count=60, flip=False, seed=0):
    source = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.rand(count, 1, 4, 4, generator=source)
    images[:, 0, 0] += labels[:, None]
    test = (images[:15], labels[:15])
    return ImageSet.from_tensors("stripes", (images, labels), test, num_classes=3, flip=flip)


def small(seed=0):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 3),
    )
    return initialize(model, "orthonormal", generator(seed, "init"))


class Record:
    def __init__(self):
        self.steps, self.losses, self.accuracies = [], [], []

    def on_step(self, step, loss, accuracy):
        self.steps.append(step)
        self.losses.append(loss)
        self.accuracies.append(accuracy)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("coefficient", [0.0, 0.05])
def test_equals_a_plain_loop(coefficient):
    """Same batches, penalty in the loss instead of the gradient, MultiStepLR instead of the factor."""
    data, model, reference = image_set(flip=True), small(), small()
    seen = Record()
    train(
        model,
        data,
        steps=12,
        optimizer=sgd(model, lr=0.05, weight_decay=0.01),
        batch_size=16,
        milestones=(4, 9),
        gamma=0.2,
        orthonormality=coefficient,
        seed=5,
        callbacks=[seen],
        progress=False,
    )

    optimizer = sgd(reference, lr=0.05, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [4, 9], 0.2)
    stream = batches(data, 16, generator(5, "shuffle"), generator(5, "augment"))
    losses, accuracies = [], []
    for _ in range(12):
        images, labels = next(stream)
        optimizer.zero_grad()
        logits = reference(images)
        loss = F.cross_entropy(logits, labels)
        losses.append(float(loss.detach()))
        accuracies.append(float((logits.argmax(1) == labels).float().mean()))
        (loss + orthonormality(reference, coefficient)).backward()
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(weights(model), weights(reference), rtol=1e-4, atol=1e-6)
    assert [float(v) for v in seen.losses] == pytest.approx(losses, rel=1e-4)
    assert [float(v) for v in seen.accuracies] == pytest.approx(accuracies)


def test_callbacks_get_tensors_and_steps_from_zero_after_the_update():
    model, seen = small(), Record()
    before = weights(model)
    moved = []

    class Watch:
        def on_step(self, step, loss, accuracy):
            moved.append(not torch.equal(before, weights(model)))

    train(model, image_set(), steps=3, callbacks=[seen, Watch()], progress=False)
    assert seen.steps == [0, 1, 2]
    assert moved == [True] * 3
    for value in (*seen.losses, *seen.accuracies):
        assert isinstance(value, torch.Tensor)
        assert value.shape == ()
        assert not value.requires_grad


def run(seed, **arguments):
    model, seen = small(), Record()
    result = train(
        model,
        image_set(flip=True),
        steps=6,
        seed=seed,
        callbacks=[seen],
        progress=False,
        **arguments,
    )
    return [float(v) for v in seen.losses], result


def test_trains_in_train_mode_whatever_the_model_was_in():
    model = small().eval()
    train(model, image_set(), steps=2, progress=False)
    assert all(module.training for module in model.modules())
    assert int(model[1].num_batches_tracked) == 2


def test_seed_decides():
    assert run(1)[0] == run(1)[0]
    assert run(1)[0] != run(2)[0]


def test_global_random_state_is_neither_read_nor_changed():
    def losses(model):
        seen = Record()
        train(model, image_set(flip=True), steps=4, callbacks=[seen], progress=False)
        return [float(v) for v in seen.losses]

    first, second = small(), small()
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    expected = losses(first)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(4)
    assert losses(second) == expected


def test_result_is_the_mean_of_the_last_steps(monkeypatch):
    monkeypatch.setattr(monitor, "WINDOW", 50)
    losses, result = run(1)
    assert result.steps == 6
    assert result.loss == pytest.approx(sum(losses) / 6)
    assert 0 <= result.accuracy <= 1
    assert result.seconds > 0


def test_learns():
    model, data = small(), image_set()
    result = train(
        model, data, steps=80, optimizer=sgd(model, lr=0.05), batch_size=30, progress=False
    )
    assert result.accuracy > 0.9
    assert evaluate(model, data).accuracy > 0.9


class Poison(nn.Module):
    """Gives NaN from a forward on."""

    def __init__(self, step):
        super().__init__()
        self.step, self.calls = step, 0
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        self.calls += 1
        out = self.fc(x.flatten(1))
        return out * math.nan if self.calls > self.step else out


@pytest.mark.parametrize("step", [0, 2, 7, 30])
def test_divergence_names_the_first_bad_step(step):
    model, seen = Poison(step), Record()
    with pytest.raises(DivergenceError, match=f"loss nan at step {step}$") as caught:
        train(model, image_set(), steps=10**6, callbacks=[seen], progress=False)
    assert caught.value.step == step
    # Found within the time between two looks, not at the end.
    assert len(seen.steps) < 10**5


def test_divergence_in_the_last_step_is_found():
    with pytest.raises(DivergenceError, match="step 19"):
        train(Poison(19), image_set(), steps=20, progress=False)


def test_the_device_is_read_seldom(monkeypatch):
    reads = []
    read = monitor.Monitor.read
    monkeypatch.setattr(monitor.Monitor, "read", lambda self: reads.append(1) or read(self))
    monkeypatch.setattr(monitor, "INTERVAL", 3600.0)
    train(Poison(10**9), image_set(), steps=300, progress=False)
    assert len(reads) == monitor.EARLY + 1


def test_unstable_regulariser_is_explained():
    model = small()
    with torch.no_grad():
        model[0].weight.mul_(1000)
    with pytest.raises(
        DivergenceError, match=r"after step 0: the orthonormality .* found 0 "
    ) as caught:
        train(
            model,
            image_set(),
            steps=5,
            optimizer=sgd(model, lr=0.1, weight_decay=0),
            orthonormality=1e-4,
            progress=False,
        )
    assert caught.value.step == 1


def test_interrupt_propagates():
    class Stop:
        def on_step(self, step, loss, accuracy):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small(), image_set(), steps=5, callbacks=[Stop()], progress=False)


def test_steps_must_be_positive():
    with pytest.raises(ValueError, match="at least 1, found 0"):
        train(small(), image_set(), steps=0)


def test_evaluate_by_hand_and_modes_put_back():
    data, model = image_set(), small()
    model.train()
    model[2].eval()
    found = evaluate(model, data, batch_size=4)
    assert [m.training for m in model] == [True, True, False, True, True]
    assert model.training
    model.eval()
    logits = model((data.test_images - data.mean) / data.std).detach()
    assert found.loss == pytest.approx(float(F.cross_entropy(logits, data.test_labels)), rel=1e-5)
    assert found.accuracy == pytest.approx(
        float((logits.argmax(1) == data.test_labels).float().mean())
    )
    assert found.count == 15


def console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=120)


def test_bar_on_a_terminal():
    out = console(terminal=True)
    with progress.ProgressDisplay(200, "demo", console=out) as display:
        display.update(50, 1.25, 0.5)
    text = out.file.getvalue()
    for part in ("demo", "50/200", "loss 1.2500", "accuracy 0.500", "steps/s"):
        assert part in text


def test_lines_elsewhere(monkeypatch):
    out = console(terminal=False)
    clock = iter([0.0, 1.0, 10.5, 11.0, 20.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    with progress.ProgressDisplay(200, "demo", console=out) as display:
        display.update(10, 3.0, 0.1)  # too early
        display.update(105, 2.0, 0.25)
        display.update(110, 2.0, 0.25)  # too early
        display.update(200, 1.0, 0.5)  # the end
    assert out.file.getvalue().splitlines() == [
        "demo step 105/200  loss 2.0000  accuracy 0.250  10.00 steps/s  0:10 left",
        "demo step 200/200  loss 1.0000  accuracy 0.500  10.00 steps/s  0:00 left",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_silence(terminal):
    out = console(terminal)
    with progress.ProgressDisplay(2, "demo", show=False, console=out) as display:
        display.update(2, 1.0, 0.5)
    assert out.file.getvalue() == ""


def test_training_prints_only_when_asked(capsys):
    train(small(), image_set(), steps=2, progress=False)
    assert capsys.readouterr().out == ""
    train(small(), image_set(), steps=2, label="demo")
    assert "demo step 2/2  loss " in capsys.readouterr().out


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (75.4, "1:15"), (3725, "1:02:05")])
def test_clock(seconds, text):
    assert progress._clock(seconds) == text
