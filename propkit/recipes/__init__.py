"""Experiments of the papers, declared: what to train, what to record, which figures it is for.

One file per family of experiments; `find` and `listed` look through them. A sweep is many runs of
recipes that make one table or figure.
"""

from propkit.recipes.catalogue import find, find_sweep, listed, patterns, sweeps
from propkit.recipes.recipe import Recipe
from propkit.recipes.sweep import Job, Sweep

__all__ = ["Job", "Recipe", "Sweep", "find", "find_sweep", "listed", "patterns", "sweeps"]
