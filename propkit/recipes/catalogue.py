"""Recipes by name."""

import difflib
from typing import Protocol

from propkit.recipes import plain
from propkit.recipes.recipe import Recipe


class Family(Protocol):
    """What a file of recipes offers."""

    PATTERN: str

    def match(self, name: str) -> Recipe | None:
        """The recipe of that name, if it is one of the family."""

    def listed(self) -> list[Recipe]:
        """The recipes that a list shows."""


_FAMILIES: tuple[Family, ...] = (plain,)


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
    names = [recipe.name for recipe in listed()]
    close = difflib.get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise LookupError(f"no recipe {name!r}; {hint}there are {', '.join([*names, *patterns()])}")


def patterns() -> list[str]:
    """All the names that are recipes, listed or not."""
    return [family.PATTERN for family in _FAMILIES]


def listed() -> list[Recipe]:
    """The recipes that a list shows; a family may know more."""
    return [recipe for family in _FAMILIES for recipe in family.listed()]
