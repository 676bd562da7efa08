"""One site in eager PyTorch: from a module's calls to the signals that probes hear.

A forward hook hands a site's tensors on at once and puts *tensor* hooks on them that do the same with their gradients:
nothing is kept, no full backward hook is used (they break on in-place activations), the graph is not edited.
"""

from collections.abc import Collection
from typing import Any, Protocol

import torch
from torch import nn

from propkit.hooks.compiled import Compiled
from propkit.hooks.listener import Listener
from propkit.hooks.signals import backward_pass, first_tensor, on_gradient, transformed
from propkit.hooks.traced import SiteHook
from propkit.hooks.values import FORWARD, GRADIENTS, NEUTRAL, OF_A_CALL, Receiver
from propkit.sites import Site, is_left_over, weight_of


class Switchboard(Protocol):
    """What a site needs of all the hooks (see `propkit.hooks.taps.Taps`)."""

    receiver: Receiver
    disabled: set[str]
    skipped_transforms: int
    origin: int
    compiled: Compiled
    discovering: bool
    idle: bool  # nothing is measured in this step
    inside: bool  # the model's own forward

    @property
    def stepping(self) -> bool:
        """Whether the weights may change from now on without another word."""

    def expect_parts(self) -> None:
        """A site is called outside the model's forward: be ready for parts that are called by themselves."""

    def visit(self, site: str, call: int, input_shape: str, output_shape: str) -> None:
        """Note where in the network a call is."""


