"""Plain, residual and ProcResNet bottleneck networks: arXiv:1805.07477, Fig. 3 and Tables I and II.

As the authors' code: batch 128, learning rate 0.1, L2 of 1e-4 on all parameters. The figure is drawn
at a constant learning rate; the tables divide it by ten at epochs 150 and 225 of 300. Images are
normalised by channel, flipped, and cropped at random out of four pixels of zeros.

Otherwise than there: all convolutions begin as He's, while the authors' code for Chainer has smaller
ones in the shortcuts, and their code for PyTorch its defaults. An epoch counts 390 batches, 49,920 of the
50,000 images. The 50 epochs of the figure are ours, for the paper's number is not in its text.
"""

import re

from propkit.recipes.recipe import Recipe
from propkit.recipes.sweep import Job, Sweep

_EPOCH = 390
_KINDS = {"plain": "plain_bottleneck", "resnet": "resnet", "procresnet": "procresnet"}
_DEPTHS = (20, 83, 164)

PATTERN = "{norm-ratios,generalisation-gap}-{plain,resnet,procresnet}<depth>"
"""How the help describes the names."""


def match(name: str) -> Recipe | None:
    """``norm-ratios-<kind><depth>`` and ``generalisation-gap-<kind><depth>``.

    The depth is 9n+2, and 9n+4 for procresnet.

    Example:
        >>> match("norm-ratios-procresnet166").model, match("norm-ratios-resnet166") is None
        ('procresnet', True)
    """
    found = re.fullmatch(r"(norm-ratios|generalisation-gap)-(plain|resnet|procresnet)(\d+)", name)
    if not found:
        return None
    ratios, kind, depth = found[1] == "norm-ratios", found[2], int(found[3])
    projected = kind == "procresnet"
    if depth < 11 or depth % 9 != (4 if projected else 2):
        return None
    epochs = 50 if ratios else 300
    return Recipe(
        name=name,
        summary=f"{kind} bottleneck network of {depth} layers, {epochs} epochs",
        reference=f"arXiv:1805.07477, {'Fig. 3' if ratios else 'Table I'}",
        figures=("norm_ratios",),
        model=_KINDS[kind],
        depth=depth,
        projection=r"conv1|trans_conv\d" if projected else None,
        weight_decay=1e-4,
        decay="all",
        crop=0.125,
        normalization="channel",
        milestones=() if ratios else (150 * _EPOCH, 225 * _EPOCH),
        steps=epochs * _EPOCH,
        every=10 if ratios else _EPOCH,
        evaluate_every=_EPOCH,
        probes=("gradient_norm",) if ratios else ("gradient_norm", "weight"),
        blocks=r"layer\d\.\d+|trans_conv\d" if projected else r"layer\d\.\d+",
    )


def listed() -> list[Recipe]:
    """None: they are the sweeps'."""
    return []


def _jobs(what: str, depths: tuple[int, ...], settings: dict[str, str]) -> tuple[Job, ...]:
    return tuple(
        Job(f"{what}-{kind}{depth + 2 * (kind == 'procresnet')}", settings)
        for depth in depths
        for kind in _KINDS
    )


_DEMO = {"steps": "100", "batch_size": "32", "evaluate_every": "20", "lr": "0.05"}

SWEEPS: tuple[Sweep, ...] = (
    Sweep(
        name="norm-ratios",
        summary="gradient norms through the blocks of plain, residual and ProcResNet (demo: 20 layers)",
        reference="arXiv:1805.07477, Fig. 3",
        paper=_jobs("norm-ratios", _DEPTHS, {}),
        demo=_jobs("norm-ratios", (20,), _DEMO | {"every": "5"}),
        figures=("norm_ratios",),
    ),
    Sweep(
        name="generalisation-gap",
        summary="training and test accuracy of the same (demo: 20 layers)",
        reference="arXiv:1805.07477, Table I",
        paper=_jobs("generalisation-gap", _DEPTHS, {}),
        demo=_jobs("generalisation-gap", (20,), _DEMO | {"every": "20"}),
        figures=("generalisation_gap", "parameter_efficiency"),
    ),
)
