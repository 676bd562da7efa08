"""Recipes and sweeps by name."""

import difflib
from typing import Protocol

from propkit.recipes import plain, plainnet, procresnet, procrustes_grid, table2
from propkit.recipes.recipe import Recipe
from propkit.recipes.sweep import Sweep


class Family(Protocol):
    """What a file of recipes offers."""

    PATTERN: str
    SWEEPS: tuple[Sweep, ...]

    def match(self, name: str) -> Recipe | None:
        """The recipe of that name, if it is one of the family."""

    def listed(self) -> list[Recipe]:
        """The recipes that a list shows."""


_FAMILIES: tuple[Family, ...] = (plain, table2, procrustes_grid, procresnet, plainnet)


def find(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        LookupError: There is none; the message lists the recipes, close matches first.

    Example:
        >>> find("plain44-ortho").summary
        'plain 44-layer network, orthonormal init and regulariser'
    """
    for family in _FAMILIES:
        if recipe := family.match(name):
            return recipe
    names = [*(recipe.name for recipe in listed()), *(sweep.name for sweep in sweeps())]
    close = difflib.get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise LookupError(f"no recipe {name!r}; {hint}there are {', '.join([*names, *patterns()])}")


def patterns() -> list[str]:
    """All the names that are recipes, listed or not."""
    return [family.PATTERN for family in _FAMILIES]


def listed() -> list[Recipe]:
    """The recipes that a list shows; a family may know more."""
    return [recipe for family in _FAMILIES for recipe in family.listed()]


def sweeps() -> list[Sweep]:
    """All sweeps."""
    return [sweep for family in _FAMILIES for sweep in family.SWEEPS]


def find_sweep(name: str) -> Sweep | None:
    """The sweep of that name, if there is one."""
    return next((sweep for sweep in sweeps() if sweep.name == name), None)
