"""Seven ways to train plain networks: arXiv:1703.01827, Table 2.

The paper gives no learning rates for the other optimisers; those here are PyTorch's defaults, and
0.1 for SGD and Nesterov. All are divided by ten when SGD's is, and all have its L2. ``ours`` is
orthonormality with modulation for the first 2000 steps.
"""

import re

from propkit.recipes.recipe import Recipe
from propkit.recipes.sweep import Job, Sweep

_RATES = {
    "sgd": 0.1,
    "nesterov": 0.1,
    "adagrad": 0.01,
    "adadelta": 1.0,
    "adam": 1e-3,
    "rmsprop": 1e-2,
}
_METHODS = (*_RATES, "ours")
_COEFFICIENT = 1e-4

PATTERN = f"table2-<6n+2>-{{{','.join(_METHODS)}}}, plain<6n+2>-ortho-modulated"
"""How the help describes the names."""


def match(name: str) -> Recipe | None:
    """``table2-<depth>-<method>``; ``plain<depth>-ortho-modulated`` is the method ``ours``.

    Example:
        >>> match("table2-44-adam").lr, match("plain110-ortho-modulated").modulation
        (0.001, 'decade')
    """
    found = re.fullmatch(r"table2-(\d+)-(\w+)", name)
    modulated = re.fullmatch(r"plain(\d+)-ortho-modulated", name)
    if modulated:
        depth, method = int(modulated[1]), "ours"
    elif found and found[2] in _METHODS:
        depth, method = int(found[1]), found[2]
    else:
        return None
    if depth < 8 or depth % 6 != 2:
        return None
    ours = method == "ours"
    how = "orthonormality and modulation" if ours else f"He init, L2, {method}"
    probes = Recipe.probes
    return Recipe(
        name=name,
        summary=f"plain {depth}-layer network, {how}",
        reference="arXiv:1703.01827, Table 2",
        figures=("fig2", "fig3", "fig4"),
        model="plain",
        depth=depth,
        init="orthonormal" if ours else "he",
        weight_decay=0.0 if ours else _COEFFICIENT,
        orthonormality=_COEFFICIENT if ours else 0.0,
        modulation="decade" if ours else "never",
        optimizer="sgd" if ours else method,  # type: ignore[arg-type]  # one of _RATES
        lr=0.1 if ours else _RATES[method],
        evaluate_every=500,
        probes=(*probes, "modulation") if ours else probes,
        blocks=r"layer\d\.\d+",
    )


def listed() -> list[Recipe]:
    """The 110-layer network with modulation; the others are the sweep's."""
    recipe = match("plain110-ortho-modulated")
    return [recipe] if recipe else []


_DEMO = {"steps": "150", "batch_size": "32", "every": "10", "evaluate_every": "50"}

SWEEPS: tuple[Sweep, ...] = (
    Sweep(
        name="table2",
        summary="seven ways to train plain networks of 44 and 110 layers (demo: 20)",
        reference="arXiv:1703.01827, Table 2",
        paper=tuple(Job(f"table2-{depth}-{m}") for depth in (44, 110) for m in _METHODS),
        demo=tuple(Job(f"table2-20-{m}", _DEMO) for m in _METHODS),
        figures=("fig5",),
    ),
)
