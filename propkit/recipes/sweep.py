"""What a sweep says: many runs of recipes, at the scale of the paper or of a demo."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Job:
    """One run of a sweep, but for its seed.

    Attributes:
        recipe: Name of the recipe.
        settings: What is set otherwise: field -> text, as `Recipe.override` takes it.
    """

    recipe: str
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sweep:
    """Many runs that make one table or figure.

    Attributes:
        name: What it is called on the command line.
        summary: One line.
        reference: Paper and figure or table.
        paper: The runs at the scale of the paper.
        demo: The runs at a scale of minutes on one core, for small images.
        seeds: Runs of each at the scale of the paper.
        demo_seeds: Runs of each in the demo.
        figures: Names of the figures that the runs draw together.
    """

    name: str
    summary: str
    reference: str
    paper: tuple[Job, ...]
    demo: tuple[Job, ...]
    seeds: int = 1
    demo_seeds: int = 1
    figures: tuple[str, ...] = ()
