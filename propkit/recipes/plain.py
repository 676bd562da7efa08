"""Plain networks with L2 or with orthonormality: arXiv:1703.01827, Figs. 2 to 4.

The paper trains on CIFAR-10 for 64000 steps. ``l2``: He's initialisation, weight decay 1e-4.
``ortho``: orthonormal initialisation and Eq. 3 in place of the decay, with the same coefficient.
"""

import re

from propkit.recipes.recipe import Recipe
from propkit.recipes.sweep import Sweep

_DEPTHS = (20, 32, 44, 56, 110)
_COEFFICIENT = 1e-4


def match(name: str) -> Recipe | None:
    """``plain<depth>-l2`` and ``plain<depth>-ortho`` for every depth 6n+2 with n >= 1.

    Example:
        >>> match("plain26-ortho").depth
        26
        >>> match("plain27-ortho") is None
        True
    """
    found = re.fullmatch(r"plain(\d+)-(l2|ortho)", name)
    if not found:
        return None
    depth, ortho = int(found[1]), found[2] == "ortho"
    if depth < 8 or depth % 6 != 2:
        return None
    how = "orthonormal init and regulariser" if ortho else "He init, L2"
    return Recipe(
        name=name,
        summary=f"plain {depth}-layer network, {how}",
        reference="arXiv:1703.01827, Figs. 2-4",
        figures=("fig2", "fig3", "fig4"),
        model="plain",
        depth=depth,
        init="orthonormal" if ortho else "he",
        weight_decay=0.0 if ortho else _COEFFICIENT,
        orthonormality=_COEFFICIENT if ortho else 0.0,
        blocks=r"layer\d\.\d+",
    )


def listed() -> list[Recipe]:
    """The depths that the paper trains, and those of the networks it follows."""
    names = [f"plain{depth}-{kind}" for depth in _DEPTHS for kind in ("l2", "ortho")]
    return [recipe for name in names if (recipe := match(name)) is not None]


PATTERN = "plain<6n+2>-{l2,ortho}"
"""How the help describes the names."""

SWEEPS: tuple[Sweep, ...] = ()
