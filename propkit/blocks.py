"""Finding a network's blocks, the modules that are seen as one map x_l -> x_{l+1}, without being told."""

import re
from collections import Counter
from collections.abc import Iterator

from torch import nn

from propkit.sites import is_kind

_NAMED_LIKE_A_BLOCK = re.compile(r"(Block|Bottle[Nn]eck|Layer|Unit|Cell|Stage)(V?\d+\w?)?$|^Block")
"""A class that ends so, but for a version: T5Block is a block, its T5LayerFF a sublayer of it."""


def find_blocks(model: nn.Module) -> list[str]:
    """Qualified names of the model's blocks, in the order of ``named_modules()``; empty if there are none.

    A block is a repeated building stone of a common layout (torchvision's ``layer1.0``, timm's ``stages.0.blocks.1``,
    transformers' ``encoder.layer.3``): a module with its own ``forward``, numbered within a Sequential or a
    ModuleList, that holds at least two parametric layers. If the class of any is named like a block (…Block, …Layer,
    Bottleneck, …), only such are. Where they are nested, the inner ones are taken, the blocks of a stage rather than
    the stage; but not a part of which a block has one, as an inverted residual has one squeeze-and-excitation: blocks
    come several in a row, at least somewhere in the network.

    Args:
        model: Any module.
    """
    candidates = dict(_candidates(model))
    if not candidates:
        return []
    named = {n: m for n, m in candidates.items() if _NAMED_LIKE_A_BLOCK.search(type(m).__name__)}
    pool = named or candidates
    kinds = Counter((name.rpartition(".")[0], type(m)) for name, m in pool.items())
    in_a_row = {kind for (_, kind), number in kinds.items() if number > 1}
    parts = {
        type(inner)
        for name, inner in pool.items()
        for outer, module in pool.items()
        if name.startswith(f"{outer}.") and type(module) in in_a_row
    } - in_a_row
    pool = {n: m for n, m in pool.items() if type(m) not in parts}
    return [name for name in pool if not any(other.startswith(f"{name}.") for other in pool)]


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    containers = {
        name for name, m in model.named_modules() if isinstance(m, (nn.Sequential, nn.ModuleList))
    }
    for name, module in model.named_modules():
        parent, _, last = name.rpartition(".")
        if (
            last.isdigit()
            and parent in containers
            and not isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
            and sum(is_kind(m, "parametric") for m in module.modules()) >= 2
        ):
            yield name, module
