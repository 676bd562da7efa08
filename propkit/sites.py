"""Which modules are observed, and what kind of site each is."""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize

from propkit.probe import Probe

_FILTERS = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear)
_TRANSPOSED_LINEAR = "Conv1D"
"""transformers' linear layer, known by name (the package is not needed here): its weight is ``(in, out)``."""
_PARAMETRIC = (
    *_FILTERS,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
)
ROOT = "(model)"
"""Site name of the model itself, whose qualified name is empty."""


@dataclass(frozen=True)
class Site:
    """One place of observation: a module under its qualified name, with the probes that apply there."""

    name: str
    module: nn.Module
    probes: tuple[Probe, ...]


def is_kind(module: nn.Module, kind: str) -> bool:
    """Whether a module is a ``"parametric"`` site, one with ``"filters"``, or a ``"layer"``.

    Parametric: PyTorch's convolutions, linear layers, embeddings, recurrent layers and multi-head attention, and any
    module that has a parameter of at least two dimensions while its children, if any, have none at all (a bank of
    experts holds its activation function). Filters: convolutions and linear layers, whose weight is a bank of filters.
    Layer: parametric ones and the nonlinearities of `torch.nn`.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return False  # it runs no Python hooks
    if kind == "filters":
        return isinstance(module, _FILTERS) or _is_transposed_linear(module)
    parametric = isinstance(module, _PARAMETRIC) or (
        any(_dims(p) >= 2 for p in module.parameters(recurse=False))
        and not isinstance(module, parametrize.ParametrizationList)
        and not any(True for child in module.children() for _ in child.parameters())
    )
    if kind == "parametric":
        return parametric
    if kind == "layer":
        return parametric or (
            type(module).__module__ == "torch.nn.modules.activation"
            and not isinstance(module, nn.MultiheadAttention)
        )
    raise ValueError(f"unknown kind of site: {kind!r}")


def find_sites(
    model: nn.Module,
    probes: Iterable[Probe],
    include: str | None = None,
    exclude: str | None = None,
    blocks: str | Collection[str] | None = None,
) -> tuple[list[Site], list[str]]:
    """The sites of `model` in the order of ``named_modules()``, and remarks on what was left out.

    Patterns match the whole qualified name (``re.fullmatch``). `include` and `exclude` select among layers, `blocks`
    (a pattern, or the names themselves) says which modules are seen as one map; where it is None or empty, probes of
    blocks observe parametric layers. Probes of maps (signal ``function``) observe the whole model as well.

    Raises:
        ValueError: A pattern is no regular expression or matches no module, or nothing is left to observe.
    """
    names = [name or ROOT for name, _ in model.named_modules()]
    included = _match("include", include, names) if include is not None else set(names)
    excluded = _match("exclude", exclude, names) if exclude is not None else set()
    if isinstance(blocks, str):
        blocks = _match("blocks", blocks, names)
    block_names = set(blocks or ())
    unknown = sorted(block_names - set(names))
    if unknown:
        raise ValueError(
            f"blocks names {unknown[0]!r}, which is no module of {type(model).__name__}; "
            "see [name for name, _ in model.named_modules()]"
        )
    probes = list(probes)
    remarks: list[str] = []
    sites: list[Site] = []
    counts = dict.fromkeys((p.name for p in probes), 0)
    for name, module in model.named_modules():
        name = name or ROOT
        if name in excluded:
            continue
        if isinstance(module, torch.jit.ScriptModule):
            if name in included:
                remarks.append(
                    f"{name}: a TorchScript module runs no Python hooks, so nothing is recorded there"
                )
            continue
        here = tuple(p for p in probes if _applies(p, name, module, included, block_names))
        for p in here:
            counts[p.name] += 1
        if here:
            sites.append(Site(name, module, here))
    remarks.extend(
        f"probe {p.name!r} has no site: no selected module is of kind {_kind(p.sites)}"
        for p in probes
        if not counts[p.name]
    )
    if not sites:
        raise ValueError(
            f"nothing to observe in {type(model).__name__}: {'; '.join(remarks) or 'no probes were given'}"
        )
    return sites, remarks


def _kind(sites: object) -> str:
    return getattr(sites, "__name__", repr(sites))  # of a predicate, its name


def _applies(p: Probe, name: str, module: nn.Module, included: set[str], blocks: set[str]) -> bool:
    if p.sites == "block":
        if name == ROOT and "function" in p.signals:
            return True  # the whole network is one map too
        if blocks:
            return name in blocks
        return name in included and is_kind(module, "parametric")
    if name not in included:
        return False
    test: Callable[[nn.Module], bool] | str = p.sites
    return is_kind(module, test) if isinstance(test, str) else bool(test(module))


def _match(argument: str, pattern: str, names: list[str]) -> set[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{argument}={pattern!r} is not a regular expression: {error}") from error
    found = {name for name in names if compiled.fullmatch(name)}
    if not found:
        shown = ", ".join(names[1:9]) + (", ..." if len(names) > 9 else "")
        raise ValueError(
            f"{argument}={pattern!r} matches no module. It is a regular expression for the whole name; "
            f"the model's names are like {shown} (see model.named_modules())"
        )
    return found


def type_name(module: nn.Module) -> str:
    """Name of the module's class as written in the model: sharding and parametrising put a class of their own above."""
    own, *bases = type(module).__mro__
    below = {base.__name__ for base in bases}
    bare = own.__name__.removeprefix("FSDP").removeprefix("Parametrized")
    return bare if bare in below else own.__name__


