"""One Conv-ReLU of many widths, with and without the projection: arXiv:1805.07477, Fig. 2.

The paper's numbers of channels, epoch, kernel sizes, learning rate, decay and augmentation are not in its
text; those here are ours. In the paper a ReLU follows the third convolution, too; here it is the classifier.
"""

import re

from propkit.recipes.recipe import Recipe
from propkit.recipes.sweep import Job, Sweep

_CHANNELS = (2, 4, 8, 16, 32, 64, 128)
_EPOCH = 390

PATTERN = "procrustes-grid-<c>x<d>{,-projected}"
"""How the help describes the names."""


def match(name: str) -> Recipe | None:
    """``procrustes-grid-<c>x<d>`` and the same with ``-projected``.

    Example:
        >>> match("procrustes-grid-4x8-projected").options
        {'c': 4, 'd': 8}
    """
    found = re.fullmatch(r"procrustes-grid-([1-9]\d*)x([1-9]\d*)(-projected)?", name)
    if not found:
        return None
    how = "projected every two steps" if found[3] else "not projected"
    return Recipe(
        name=name,
        summary=f"three-layer network, {found[1]} to {found[2]} channels, {how}",
        reference="arXiv:1805.07477, Fig. 2",
        figures=("norm_ratios",),
        model="three_layer",
        depth=3,
        options={"c": int(found[1]), "d": int(found[2])},
        projection=r"layer2\.conv" if found[3] else None,
        projection_every=2,
        projection_relu=True,
        weight_decay=1e-4,
        decay="all",
        lr=0.05,
        milestones=(),
        steps=10 * _EPOCH,
        every=10,
        probes=("gradient_norm", "singular_value_quantiles"),
        blocks="layer2",
    )


def listed() -> list[Recipe]:
    """None: they are the sweep's."""
    return []


def _jobs(channels: tuple[int, ...], settings: dict[str, str]) -> tuple[Job, ...]:
    return tuple(
        Job(f"procrustes-grid-{c}x{d}{how}", settings)
        for c in channels
        for d in channels
        for how in ("", "-projected")
    )


SWEEPS: tuple[Sweep, ...] = (
    Sweep(
        name="procrustes-grid",
        summary="gradient norms through one Conv-ReLU, by its numbers of channels (demo: 3 x 3)",
        reference="arXiv:1805.07477, Fig. 2",
        paper=_jobs(_CHANNELS, {}),
        demo=_jobs((4, 8, 16), {"steps": "60", "batch_size": "32", "every": "5"}),
        seeds=10,
        figures=("procrustes_grid",),
    ),
)
