"""Modulation of back-propagated errors, arXiv:1703.01827, Secs. 4 and 5.3.

Backward is linear in the errors and forward is left alone. So modulation comes to the same as a learning
rate for each layer: with ρ_j the factor at layer j, layer k's weight gradient is multiplied by the product
of ρ_j over j >= k, and those of the batch norm behind it by that over j > k.
"""

import functools
import re
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from propkit.hooks.factors import forget_factors, note_factor
from propkit.hooks.hook import Hook, is_compiled
from propkit.hooks.steps import OptimizerSteps
from propkit.probes._reductions import mean_square
from propkit.training.modulation_rules import Rule, find_rule

_modulated: set[int] = set()
"""Layers that a handle modulates, by id; the handle keeps them alive."""


class Modulation:
    """What `modulate` returns: a handle, which is a context manager.

    Attributes:
        layers: Name -> layer whose errors are modulated.
        steps: Optimiser steps so far.
        limit: Number of steps after which it ends by itself; None for never.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: dict[str, nn.Module],
        rule: Rule,
        limit: int | None,
        optimizer: torch.optim.Optimizer | None,
    ) -> None:
        self.layers = layers
        self.steps = 0
        self.limit = limit
        self._rule = rule
        self._chain = _Chain(rule)
        self._fresh = False  # a forward pass has begun since the last step
        self._removed = False
        _modulated.update(map(id, layers.values()))
        root = _BreakingHook(self._forward_begins)
        self._handles = [model.register_forward_pre_hook(root)]
        for layer in layers.values():
            self._handles.append(layer.register_forward_hook(_BreakingHook(self._after_forward)))
        self._optimizer_steps = OptimizerSteps(model, self.step, optimizer)

    @property
    def active(self) -> bool:
        """Whether errors are still modulated."""
        return not self._removed and (self.limit is None or self.steps < self.limit)

    def step(self) -> None:
        """A training step is complete; to be called in loops without a `torch.optim` optimiser only."""
        self.steps += 1
        self._fresh = False

    def remove(self) -> None:
        """End the modulation, also of backward passes that are still to come; any number of times."""
        if self._removed:
            return
        self._removed = True
        self._optimizer_steps.remove()
        for handle in self._handles:
            handle.remove()
        for layer in self.layers.values():
            forget_factors(layer)
            _modulated.discard(id(layer))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs to end the modulation at the same step."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.steps = int(state["steps"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        state = "active" if self.active else "over"
        return f"<propkit modulation of {len(self.layers)} layers: {state}, step {self.steps}>"

    def _forward_begins(self, *_: Any) -> None:
        if torch._C._current_graph_task_id() == -1:  # else a checkpoint recomputes
            self._begin_step()
            self._chain = _Chain(self._rule)

    def _begin_step(self) -> None:
        if self._fresh:
            return
        self._fresh = True
        # Not when the step ended: what records the factors may have been told later.
        for layer in self.layers.values():
            forget_factors(layer)
        if not self.active:
            self.remove()

    def _after_forward(self, layer: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002 - a hook
        self._begin_step()
        if self._removed or not isinstance(output, Tensor) or not output.requires_grad:
            return
        # A view that is changed in place later gets another node; its base keeps its own.
        base = output._base
        if base is not None and base.grad_fn is not None and base.numel() == output.numel():
            output = base
        node, index = output.grad_fn, output.output_nr
        if node is None:  # inside a torch.func transform
            return
        # The node's hook, not the tensor's: it comes after all hooks of the tensor, which probes use.
        chain = self._chain
        chain.calls += 1
        node.register_prehook(functools.partial(self._modulate, layer, chain, chain.calls, index))

    @torch.no_grad()
    def _modulate(
        self,
        layer: nn.Module,
        chain: "_Chain",
        call: int,
        index: int,
        grads: tuple[Tensor | None, ...],
    ) -> tuple[Tensor | None, ...] | None:
        error = grads[index]
        if self._removed or error is None:
            return None
        factor = chain.factor(call, error)
        note_factor(layer, factor)
        return (*grads[:index], error * factor.to(error.dtype), *grads[index + 1 :])


class _Chain:
    """The layers that the errors of one forward pass have come through, highest first."""

    def __init__(self, rule: Rule) -> None:
        self.calls = 0
        self._rule = rule
        self._seen: set[int] = set()
        self._top: Tensor | None = None
        self._above: Tensor | None = None

    def factor(self, call: int, error: Tensor) -> Tensor:
        """ρ of a layer's call, 0-d."""
        q = mean_square(error)
        if call in self._seen or self._top is None or self._above is None:
            # The highest layer, or another backward pass of the same forward, which begins with it too.
            self._seen.clear()
            self._top = self._above = q
        self._seen.add(call)
        wanted = self._rule(q, self._above, self._top)
        factor = (wanted / q).sqrt()
        usable = factor.isfinite() & (factor > 0)  # not so for errors of zero
        self._above = torch.where(usable, wanted, q)
        return torch.where(usable, factor, 1.0)


