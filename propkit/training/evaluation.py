"""Loss and accuracy on the test images."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from propkit.data.imageset import ImageSet


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

    Args:
        model: Already on ``device``.
        data: Its test images are used.
        device: Where to compute.
        batch_size: Images at a time.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    loss = torch.zeros((), device=device)
    correct = torch.zeros((), device=device)
    try:
        for images, labels in zip(
            data.test_images.split(batch_size), data.test_labels.split(batch_size), strict=True
        ):
            logits = model(data.normalize(images.to(device)))
            target = labels.to(device)
            loss += F.cross_entropy(logits, target, reduction="sum")
            correct += (logits.argmax(1) == target).sum()
    finally:
        for module, mode in modes.items():
            module.training = mode
    count = len(data.test_labels)
    return Evaluation(float(loss) / count, float(correct) / count, count)
