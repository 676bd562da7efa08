"""What a recipe does to errors and weights while a model trains."""

from contextlib import ExitStack

import torch
from torch import nn

from propkit.recipes.recipe import Recipe
from propkit.training import max_norm, modulate, project
from propkit.training.after_step import AfterStep
from propkit.training.checkpoint import Stateful
from propkit.training.modulation import Modulation


def components(
    model: nn.Module,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    seed: int,
    stack: ExitStack,
) -> dict[str, Stateful]:
    """Put in modulation, projection and max-norm as the recipe says, until the stack is closed.

    Returns:
        Those that there are by name; a checkpoint holds their states.
    """
    parts: dict[str, Modulation | AfterStep] = {}
    if recipe.modulation != "never":
        parts["modulation"] = modulate(
            model, recipe.modulation, recipe.modulation_steps, optimizer=optimizer
        )
    if recipe.projection is not None:
        parts["projection"] = project(
            model,
            recipe.projection_every,
            recipe.projection,
            relu=recipe.projection_relu,
            optimizer=optimizer,
            seed=seed,
        )
    if recipe.max_norm:
        parts["max_norm"] = max_norm(model, recipe.max_norm, optimizer=optimizer)
    for part in parts.values():
        stack.enter_context(part)
    return dict(parts)
