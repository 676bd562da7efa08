"""Experiments of the papers, declared: what to train, what to record, which figures it is for.

One file per family of experiments; `find` and `listed` look through them.
"""

from propkit.recipes.catalogue import find, listed, patterns
from propkit.recipes.recipe import Recipe

__all__ = ["Recipe", "find", "listed", "patterns"]
