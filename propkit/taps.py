"""Hooks in, hooks out: from a module's calls to the values of its probes, in eager PyTorch.

A forward hook reduces a site's tensors at once and puts *tensor* hooks on them that reduce their gradients at once:
nothing is kept, no full backward hook is used (they break on in-place activations), the graph is not edited.
"""

import contextlib
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from propkit.probe import Measurement, Probe
from propkit.signals import backward_pass, first_tensor, on_gradient, transformed
from propkit.sites import Site, is_kind, weight_of

EVALUATION, TRAINING, NEUTRAL = 0, 1, 2
"""Where a value comes from: a forward with gradients disabled, one with them enabled, or no forward (weights)."""

_FORWARD = frozenset({"input", "output"})
_OF_A_CALL = frozenset({"input", "output", "grad_input", "grad_output"})


class Key(NamedTuple):
    """What one value is: variable of a probe at one call of a site."""

    probe: str
    variable: str
    site: str
    call: int


class Place(NamedTuple):
    """What the first observed step tells about one call of a site."""

    order: int
    depth: int
    input_shape: str
    output_shape: str


class Receiver(Protocol):
    """Takes the values (the recorder does)."""

    def receive(
        self, key: Key, measurement: Measurement, value: torch.Tensor, weight: float, origin: int
    ) -> None:
        """One value of one call: 0-d, on the model's device."""

    def loss_scale(self) -> torch.Tensor | None:
        """What the loss of the running backward pass is multiplied by, 0-d on any device; None for 1."""

    def fault(self, probe: str, error: Exception) -> None:
        """A probe failed and is measured no more."""

    def broken(self, error: Exception) -> None:
        """The hooks themselves failed."""


class Taps:
    """The hooks of one recorder on one model, there on sampled steps only."""

    def __init__(self, model: nn.Module, sites: list[Site], receiver: Receiver) -> None:
        self.model = model
        self.receiver = receiver
        self.places: dict[tuple[str, int], Place] = {}
        self.disabled: set[str] = set()
        self.skipped_transforms = 0
        self.origin = TRAINING
        self._taps = [_SiteTap(site, self) for site in sites]
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._active: frozenset[str] = frozenset()
        self._discovering = True
        self.depth = 0

    def install(self, probes: Collection[str]) -> None:
        """Put in the hooks that `probes` need, instead of those that are there."""
        active = frozenset(probes) - self.disabled
        if active == self._active:
            return
        self.remove()
        self._active = active
        if not active:
            return
        self._handles.append(self.model.register_forward_pre_hook(_Hook(self._forward_begins)))
        if self._discovering:
            parametric = {id(m): m for m in self.model.modules() if is_kind(m, "parametric")}
            for module in parametric.values():
                self._handles.append(module.register_forward_hook(_Hook(self._count_depth)))
        for tap in self._taps:
            self._handles.extend(tap.install(active))

    def remove(self) -> None:
        """Take out every hook; gradients that are still to come are ignored."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._active = frozenset()

    def finish_step(self) -> None:
        """Measure what the optimiser's step changed, and forget the calls of this step."""
        for tap in self._taps:
            tap.finish_step(self._active)

    def stop_discovering(self) -> None:
        """The places are known: count depths no more."""
        self._discovering = False

    def is_active(self, probe: str) -> bool:
        """Whether the probe is measured in this step."""
        return probe in self._active and probe not in self.disabled

    def visit(
        self, site: str, call: int, received: torch.Tensor | None, returned: torch.Tensor | None
    ) -> None:
        """Note where in the network a call is (first observed step only)."""
        if self._discovering:
            order = (
                self.places[site, call].order if (site, call) in self.places else len(self.places)
            )
            self.places[site, call] = Place(order, self.depth, _shape(received), _shape(returned))

    def _forward_begins(self, *_: Any) -> None:
        if backward_pass() != -1:
            return
        self.origin = TRAINING if torch.is_grad_enabled() else EVALUATION
        self.depth = 0
        for tap in self._taps:
            tap.begin_forward()

    def _count_depth(self, *_: Any) -> None:
        if backward_pass() == -1:
            self.depth += 1


