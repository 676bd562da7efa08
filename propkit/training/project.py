"""The Procrustes projection of a model's convolutions after every few optimiser steps."""

import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from propkit.spectra.convolution_geometry import Sizes, conv_arguments
from propkit.training.after_step import AfterStep
from propkit.training.divergence import DivergenceError
from propkit.training.procrustes import procrustes_

Layer = _ConvNd | nn.Linear


class Projection(AfterStep):
    """What `project` returns: `propkit.training.after_step.AfterStep` with the layers and their maps.

    Attributes:
        layers: Name -> layer that is projected.
        sizes: Name -> size of the layer's input map; filled in the first forward pass where it
            matters and was not given.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, Layer],
        sizes: Mapping[str, Sizes],
        relu: str | bool,
        options: Mapping[str, Any],
        every: float,
        optimizer: torch.optim.Optimizer | None,
        seed: int,
    ) -> None:
        self.layers = dict(layers)
        self.sizes = dict(sizes)
        self._arguments = {
            name: {**_arguments(layer, bool(options.get("rescale"))), **options}
            for name, layer in layers.items()
        }
        for name, arguments in self._arguments.items():
            arguments["relu"] = relu if isinstance(relu, bool) else _matches(relu, name)
        super().__init__(model, self._project, every, optimizer, seed)
        self._watched: dict[str, RemovableHandle] = {}
        for name, layer in self.layers.items():
            if name in self.sizes or isinstance(layer, nn.Linear):
                continue
            if max(layer.kernel_size) > 1 or options.get("rescale"):
                self._watched[name] = layer.register_forward_pre_hook(self._watcher(name))

    def _watcher(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def watch(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:  # noqa: ARG001 - a hook
            axes = self.layers[name].weight.ndim - 2
            self.sizes[name] = tuple(inputs[0].shape[-axes:])
            self._watched.pop(name).remove()

        return watch

    def _project(self) -> None:
        for name, layer in self.layers.items():
            if name in self._watched:
                raise RuntimeError(
                    f"the size of the map of {name} is not known before its first forward pass; "
                    f"run the model once or give sizes={{{name!r}: ...}}"
                )
            if not torch.isfinite(layer.weight).all():
                raise DivergenceError(
                    f"the weight of {name} is no longer finite; the training has diverged",
                    self.steps or None,
                )
            procrustes_(layer.weight, self.sizes.get(name), **self._arguments[name])

    def remove(self) -> None:
        """Stop; any number of times. The weights stay as they are."""
        super().remove()
        for handle in self._watched.values():
            handle.remove()
        self._watched = {}


def project(
    model: nn.Module,
    every: float = 2,
    include: str | None = None,
    *,
    relu: str | bool = False,
    sizes: Mapping[str, Sizes] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    seed: int = 0,
    **options: Any,
) -> Projection:
    r"""Project layers by `propkit.training.procrustes_` after optimiser steps.

    arXiv:1805.07477, Sec. 3 does so with the three convolutions of a ProcResNet that change the
    number of channels, after each step with probability 0.5.

    Args:
        model: Its weights change in place; the optimiser's state does not.
        every: Project after every so many steps; a number below 1 is the probability to project
            after each, as in the official code.
        include: Pattern of the whole qualified names of the layers, convolutions of any kind and
            linear ones; all convolutions if None. `propkit.models.procresnet` has its own in
            ``PROJECTED``.
        relu: Whether a ReLU follows; a pattern tells the layers for which it does.
        sizes: Name -> size of the input map, for layers with several taps. Those not given are
            taken from the first forward pass.
        optimizer: Listen to this one only; any that holds parameters of the model if None.
        seed: Of the draws where ``every`` is a probability.
        **options: ``iterations``, ``refinements``, ``rescale``, ``bug_compat`` of `procrustes_`.
            ``rescale`` counts on the layer's own padding.

    Returns:
        A handle: a context manager with ``remove()``; calling it projects at once.

    Raises:
        ValueError: A pattern matches no layer, or ``every`` is out of range.
        DivergenceError: From the optimiser's step: a weight is no longer finite.

    Warns:
        UserWarning: A layer's weight is parametrised, so that it cannot be projected in place; it is left out.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with project(model, every=1, include="1"):
        ...     model(torch.zeros(1, 3, 8, 8)).sum().backward()
        ...     optimizer.step()
        >>> torch.linalg.svdvals(model[1].weight.flatten(1)).square().allclose(2 * torch.ones(8))
        True
    """
    unknown = set(options) - {"iterations", "refinements", "rescale", "bug_compat"}
    if unknown:
        raise TypeError(f"project takes no {', '.join(sorted(unknown))}; see its documentation")
    found = {
        name: module
        for name, module in model.named_modules()
        if (isinstance(module, _ConvNd) and include is None)
        or (isinstance(module, Layer) and include is not None and _matches(include, name))
    }
    if not found:
        what = "no convolution" if include is None else f"no layer that {include!r} matches"
        raise ValueError(f"the model has {what}; there is nothing to project")
    if isinstance(relu, str) and not any(_matches(relu, name) for name in found):
        raise ValueError(f"relu={relu!r} matches none of the projected layers {', '.join(found)}")
    strangers = set(sizes or {}) - set(found)
    if strangers:
        raise ValueError(f"sizes of layers that are not projected: {', '.join(sorted(strangers))}")
    return Projection(model, _plain(found), sizes or {}, relu, options, every, optimizer, seed)


def _arguments(layer: Layer, padded: bool) -> dict[str, Any]:
    """The layer as `procrustes_` takes it, with its padding or, as is the same without, circular."""
    if isinstance(layer, nn.Linear):
        return {}
    if padded:
        arguments = conv_arguments(layer)
        if any(arguments.pop("output_padding")):
            raise ValueError("rescale does not know output_padding; leave that layer out")
        return arguments
    names = ("stride", "dilation", "groups", "transposed")
    return {name: getattr(layer, name) for name in names}


def _plain(found: Mapping[str, Layer]) -> dict[str, Layer]:
    """Layers with a weight of their own; one of those that share a weight."""
    kept: dict[str, Layer] = {}
    seen: set[int] = set()
    skipped = []
    for name, module in found.items():
        if not isinstance(module._parameters.get("weight"), nn.Parameter):
            skipped.append(name)
        elif id(module.weight) not in seen:
            seen.add(id(module.weight))
            kept[name] = module
    if skipped:
        warnings.warn(
            f"not projected, because their weights are computed from other parameters: {', '.join(skipped)}",
            stacklevel=3,
        )
    return kept


def _matches(pattern: str, name: str) -> bool:
    return re.fullmatch(pattern, name) is not None
