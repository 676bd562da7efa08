"""Two processes under torchrun (gloo, CPU) train what one process trains on the whole batches."""

import importlib.util
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from propkit.data import Augmentation, batches
from propkit.training import Checkpoint, evaluate, generator, orthonormality, sgd

SCRIPT = Path(__file__).with_name("parallel_script.py")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone")

_spec = importlib.util.spec_from_file_location("parallel_script", SCRIPT)
script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(script)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("parallel")
    done = subprocess.run(
        [*TORCHRUN, str(SCRIPT), str(place)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def saw(folder):
    return lambda name: [torch.load(folder / f"{name}-{rank}.pt") for rank in (0, 1)]


def by_hand(batch_norm):
    """One process, which computes the halves of each batch one after the other: losses, accuracies, state."""
    model, data = script.network(batch_norm).train(), script.image_set()
    optimizer = sgd(model, 0.05, weight_decay=0.01)
    stream = batches(
        data, script.BATCH, generator(3, "shuffle"), generator(3, "augment"),
        augmentation=Augmentation(True, 1),
    )  # fmt: skip
    half, losses, accuracies = script.BATCH // 2, [], []
    for images, labels in itertools.islice(stream, script.STEPS):
        optimizer.zero_grad()
        loss, right = 0, 0
        for rank in (1, 0):  # the running statistics are those that rank 0's part leaves
            part = slice(half * rank, half * (rank + 1))
            before = {k: b.clone() for k, b in model.named_buffers()}
            logits = model(images[part])
            loss = loss + F.cross_entropy(logits, labels[part]) / 2
            right += int((logits.argmax(1) == labels[part]).sum())
            if rank == 1:
                for name, buffer in model.named_buffers():
                    buffer.data = before[name]
        (loss + orthonormality(model, 0.01)).backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        accuracies.append(right / script.BATCH)
    return model, losses, accuracies


@pytest.mark.parametrize("kind", ["plain", "batch_norm"])
def test_parameters_are_those_of_one_process(saw, kind):
    model, losses, accuracies = by_hand(kind == "batch_norm")
    first, second = saw(kind)
    for found in (first, second):
        assert found["losses"] == pytest.approx(losses, rel=1e-5)
        assert found["accuracies"] == pytest.approx(accuracies)
        assert found["training"]
    for name, expected in model.state_dict().items():
        assert torch.equal(first["model"][name], second["model"][name]), name
        torch.testing.assert_close(first["model"][name], expected, rtol=1e-4, atol=1e-6)
    expected = evaluate(model, script.image_set())
    assert first["evaluation"] == second["evaluation"]
    assert first["evaluation"] == pytest.approx((expected.loss, expected.accuracy, 13), rel=1e-4)


def test_without_batch_norm_it_is_the_trainer_in_one_process(saw):
    expected = script.run(script.network(), script.image_set())
    found = saw("plain")[0]
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    for name, weights in expected["model"].items():
        torch.testing.assert_close(found["model"][name], weights, rtol=1e-4, atol=1e-6)


def test_both_diverge_at_the_step_of_the_one(saw):
    batch = list(itertools.islice(_indices(script.image_set()), 50))
    step = next(i for i, index in enumerate(batch) if script.POISONED in index)
    assert batch[step].index(script.POISONED) >= script.BATCH // 2  # in the part of rank 1
    first, second = saw("diverged")
    assert first["step"] == second["step"] == step
    assert len(first["losses"]) == len(second["losses"]) == step + 1


def _indices(data):
    """Indices of the images in each batch."""
    numbered = type(data)(
        "n", torch.arange(37.0)[:, None, None, None], data.train_labels, data.test_images, data.test_labels,
        3, torch.zeros(1, 1, 1), torch.ones(1, 1, 1),
    )  # fmt: skip
    for images, _ in batches(
        numbered, script.BATCH, generator(3, "shuffle"), generator(3, "augment")
    ):
        yield images.flatten().long().tolist()


def test_a_signal_to_one_stops_both_at_the_same_step(saw):
    first, second = saw("interrupted")
    # It comes after step 6, and is told to the others with the values of step 7.
    assert len(first["losses"]) == len(second["losses"]) == 8
    assert first["restored"]
    assert second["restored"]


def test_resumed_training_is_the_same_on_every_rank(saw, folder):
    for found in saw("resumed"):
        assert found["start"] == 4
        assert found["flushed"][0] == 4  # on every rank: writing the rows takes all
        assert all(found["same"])
    model = script.network(True, 0.5)
    with pytest.raises(ValueError, match="by 2 processes, and here are 1"):
        Checkpoint(folder / "checkpoint", 4).load(model, sgd(model))