class _SiteTap:
    """The hooks of one site."""

    def __init__(self, site: Site, taps: Taps) -> None:
        self.site = site
        self.taps = taps
        self.calls = 0  # in this forward of the model
        self.recomputed = 0  # of them, during backward (activation checkpointing)
        self.measured: set[str] = set()  # probes whose weight was measured in this step
        self.before: torch.Tensor | None = None  # the weight before this step
        self.open: list[_Call] = []
        self.here: list[tuple[Probe, Measurement]] = [
            (p, m) for p in site.probes for m in p.measurements
        ]

    def install(self, active: Collection[str]) -> list[torch.utils.hooks.RemovableHandle]:
        needs = {s for p, m in self.here if p.name in active for s in m.signals}
        if not needs:
            return []
        module = self.site.module
        return [
            module.register_forward_pre_hook(_Hook(self._before_forward), with_kwargs=True),
            module.register_forward_hook(_Hook(self._after_forward), with_kwargs=True),
        ]

    def begin_forward(self) -> None:
        self.calls = self.recomputed = 0
        self.open.clear()

    def _before_forward(self, module: nn.Module, args: Any, kwargs: Any) -> None:  # noqa: ARG002 - hook signature
        with self._guard():
            if transformed():
                self.taps.skipped_transforms += 1
                return
            recomputing = backward_pass() != -1
            call = _Call(self, self._number(recomputing), recomputing)
            self.open.append(call)
            received = first_tensor((args, kwargs))
            if received is not None:
                call.received = received
                call.offer("input", received)
                # In a recomputation, a leaf is the detached input of the checkpoint: the real one has its hook.
                if call.wants("grad_input") and not (recomputing and received.is_leaf):
                    on_gradient(received, call.collector("grad_input"))

    def _after_forward(self, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:  # noqa: ARG002
        with self._guard():
            if transformed() or not self.open:
                return
            call = self.open.pop()
            returned = first_tensor(result)
            if not call.recomputing:
                self.taps.visit(self.site.name, call.number, call.received, returned)
                self._measure_weight()
            call.received = None
            if returned is not None:
                call.offer("output", returned)
                if call.wants("grad_output"):
                    on_gradient(returned, call.collector("grad_output"), (args, kwargs))

    def _number(self, recomputing: bool) -> int:
        """Index of this call in the forward; a recomputation repeats the calls from the last one backwards."""
        if recomputing:
            self.recomputed += 1
            return max(self.calls - self.recomputed, 0)
        self.calls += 1
        return self.calls - 1

    def _measure_weight(self) -> None:
        for p, m in self.here:
            if not self.taps.is_active(p.name) or _OF_A_CALL.intersection(m.signals):
                continue
            if "update" in m.signals:
                if self.before is None:
                    weight = weight_of(self.site.module)
                    self.before = None if weight is None else weight.clone()
            elif p.name not in self.measured:
                self.evaluate(p, m, {}, 0, NEUTRAL)
        self.measured.update(p.name for p in self.site.probes if self.taps.is_active(p.name))

    def finish_step(self, active: Collection[str]) -> None:
        if self.before is not None:
            with self._guard():
                after = weight_of(self.site.module)
                for p, m in self.here:
                    if "update" in m.signals and p.name in active and after is not None:
                        change = {"weight": self.before, "update": after - self.before}
                        self.evaluate(p, m, change, 0, NEUTRAL)
        self.before = None
        self.measured.clear()
        self.begin_forward()

    def evaluate(
        self, p: Probe, m: Measurement, signals: dict[str, torch.Tensor], call: int, origin: int
    ) -> None:
        """Call one function of a probe and hand its values on; a failing probe is switched off."""
        if p.name in self.taps.disabled:
            return
        try:
            arguments: dict[str, Any] = {}
            for name in m.signals:
                if name == "module":
                    arguments[name] = self.site.module
                elif name in signals:
                    arguments[name] = signals[name]
                else:
                    weight = weight_of(self.site.module)
                    if weight is None:
                        return
                    arguments[name] = weight
            elements = next((t.numel() for n, t in signals.items() if n in _OF_A_CALL), 1)
            with torch.no_grad(), _no_autocast():
                values = _unscaled(m, arguments, self.taps.receiver)
            if not isinstance(values, dict):
                values = {m.function.__name__: values}
            for variable, value in values.items():
                if not isinstance(value, torch.Tensor) or value.ndim:
                    found = (
                        f"shape {tuple(value.shape)}"
                        if isinstance(value, torch.Tensor)
                        else repr(value)
                    )
                    raise TypeError(
                        f"expected a 0-d tensor as value of {variable!r}, found {found}"
                    )
                key = Key(p.name, variable, self.site.name, call)
                self.taps.receiver.receive(key, m, value, elements, origin)
        except Exception as error:  # whatever a probe does, training goes on
            self.taps.disabled.add(p.name)
            self.taps.receiver.fault(p.name, error)

    @contextlib.contextmanager
    def _guard(self) -> Any:
        try:
            yield
        except Exception as error:  # the same for our own faults
            self.taps.receiver.broken(error)


class _Call:
    """Signals of one call of a site. A function of one signal runs at once; one of several waits for all of them."""

    def __init__(self, tap: _SiteTap, number: int, recomputing: bool) -> None:
        self.tap = tap
        self.number = number
        self.recomputing = recomputing
        self.origin = tap.taps.origin
        self.received: torch.Tensor | None = None
        self._waiting: dict[int, dict[str, torch.Tensor]] = {}

    def wants(self, signal: str) -> bool:
        return any(signal in m.signals for p, m in self.tap.here if self.tap.taps.is_active(p.name))

    def collector(self, signal: str) -> Callable[[torch.Tensor], None]:
        """A tensor hook that offers the gradient and leaves it as it is."""

        def collect(grad: torch.Tensor) -> None:
            with self.tap._guard():
                self.offer(signal, grad)

        return collect

    def offer(self, signal: str, tensor: torch.Tensor) -> None:
        """A signal is there: run the functions that have waited for it."""
        tensor = tensor.detach()
        for p, m in self.tap.here:
            if signal not in m.signals or not self.tap.taps.is_active(p.name):
                continue
            needed = _OF_A_CALL.intersection(m.signals)
            if self.recomputing and needed <= _FORWARD:
                continue  # a recomputed forward repeats statistics that the first one gave
            if len(needed) == 1:
                self.tap.evaluate(p, m, {signal: tensor}, self.number, self.origin)
                continue
            waiting = self._waiting.setdefault(id(m), {})
            # A later operation may change a forward tensor in place; autograd never changes a gradient that is held.
            waiting[signal] = tensor.clone() if signal in _FORWARD else tensor
            if needed == waiting.keys():
                self.tap.evaluate(p, m, dict(waiting), self.number, self.origin)
                for gradient in needed - _FORWARD:
                    del waiting[gradient]  # another backward pass brings its own


class _Hook:
    """A hook that a copied or pickled model carries on as a callable that does nothing."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> None:
        self.function(*args)

    def __reduce__(self) -> Any:
        return getattr, (
            contextlib.nullcontext(),
            "__exit__",
        )  # takes anything, returns None, needs no propkit


def _unscaled(m: Measurement, arguments: dict[str, Any], receiver: Receiver) -> Any:
    """The function's values, without the scale of the loss (gradients of a scaled loss are scaled like it)."""
    gradients = [name for name in m.signals if name.startswith("grad_")]
    scale = receiver.loss_scale() if gradients else None
    if scale is None:
        return m.function(**arguments)
    if m.degree is None:
        for name in gradients:
            grad = arguments[name]
            exact = grad.float() if grad.dtype in (torch.float16, torch.bfloat16) else grad
            arguments[name] = exact / scale.to(grad.device)
        return m.function(**arguments)
    values = m.function(**arguments)
    if not isinstance(values, dict):
        return values / scale.to(values.device, values.dtype) ** m.degree
    return {k: v / scale.to(v.device, v.dtype) ** m.degree for k, v in values.items()}


def _no_autocast() -> Any:
    if not torch.is_autocast_enabled("cpu") and not torch.is_autocast_enabled("cuda"):
        return contextlib.nullcontext()
    stack = contextlib.ExitStack()
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))
    return stack


def _shape(tensor: torch.Tensor | None) -> str:
    return "" if tensor is None else str(tuple(tensor.shape))
