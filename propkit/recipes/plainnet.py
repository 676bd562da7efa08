"""What a 100-layer plain network needs to train: Oyedotun et al., ICPR 2020, Table 1.

Batch norm, leaky ReLU and max-norm, alone, in pairs and all three. The published slides give neither the
slope, nor the limit of the norm, the widths, the optimiser, the learning rate or the number of steps: those
here are ours. The paper's images are those of USPS; here they are whatever ``--data`` says, mirrored at
random where these allow it. Below a slope of 0.5 no network of that depth with batch norm trains.
"""

from itertools import combinations

from propkit.recipes.recipe import Recipe
from propkit.recipes.sweep import Job, Sweep

_PARTS = ("bn", "lrelu", "maxnorm")
_SUBSETS = tuple(s for size in (1, 2, 3) for s in combinations(_PARTS, size))
_SLOPE = 0.7
_LIMIT = 2.0
_DEPTH = 100

PATTERN = "plainnet-{bn,lrelu,maxnorm,bn-lrelu,...}"
"""How the help describes the names."""


def match(name: str) -> Recipe | None:
    """``plainnet-`` and what there is of ``bn``, ``lrelu`` and ``maxnorm``, in this order.

    Example:
        >>> match("plainnet-bn-maxnorm").max_norm, match("plainnet-maxnorm-bn") is None
        (2.0, True)
    """
    kind, *parts = name.split("-")
    if kind != "plainnet" or tuple(parts) not in _SUBSETS:
        return None
    return Recipe(
        name=name,
        summary=f"fully connected plain network of {_DEPTH} layers with {', '.join(parts)}",
        reference="Oyedotun et al., ICPR 2020, Table 1",
        figures=("fig4",),
        model="plainnet",
        depth=_DEPTH,
        options={"slope": _SLOPE if "lrelu" in parts else 0.0, "batch_norm": "bn" in parts},
        init="he_uniform",
        max_norm=_LIMIT if "maxnorm" in parts else 0.0,
        lr=0.05,
        batch_size=128,
        milestones=(),
        steps=20000,
        every=100,
        evaluate_every=500,
        probes=(
            *("error_moment", "gradient_norm", "activation", "representation", "weight"),
            "activation_maps",
        ),
    )


def listed() -> list[Recipe]:
    """None: they are the sweep's."""
    return []


_JOBS = tuple(f"plainnet-{'-'.join(subset)}" for subset in _SUBSETS)
_DEMO = {"steps": "300", "every": "25", "evaluate_every": "50"}
_DEMO_LIMIT = {"max_norm": "1.4"}
"""Units begin with norms near √2. In so few steps those that train hardly ever grow to `_LIMIT`, which would make all
three the same as batch norm and leaky ReLU: see docs/training.md."""

SWEEPS: tuple[Sweep, ...] = (
    Sweep(
        name="plainnet-ablation",
        summary="batch norm, leaky ReLU and max-norm in a 100-layer plain network (demo: limit 1.4)",
        reference="Oyedotun et al., ICPR 2020, Table 1",
        paper=tuple(Job(name) for name in _JOBS),
        demo=tuple(Job(name, _DEMO | (_DEMO_LIMIT if "maxnorm" in name else {})) for name in _JOBS),
        demo_seeds=3,
        figures=("learning_curves", "activation_images"),
    ),
)
