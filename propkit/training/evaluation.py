"""Loss and accuracy on the test images."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from propkit.data.imageset import ImageSet
from propkit.training.processes import Processes


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy and share of correct answers, and over how many images."""

    loss: float
    accuracy: float
    count: int


@torch.no_grad()
def evaluate(
    model: nn.Module, data: ImageSet, device: str | torch.device = "cpu", batch_size: int = 500
) -> Evaluation:
    """Evaluate on the test images in eval mode; the modules' modes are put back.

    Where several processes share a training, all call this; each takes its part of the images, with rank
    0's running statistics, and all return the same.

    Args:
        model: Already on ``device``.
        data: Its test images are used.
        device: Where to compute.
        batch_size: Images at a time.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    processes = Processes()
    processes.copy_buffers_(model)
    mine = slice(processes.rank, None, processes.size)
    images_here, labels_here = data.test_images[mine], data.test_labels[mine]
    loss = torch.zeros((), device=device)
    correct = torch.zeros((), device=device)
    try:
        for images, labels in zip(
            images_here.split(batch_size), labels_here.split(batch_size), strict=True
        ):
            logits = model(data.normalize(images.to(device)))
            target = labels.to(device)
            loss += F.cross_entropy(logits, target, reduction="sum")
            correct += (logits.argmax(1) == target).sum()
    finally:
        for module, mode in modes.items():
            module.training = mode
    count = len(data.test_labels)
    total, right = processes.sum(torch.stack([loss, correct])).tolist()
    return Evaluation(total / count, right / count, count)
