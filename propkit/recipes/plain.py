"""Plain networks with L2 or with orthonormality: arXiv:1703.01827, Figs. 2 to 4.

The paper trains on CIFAR-10 for 64000 steps. ``l2``: He's initialisation, weight decay 1e-4.
``ortho``: orthonormal initialisation and Eq. 3 in place of the decay, with the same coefficient.
"""

import re

from propkit.recipes.recipe import Recipe
from propkit.recipes.sweep import Job, Sweep

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

_DEMO = {"steps": "200", "batch_size": "32", "every": "2", "evaluate_every": "50"}
_DEEP = {"steps": "750", "batch_size": "64", "every": "20", "evaluate_every": "150", "lr": "0.005"}
"""The paper's rate is 0.1, at which nothing is learnt in so few steps. At 0.01 one seed of three did not get under way
and others fell back; at 0.003 one of three does not diverge without modulation: see docs/training.md."""

_WHAT = {
    "fig2": "correlation of filters",
    "fig3": "errors of the first layer over the last",
    "fig4": "errors of all layers",
}

SWEEPS: tuple[Sweep, ...] = (
    *(
        Sweep(
            name=figure,
            summary=f"{what} in plain44-l2 and plain44-ortho",
            reference=f"arXiv:1703.01827, Fig. {figure[3:]}",
            paper=(Job("plain44-l2"), Job("plain44-ortho")),
            demo=(Job("plain44-l2", _DEMO), Job("plain44-ortho", _DEMO)),
            figures=(figure,),
        )
        for figure, what in _WHAT.items()
    ),
    Sweep(
        name="modulation",
        summary="the 110-layer orthonormal network without modulation and with it (demo: lr 0.005)",
        reference="arXiv:1703.01827, Sec. 5.3",
        paper=(Job("plain110-ortho"), Job("plain110-ortho-modulated")),
        demo=(Job("plain110-ortho", _DEEP), Job("plain110-ortho-modulated", _DEEP)),
        demo_seeds=3,
        figures=("learning_curves", "fig3"),
    ),
)
