"""One site in eager PyTorch: from a module's calls to the values of its probes.

A forward hook reduces a site's tensors at once and puts *tensor* hooks on them that reduce their gradients at once:
nothing is kept, no full backward hook is used (they break on in-place activations), the graph is not edited.
"""

import contextlib
import functools
from collections.abc import Callable, Collection
from typing import Any, Protocol

import torch
from torch import nn

from propkit.hooks.compiled import Compiled
from propkit.hooks.signals import backward_pass, first_tensor, on_gradient, transformed
from propkit.hooks.traced import SiteHook
from propkit.hooks.values import FORWARD, NEUTRAL, OF_A_CALL, Key, Receiver
from propkit.probe import Measurement, Probe
from propkit.sites import Site, weight_of


class Switchboard(Protocol):
    """What a site needs of all the hooks (see `propkit.hooks.taps.Taps`)."""

    receiver: Receiver
    disabled: set[str]
    skipped_transforms: int
    origin: int
    compiled: Compiled

    @property
    def idle(self) -> bool:
        """Whether nothing is measured in this step."""

    def is_active(self, probe: str) -> bool:
        """Whether the probe is measured in this step."""

    def visit(self, site: str, call: int, input_shape: str, output_shape: str) -> None:
        """Note where in the network a call is."""