class _BreakingHook(Hook):
    """A hook that `torch.compile` leaves the graph for: what it does must not be lost."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, *args: Any) -> None:
        self.function(*args)


def modulate(
    model: nn.Module,
    rule: str | Rule = "decade",
    steps: int | None = 2000,
    *,
    tau: float | None = None,
    include: str | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Modulation:
    """Scale back-propagated errors where the magnitudes of consecutive layers mismatch.

    At each layer l the error δ, the gradient with respect to the layer's output, is multiplied by
    ρ = √(q_{l+1} / q_l) (arXiv:1703.01827, Sec. 4) before it reaches the layer's weight and input: q is the
    mean of δ², l+1 the layer whose error arrived before, q_{l+1} taken after its own modulation. The
    loop stays as it is; optimiser steps are found by themselves. Forward is not touched, nor
    ``state_dict``; copies of the model are not modulated.

    What a recorder measures meanwhile: ``error_moment`` at a layer is that of the error as it arrives,
    modulated at all layers above but not yet at the layer itself, whichever of `propkit.attach` and
    `modulate` came first; errors at inputs and weights' gradients are modulated there too. The probe
    ``modulation`` records ρ; the moment after it is ρ² times that recorded.

    In a training by several processes each modulates by its own part of the batch. The rule
    ``decade`` depends on the scale of the loss, and so on a gradient scaler's; the others do not.

    Args:
        model: Not compiled yet; it may be afterwards, with a graph break at each layer.
        rule: ``"decade"`` (orders of magnitude: the paper's words), ``"drift"``, ``"ratio"``, ``"always"``,
            ``"never"``, or a function: see `propkit.training.modulation_rules.find_rule`. Which one the
            authors used is not known.
        steps: End after so many optimiser steps; None: at ``remove()`` only. The paper finds the
            errors' pattern stable after 2000 to 3000.
        tau: τ of the rules ``drift`` and ``ratio``.
        include: Pattern of the whole qualified names of the layers, convolutions and linear ones; by
            default all convolutions, or all linear layers where there is none.
        optimizer: Count the steps of this one only; of any that holds parameters of the model if None.

    Returns:
        A handle: a context manager with ``remove()``, ``steps`` and ``state_dict()``.

    Raises:
        ValueError: A pattern matches no layer, a layer is modulated already, the model is compiled, the
            rule is unknown, or ``steps`` or ``tau`` is out of range.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with modulate(model, "always", steps=10) as modulation:
        ...     model(torch.ones(1, 1, 8, 8)).sum().backward()
        ...     optimizer.step()
        >>> modulation.steps, list(modulation.layers)
        (1, ['0', '2'])
    """
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1 or None, found {steps}")
    found = find_rule(rule, tau)
    layers = _layers(model, include)
    for name, layer in layers.items():
        if id(layer) in _modulated:
            raise ValueError(f"{name} is modulated already; remove that modulation first")
    if is_compiled(model):
        raise ValueError(
            "the model is compiled already, so hooks put in now may never run; modulate it before"
        )
    return Modulation(model, layers, found, steps, optimizer)


def _layers(model: nn.Module, include: str | None) -> dict[str, nn.Module]:
    every: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _ConvNd | nn.Linear)
    }
    if include is not None:
        found = {name: m for name, m in every.items() if re.fullmatch(include, name)}
    else:
        found = {name: m for name, m in every.items() if isinstance(m, _ConvNd)} or every
    if not found:
        what = "" if include is None else f" that {include!r} matches"
        raise ValueError(f"the model has no convolution and no linear layer{what} to modulate")
    return found