class SiteTap:
    """The hooks of one site."""

    def __init__(self, site: Site, taps: Switchboard) -> None:
        self.site = site
        self.taps = taps
        self.calls = 0  # in this forward of the model
        self.recomputed = 0  # of them, during backward (activation checkpointing)
        self.direct = 0  # of them, with gradients enabled: backward runs through their graph
        self.pending: list[_Call] = []  # recomputed calls of a checkpoint, not numbered yet
        self.checkpoint: object = None  # the node of the graph that recomputes
        self.leaves: dict[tuple[str, int, int], torch.utils.hooks.RemovableHandle] = {}
        self.before: torch.Tensor | None = None  # the weight before this step
        self.open: list[_Call] = []
        self.here = [(p, m) for p in site.probes for m in p.measurements]
        self.all = [Listener(p, m, site, taps) for p, m in self.here]
        self.once = [x for x in self.all if x.measurement.once]
        self.hearing: dict[str, tuple[Listener, ...]] = {}  # signal -> active listeners
        self.of_weight: tuple[Listener, ...] = ()
        self.of_function: tuple[Listener, ...] = ()
        self.ran = False  # in this step
        self.weighed = False  # in this step
        self.both_ends = True  # or the hook after the module does
        self.before_hook = SiteHook(self._before_forward, "input", site, taps.compiled)
        self.after_hook = SiteHook(self._after_forward, "output", site, taps.compiled)

    def needed(self, active: Collection[str]) -> bool:
        """Whether one of these probes applies here."""
        left_out = self.site.name in self.taps.compiled.left_out
        return not left_out and any(p.name in active for p in self.site.probes)

    def activate(self, active: Collection[str]) -> None:
        """Listen with these probes from now on."""
        here = [x for x in self.all if x.probe in active]
        self.of_function = tuple(x for x in here if x.of_function)
        waiting = [x for x in here if not x.of_function]
        self.hearing = {s: tuple(x for x in waiting if s in x.needed) for s in OF_A_CALL}
        self.of_weight = tuple(x for x in here if not x.needed)
        inputs = self.hearing["input"] or self.hearing["grad_input"] or self.of_function
        self.both_ends = bool(inputs) or self.taps.discovering

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
        if self.taps.idle or not self.both_ends:
            return
        try:
            if transformed() is not None:
                self.taps.skipped_transforms += 1
                return
            call = self._enter()
            self.open.append(call)
            received = first_tensor((args, kwargs))
            if received is not None:
                call.received = received
                if self.hearing["input"]:
                    call.offer("input", received)
                if not call.recomputing:
                    # Buffers and random states are those that the forward will find: one dropout mask for both.
                    for listener in self.of_function:
                        listener.hear_function(args, kwargs, call.number, call.origin)
                # In a recomputation, a leaf is the detached input of the checkpoint: the real one has its hook.
                if self.hearing["grad_input"] and not (call.recomputing and received.is_leaf):
                    call.follow("grad_input", received)
        except Exception as error:  # the training goes on
            self.taps.receiver.broken(error)

    def _after_forward(self, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:  # noqa: ARG002 - a hook
        if self.taps.idle:
            return
        try:
            if transformed() is not None or (self.both_ends and not self.open):
                return
            call = self.open.pop() if self.open else self._enter()
            returned = first_tensor(result)
            if not call.recomputing:
                if self.taps.discovering:
                    shapes = _shape(call.received), _shape(returned)
                    self.taps.visit(self.site.name, call.number, *shapes)
                self.ran = True
                if self.of_weight and self.taps.stepping:
                    self.measure_weight()
            call.received = None
            if returned is not None:
                if self.hearing["output"]:
                    call.offer("output", returned)
                if self.hearing["grad_output"]:
                    call.follow("grad_output", returned, (args, kwargs))
        except Exception as error:  # the training goes on
            self.taps.receiver.broken(error)

    def _enter(self) -> "_Call":
        """A new call. It is numbered, but for a recomputation, which waits until its checkpoint is complete."""
        call = _Call(self, backward_pass() != -1)
        if not call.recomputing:
            if not self.taps.inside:
                self.taps.expect_parts()
            call.number = self.calls
            self.calls += 1
            self.direct += torch.is_grad_enabled()
            return call
        node = torch._C._current_autograd_node()
        if node is not self.checkpoint:
            self.number_recomputed()
            self.checkpoint = node
        self.pending.append(call)
        return call

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
        """Measure the weight before the step, and keep a copy where its change is asked for, unless that is done."""
        if self.weighed:
            return
        self.weighed = True
        weight = self._read_weight()
        known = {} if weight is None else {"weight": weight}
        for listener in self.of_weight:
            if not listener.of_update:
                listener.hear(known, 0, NEUTRAL)
        if weight is None or is_left_over(self.site.module):
            return  # the step does not change what is left over, the next forward does
        if any(x.of_update for x in self.of_weight):
            self.before = weight.clone()

    def _read_weight(self) -> torch.Tensor | None:
        """The weight, read once for all: what is sharded is gathered, what is parametrised is computed."""
        if not any(x.reads_weight for x in self.of_weight):
            return None
        try:
            return weight_of(self.site.module)
        except Exception:  # which each function that asks for it meets again, and is switched off
            return None

    def measure_weight_if_run(self) -> None:
        """Measure the weight if the site ran in this step."""
        if self.ran:
            self.measure_weight()

    def finish_step(self) -> None:
        """Measure the change of the weight, and forget the calls of this step."""
        if self.before is not None:
            try:
                after = weight_of(self.site.module)
                for listener in self.of_weight:
                    if listener.of_update and after is not None:
                        change = {"weight": self.before, "update": after - self.before}
                        listener.hear(change, 0, NEUTRAL)
            except Exception as error:  # the training goes on
                self.taps.receiver.broken(error)
        self.before = None
        self.ran = self.weighed = False
        for listener in self.once:
            listener.forget()
        self.begin_forward()
        self.forget_leaves()


class _Call:
    """Signals of one call of a site. A function of one signal runs at once; one of several waits for all of them."""

    __slots__ = ("_waiting", "number", "origin", "received", "recomputing", "tap")

    def __init__(self, tap: SiteTap, recomputing: bool) -> None:
        self.tap = tap
        self.number = -1  # not known yet
        self.recomputing = recomputing
        self.origin = tap.taps.origin
        self.received: torch.Tensor | None = None
        self._waiting: dict[Listener, dict[str, torch.Tensor]] | None = None

    def follow(self, signal: str, tensor: torch.Tensor, inputs: Any = ()) -> None:
        """Offer the gradient with respect to `tensor` when it arrives."""
        # A checkpoint that is not reentrant recomputes values for the first graph, whose tensors have their hooks.
        if self.recomputing and self.tap.direct == self.tap.calls:
            return
        handle = on_gradient(tensor, self, signal, inputs)
        if handle is not None:
            # one per leaf and call of the site, however many forwards a step has
            place = signal, self.number, id(tensor)
            old = self.tap.leaves.pop(place, None)
            if old is not None:
                old.remove()
            self.tap.leaves[place] = handle

    def offer(self, signal: str, tensor: torch.Tensor) -> None:
        """A signal is there: run the functions that have waited for it."""
        # One frame for the common case, as in `Listener`: it runs twice for every layer.
        try:
            if self.number < 0 and signal in GRADIENTS:
                self.tap.number_recomputed()
            if tensor.requires_grad:
                tensor = tensor.detach()
            for listener in self.tap.hearing[signal]:
                if self.recomputing and listener.of_forward:
                    continue  # a recomputed forward repeats statistics that the first one gave
                if listener.alone:
                    listener.hear({signal: tensor}, self.number, self.origin)
                else:
                    self._wait(listener, signal, tensor)
        except Exception as error:  # the training goes on
            self.tap.taps.receiver.broken(error)

    def _wait(self, listener: Listener, signal: str, tensor: torch.Tensor) -> None:
        """Keep the signal until those that the function needs beside it are there."""
        if self._waiting is None:
            self._waiting = {}
        waiting = self._waiting.setdefault(listener, {})
        # A later operation may change a forward tensor in place; autograd never changes a gradient that is held.
        waiting[signal] = tensor.clone() if signal in FORWARD else tensor
        if listener.needed == waiting.keys():
            listener.hear(dict(waiting), self.number, self.origin)
            for gradient in listener.needed & GRADIENTS:
                del waiting[gradient]  # another backward pass brings its own


def _shape(tensor: torch.Tensor | None) -> str:
    return "" if tensor is None else str(tuple(tensor.shape))