class SiteTap:
    """The hooks of one site."""

    def __init__(self, site: Site, taps: Switchboard) -> None:
        self.site = site
        self.taps = taps
        self.calls = 0  # in this forward of the model
        self.recomputed = 0  # of them, during backward (activation checkpointing)
        self.direct = (
            0  # of them, with gradients enabled: their graph is the one that backward runs through
        )
        self.pending: list[
            _Call
        ] = []  # recomputed calls of the checkpoint under way, still without a number
        self.checkpoint: object = None  # the node of the graph that recomputes
        self.leaves: dict[tuple[str, int], torch.utils.hooks.RemovableHandle] = {}
        self.measured: set[str] = set()  # probes whose weight was measured in this step
        self.before: torch.Tensor | None = None  # the weight before this step
        self.open: list[_Call] = []
        self.here: list[tuple[Probe, Measurement]] = [
            (p, m) for p in site.probes for m in p.measurements
        ]
        self.before_hook = SiteHook(self._before_forward, "input", site, taps.compiled)
        self.after_hook = SiteHook(self._after_forward, "output", site, taps.compiled)

    def needed(self, active: Collection[str]) -> bool:
        """Whether one of these probes applies here."""
        return any(p.name in active for p in self.site.probes)

    def put_in_before(self) -> torch.utils.hooks.RemovableHandle:
        """Put in the hook that runs before the module."""
        return self.site.module.register_forward_pre_hook(self.before_hook, with_kwargs=True)

    def put_in_after(self) -> torch.utils.hooks.RemovableHandle:
        """Put in the hook that runs after the module."""
        return self.site.module.register_forward_hook(self.after_hook, with_kwargs=True)

    def begin_forward(self) -> None:
        """Count the calls from 0 again."""
        self.calls = self.recomputed = self.direct = 0
        self.open.clear()
        self.pending.clear()
        self.checkpoint = None

    def _before_forward(self, module: nn.Module, args: Any, kwargs: Any) -> None:  # noqa: ARG002 - hook signature
        if self.taps.idle:
            return
        with self.guard():
            if transformed():
                self.taps.skipped_transforms += 1
                return
            recomputing = backward_pass() != -1
            call = _Call(self, recomputing)
            self._enter(call)
            self.open.append(call)
            received = first_tensor((args, kwargs))
            if received is not None:
                call.received = received
                call.offer("input", received)
                # In a recomputation, a leaf is the detached input of the checkpoint: the real one has its hook.
                if not (recomputing and received.is_leaf):
                    call.follow("grad_input", received)

    def _after_forward(self, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:  # noqa: ARG002
        if self.taps.idle:
            return
        with self.guard():
            if transformed() or not self.open:
                return
            call = self.open.pop()
            returned = first_tensor(result)
            if not call.recomputing:
                self.taps.visit(
                    self.site.name, call.number, _shape(call.received), _shape(returned)
                )
                self.measure_weight()
            call.received = None
            if returned is not None:
                call.offer("output", returned)
                call.follow("grad_output", returned, (args, kwargs))

    def _enter(self, call: "_Call") -> None:
        """Number a call; those of a recomputation wait until their checkpoint is complete."""
        if not call.recomputing:
            call.number = self.calls
            self.calls += 1
            self.direct += torch.is_grad_enabled()
            return
        node = torch._C._current_autograd_node()
        if node is not self.checkpoint:
            self.number_recomputed()
            self.checkpoint = node
        self.pending.append(call)

    def number_recomputed(self) -> None:
        """Number the calls of a recomputed checkpoint: checkpoints come last one first, the calls in one in order."""
        first = max(self.calls - self.recomputed - len(self.pending), 0)
        for i, call in enumerate(self.pending):
            call.number = first + i
        self.recomputed += len(self.pending)
        self.pending.clear()

    def forget_leaves(self) -> None:
        """Take the hooks out of leaves, which outlive the graph."""
        for handle in self.leaves.values():
            handle.remove()
        self.leaves.clear()

    def measure_weight(self) -> None:
        """Measure the weight before the step, unless that is done; keep it where its change is asked for."""
        for p, m in self.here:
            if not self.taps.is_active(p.name) or OF_A_CALL.intersection(m.signals):
                continue
            if "update" in m.signals:
                if self.before is None:
                    weight = weight_of(self.site.module)
                    self.before = None if weight is None else weight.clone()
            elif p.name not in self.measured:
                self.evaluate(p, m, {}, 0, NEUTRAL)
        self.measured.update(p.name for p in self.site.probes if self.taps.is_active(p.name))

    def finish_step(self, active: Collection[str]) -> None:
        """Measure the change of the weight, and forget the calls of this step."""
        if self.before is not None:
            with self.guard():
                after = weight_of(self.site.module)
                for p, m in self.here:
                    if "update" in m.signals and p.name in active and after is not None:
                        change = {"weight": self.before, "update": after - self.before}
                        self.evaluate(p, m, change, 0, NEUTRAL)
        self.before = None
        self.measured.clear()
        self.begin_forward()
        self.forget_leaves()

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
            elements = next((t.numel() for n, t in signals.items() if n in OF_A_CALL), 1)
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
    def guard(self) -> Any:
        """Keep propkit's own faults from the training."""
        try:
            yield
        except Exception as error:  # the same for our own faults
            self.taps.receiver.broken(error)


class _Call:
    """Signals of one call of a site. A function of one signal runs at once; one of several waits for all of them."""

    def __init__(self, tap: SiteTap, recomputing: bool) -> None:
        self.tap = tap
        self.number = -1  # not known yet
        self.recomputing = recomputing
        self.origin = tap.taps.origin
        self.received: torch.Tensor | None = None
        self._waiting: dict[int, dict[str, torch.Tensor]] = {}

    def wants(self, signal: str) -> bool:
        return any(signal in m.signals for p, m in self.tap.here if self.tap.taps.is_active(p.name))

    def follow(self, signal: str, tensor: torch.Tensor, inputs: Any = ()) -> None:
        """Offer the gradient with respect to `tensor` when it arrives."""
        if not self.wants(signal):
            return
        # A checkpoint that is not reentrant recomputes values for the first graph, whose tensors have their hooks.
        if self.recomputing and self.tap.direct == self.tap.calls:
            return
        handle = on_gradient(tensor, self.collector(signal), inputs)
        if handle is not None:  # one per call of the site, however many forwards a step has
            old = self.tap.leaves.pop((signal, self.number), None)
            if old is not None:
                old.remove()
            self.tap.leaves[signal, self.number] = handle

    def collector(self, signal: str) -> Callable[[torch.Tensor], None]:
        """A tensor hook that offers the gradient and leaves it as it is."""
        return functools.partial(self._arrived, signal)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a compiled training step may call it
    def _arrived(self, signal: str, grad: torch.Tensor) -> None:
        with self.tap.guard():
            if self.number < 0:
                self.tap.number_recomputed()
            self.offer(signal, grad)

    def offer(self, signal: str, tensor: torch.Tensor) -> None:
        """A signal is there: run the functions that have waited for it."""
        tensor = tensor.detach()
        for p, m in self.tap.here:
            if signal not in m.signals or not self.tap.taps.is_active(p.name):
                continue
            needed = OF_A_CALL.intersection(m.signals)
            if self.recomputing and needed <= FORWARD:
                continue  # a recomputed forward repeats statistics that the first one gave
            if len(needed) == 1:
                self.tap.evaluate(p, m, {signal: tensor}, self.number, self.origin)
                continue
            waiting = self._waiting.setdefault(id(m), {})
            # A later operation may change a forward tensor in place; autograd never changes a gradient that is held.
            waiting[signal] = tensor.clone() if signal in FORWARD else tensor
            if needed == waiting.keys():
                self.tap.evaluate(p, m, dict(waiting), self.number, self.origin)
                for gradient in needed - FORWARD:
                    del waiting[gradient]  # another backward pass brings its own


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