def weight_of(module: nn.Module) -> torch.Tensor | None:
    """The module's weight (its first parameter with two or more dimensions where it has no ``weight``), detached.

    Filters come first, also where a layer keeps them last.

    Reading a parametrised weight can change state (a spectral norm's power iteration, random numbers), so its
    parametrisations are in evaluation mode while it is read, and random states are put back. A sharded weight is
    gathered, which all ranks have to do together.
    """
    weight = _own_weight(module)
    if weight is not None and hasattr(weight, "full_tensor"):
        weight = weight.full_tensor()
    return weight


def is_sharded(module: nn.Module, recurse: bool = False) -> bool:
    """Whether parameters of the module, or of all within it, are spread over ranks, which gather them together."""
    return any(hasattr(p, "full_tensor") for p in module.parameters(recurse))


def is_left_over(module: nn.Module) -> bool:
    """Whether the weight is what the last forward computed of others, as `torch.nn.utils.prune` does."""
    return isinstance(vars(module).get("weight"), torch.Tensor)


def fans(module: nn.Module) -> tuple[int, int]:
    """``(fan_in, fan_out)`` as the papers use them: length of a filter, number of filters; (0, 0) without weight."""
    weight = _own_weight(module)
    if weight is None:
        return 0, 0
    shape = weight.shape
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        filters = shape[1] * module.groups
        return shape.numel() // filters, filters
    return shape[1:].numel(), shape[0]


def _own_weight(module: nn.Module) -> torch.Tensor | None:
    parametrizations = module._modules.get("parametrizations")
    if isinstance(parametrizations, nn.ModuleDict) and "weight" in parametrizations:
        modes = [(m, m.training) for m in parametrizations["weight"].modules()]
        parametrizations["weight"].eval()
        try:
            # some draw numbers in evaluation mode, too
            with torch.random.fork_rng(_gpus_of(module)):
                return module.weight.detach()  # type: ignore[operator]  # nn.Module's attributes are untyped
        finally:
            for m, mode in modes:
                m.training = mode
    weight = getattr(module, "weight", None)
    if isinstance(weight, torch.Tensor) and _dims(weight) >= 2:
        return weight.detach().t() if _is_transposed_linear(module) else weight.detach()
    for parameter in module.parameters(recurse=False):
        if _dims(parameter) >= 2:
            return parameter.detach()
    return None


def _gpus_of(module: nn.Module) -> list[torch.device]:
    return list({p.device for p in module.parameters() if p.device.type == "cuda"})


def _is_transposed_linear(module: nn.Module) -> bool:
    if _TRANSPOSED_LINEAR not in type(module).__name__ or type_name(module) != _TRANSPOSED_LINEAR:
        return False
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and _dims(weight) == 2


def _dims(parameter: torch.Tensor) -> int:
    if nn.parameter.is_lazy(parameter):
        return 2  # a lazy layer before its first forward: its weight will be a matrix or a kernel
    return parameter.ndim
