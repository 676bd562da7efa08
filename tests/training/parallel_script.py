"""Run by torchrun from test_parallel.py: FOLDER. Every scenario writes what each rank saw to FOLDER/NAME-RANK.pt."""

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from propkit.data import Augmentation, ImageSet
from propkit.training import (
    Checkpoint,
    DivergenceError,
    evaluate,
    generator,
    initialize,
    sgd,
    train,
)

BATCH = 8
STEPS = 7
POISONED = 11


def image_set(count=37, poisoned=None):
    source = torch.Generator().manual_seed(0)
    images, labels = torch.rand(count, 2, 6, 6, generator=source), torch.arange(count) % 3
    data = ImageSet.from_tensors(
        "noise", (images, labels), (images[:13], labels[:13]), 3, flip=True
    )
    if poisoned is not None:
        data.train_images[poisoned] = float("nan")
    return data


def network(batch_norm=False, dropout=0.0):
    layers = [
        nn.Conv2d(2, 4, 3), *([nn.BatchNorm2d(4)] if batch_norm else []), nn.ReLU(), nn.Dropout(dropout),
        nn.Flatten(), nn.Linear(64, 3),
    ]  # fmt: skip
    return initialize(nn.Sequential(*layers), "he", generator(0, "init"))


class Record:
    def __init__(self, act=lambda step: None):
        self.losses, self.accuracies, self.act = [], [], act

    def on_step(self, step, loss, accuracy):
        self.losses.append(float(loss))
        self.accuracies.append(float(accuracy))
        self.act(step)


def run(model, data, steps=STEPS, seen=None, **arguments):
    seen = seen or Record()
    optimizer = sgd(model, 0.05, weight_decay=0.01)
    train(
        model, data, steps=steps, optimizer=optimizer, batch_size=BATCH, orthonormality=0.01, seed=3,
        augmentation=Augmentation(True, 1), callbacks=[seen], progress=False, **arguments,
    )  # fmt: skip
    return {"model": model.state_dict(), "losses": seen.losses, "accuracies": seen.accuracies}


def trained(batch_norm):
    model, data = network(batch_norm), image_set()
    result = run(model, data)
    found = evaluate(model, data)
    return result | {
        "evaluation": (found.loss, found.accuracy, found.count),
        "training": model.training,
    }


def diverged():
    seen = Record()
    try:  # the image is in the second half of a batch, that is in rank 1's part
        run(network(), image_set(poisoned=POISONED), 50, seen)
    except DivergenceError as error:
        return {"step": error.step, "losses": seen.losses}
    return {}


def interrupted():
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def act(step):
        if step == 6 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    seen = Record(act)
    try:
        run(network(), image_set(), 100, seen)
    except KeyboardInterrupt:
        same = handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
        return {"losses": seen.losses, "restored": same}
    return {}


def resumed(folder):
    """Dropout draws from each process's own generator, which the checkpoint holds."""
    torch.manual_seed(100 + dist.get_rank())
    whole = network(True, 0.5)
    expected = run(whole, image_set(), 9)
    torch.manual_seed(100 + dist.get_rank())
    first = network(True, 0.5)
    flushed = []
    checkpoint = Checkpoint(folder / "checkpoint", 4, before_save=flushed.append)
    optimizer = sgd(first, 0.05, weight_decay=0.01)
    common = {
        "batch_size": BATCH, "orthonormality": 0.01, "seed": 3, "augmentation": Augmentation(True, 1),
        "progress": False, "checkpoint": checkpoint,
    }  # fmt: skip
    train(first, image_set(), steps=6, optimizer=optimizer, **common)
    torch.manual_seed(0)
    second = network(True, 0.5)
    optimizer = sgd(second, 0.05, weight_decay=0.01)
    start = checkpoint.load(second, optimizer)
    train(second, image_set(), steps=9, optimizer=optimizer, start=start, **common)
    same = {k: bool((v == whole.state_dict()[k]).all()) for k, v in second.state_dict().items()}
    trained_ones = [n for n, _ in whole.named_parameters()]
    return {
        "start": start,
        "flushed": flushed,
        "same": [same[name] for name in trained_ones],
        "losses": expected["losses"],
    }


def main(folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    scenarios = {
        "plain": lambda: trained(False),
        "batch_norm": lambda: trained(True),
        "diverged": diverged,
        "interrupted": interrupted,
        "resumed": lambda: resumed(folder),
    }
    for name, scenario in scenarios.items():
        torch.save(scenario(), folder / f"{name}-{dist.get_rank()}.pt")
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
