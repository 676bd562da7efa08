"""Hooks in, hooks out: where and when a model is observed.

In eager PyTorch the hooks are there on sampled steps only. A graph made by `torch.compile` keeps the hooks that it was
traced with, so they go in before any trace and stay from then on: see `propkit.hooks.compiled`.
"""

import functools
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import nn

from propkit.hooks.before_step import BeforeStep
from propkit.hooks.calls import SiteTap
from propkit.hooks.compiled import Compiled
from propkit.hooks.gates import Absent, Gate, put_back, take_out
from propkit.hooks.hook import Hook, NoticedHook
from propkit.hooks.owners import has_optimizer
from propkit.hooks.signals import backward_pass, is_traced
from propkit.hooks.values import EVALUATION, NEUTRAL, TRAINING, Key, Place, Receiver
from propkit.sites import Site, is_kind, is_sharded

__all__ = ["EVALUATION", "NEUTRAL", "TRAINING", "Key", "Place", "Receiver", "Taps"]


class Taps:
    """The hooks of one recorder on one model."""

    def __init__(self, model: nn.Module, sites: list[Site], receiver: Receiver) -> None:
        self.model = model
        self.receiver = receiver
        self.places: dict[tuple[str, int], Place] = {}
        self.disabled: set[str] = set()
        self.skipped_transforms = 0
        self.origin = TRAINING
        self.depth = 0
        self.discovering = True
        self.compiled = Compiled(self)
        self.sites = [SiteTap(site, self) for site in sites]
        self.compiled.buffers.hooks = [h for t in self.sites for h in (t.before_hook, t.after_hook)]
        self._root = NoticedHook(self._forward_begins)
        self._root_ends = Hook(self._forward_ends)
        self._part_hooks = [
            (part, Hook(functools.partial(self._part_begins, f"{name}.")))
            for name, part in _parts(model)
        ]
        self.inside = False  # the model's own forward
        self._parts_alone = True  # parts may be called by themselves
        self._begun: dict[str, int] = {}  # depth at which a part was called first
        self._depth_hooks = [
            (m, NoticedHook(self._count_depth)) for m in model.modules() if is_kind(m, "parametric")
        ]
        self._by_hand: bool | None = None  # whether no optimiser changes the weights; not known yet
        self._in_step = False  # an optimiser's step has begun
        # Weights are measured before the optimiser's step, not in the forward: all at once, when its memory is free
        # again. In between a layer's convolutions every call would find its code gone from the CPU's caches.
        self._before_step = BeforeStep(model, self._measure_weights)
        if any(not listener.needed for tap in self.sites for listener in tap.all):
            self._before_step.listen()
        self._trained: set[tuple[str, int]] = set()  # places that a forward with gradients gave
        self._handles: dict[Hook, torch.utils.hooks.RemovableHandle] = {}
        self._gate = Gate(self.compiled.pass_gate)
        self._resting: list[Absent] = []  # hooks of graphs, while nothing is measured
        self._hidden: list[Absent] = []  # hooks, while a graph without gradients is traced
        self._active: frozenset[str] = frozenset()
        self.idle = True  # nothing is measured in this step

    def install(self, probes: Collection[str]) -> None:
        """Measure `probes` from now on: put in the hooks that they need, take out the others."""
        active = frozenset(probes)
        # All ranks gather sharded weights, and on each of them other probes may be switched off.
        if self.disabled and not is_sharded(self.model, recurse=True):
            active -= self.disabled
        self.compiled.listen()
        if active == self._active:
            return
        self._active, self.idle = active, not active
        for tap in self.sites:
            tap.activate(active)
        self.compiled.begin(active)
        if not self.compiled.traced:
            self._put_in(active)
        elif active:
            self._wake()
        else:
            self._rest()

    def expect_trace(self) -> None:
        """A graph is going to be traced, perhaps of this model: put in the hooks of all probes, or the gates.

        Without gradients none of them, so that one graph serves all evaluations.
        """
        if not torch.is_grad_enabled():
            self._hidden = take_out(self._handles.values())
        elif not self.compiled.traced:
            self._put_in({p.name for tap in self.sites for p in tap.site.probes}, tracing=True)
            if not self._active:
                self._rest()

    def trace_ended(self) -> None:
        """The graph is there; if it is one of this model's, the hooks stay, which it is guarded by."""
        if self._hidden:
            put_back(self._hidden)
            self._hidden = []
        elif self.compiled.traced:
            return
        elif any(hook.traced for hook in (self._gate, *self._handles)):
            self.compiled.traced = True
        else:
            self._put_in(self._active)

    def remove(self) -> None:
        """Take out every hook; gradients that are still to come are ignored."""
        self._active, self.idle = frozenset(), True
        self.compiled.close()
        self._before_step.remove()
        self._put_in(())
        for tap in self.sites:
            tap.activate(())
            tap.forget_leaves()

    def finish_step(self) -> None:
        """Measure what the optimiser's step changed, and forget the calls of this step."""
        self.compiled.finish_step()
        if self._active and not self._in_step and not self.stepping:
            # The step was skipped, or the weights are changed by hand although there is an optimiser.
            self._by_hand = True
            for tap in self.sites:
                tap.measure_weight_if_run()
        self._in_step = False
        for tap in self.sites:
            tap.finish_step()
        self.depth = 0

    def stop_discovering(self) -> None:
        """The places are known: count depths no more, and take out the hooks that only looked for places."""
        if not self.discovering:
            return
        self.discovering = False
        self._parts_alone = bool(self._begun)
        for tap in self.sites:
            tap.activate(self._active)
        if not self.compiled.traced:
            self._put_in(self._active)

    @property
    def stepping(self) -> bool:
        """Whether weights may change without another word: no optimiser has them, or its step runs the forward."""
        if self._by_hand is None:
            self._by_hand = not has_optimizer(self.model)
        return self._by_hand or self._in_step

    def is_active(self, probe: str) -> bool:
        """Whether the probe is measured in this step."""
        return probe in self._active and probe not in self.disabled

    def expect_parts(self) -> None:
        """A site is called outside the model's forward, so a part is called by itself: notice its begin."""
        if not self._parts_alone:
            self._parts_alone = True
            if not self.compiled.traced:
                self._put_in(self._active)

    def visit(self, site: str, call: int, input_shape: str, output_shape: str) -> None:
        """Note where in the network a call is (first observed step only)."""
        if self.discovering:
            if self.origin == TRAINING:
                self._trained.add((site, call))
            elif (site, call) in self._trained:
                return  # an evaluation has other batches than those that are measured
            first = self.places.get((site, call), Place(len(self.places), 0, "", ""))
            # A network may leave layers out in some steps: the deepest that a call was is where it belongs.
            depth = max(first.depth, self.depth)
            self.places[site, call] = Place(first.order, depth, input_shape, output_shape)

    def visit_rest(self, calls: Collection[tuple[str, int]]) -> None:
        """Give the calls that no trace saw, as blocks that share one graph, a place by the order of the modules."""
        if not self.discovering or self.places.keys() >= set(calls):
            return
        depths, depth = {}, 0
        parametric = {m for m, _ in self._depth_hooks}
        for module in self.model.modules():
            depth += module in parametric
            depths[module] = depth
        for order, tap in enumerate(self.sites):
            here = [c for c in (*self.places, *calls) if c[0] == tap.site.name]
            for call in dict.fromkeys(here):
                shapes = self.places.get(call, Place(0, 0, "", ""))[2:]
                self.places[call] = Place(order, depths[tap.site.module], *shapes)

    def _measure_weights(self) -> None:
        self._by_hand = False
        # A step in which nothing is measured is not finished here.
        self._in_step = bool(self._active)
        try:
            for tap in self.sites if self._active else ():
                tap.measure_weight_if_run()
        except Exception as error:  # the training goes on
            self.receiver.broken(error)

    def _rest(self) -> None:
        """Leave nothing but the gates at the sites."""
        if not self._resting:
            self._resting = take_out(self._handles.values())
            sites: set[Hook] = {tap.after_hook for tap in self.sites}
            gates = (a._replace(hook=self._gate) for a in self._resting if a.hook in sites)
            put_back(gate._replace(flags=()) for gate in gates)

    def _wake(self) -> None:
        """Put all hooks back."""
        put_back(self._hidden)
        put_back(self._resting)
        self._hidden, self._resting = [], []

    def _put_in(self, probes: Collection[str], tracing: bool = False) -> None:
        self._wake()
        wanted: dict[Hook, Callable[[], torch.utils.hooks.RemovableHandle]] = {}
        if probes:
            wanted[self._root] = lambda: self.model.register_forward_pre_hook(self._root)
            wanted[self._root_ends] = lambda: self.model.register_forward_hook(
                self._root_ends, always_call=True
            )
            for m, h in self._part_hooks if self._parts_alone else ():
                wanted[h] = lambda m=m, h=h: m.register_forward_pre_hook(h)  # type: ignore[misc]  # bound now
            if self.discovering:
                for m, h in self._depth_hooks:
                    wanted[h] = lambda m=m, h=h: m.register_forward_hook(h)  # type: ignore[misc]  # bound now
        for tap in self.sites:
            if tap.needed(probes):
                if tap.both_ends or tracing:
                    wanted[tap.before_hook] = tap.put_in_before
                wanted[tap.after_hook] = tap.put_in_after
        for hook in [h for h in self._handles if h not in wanted]:
            self._handles.pop(hook).remove()
        for hook, put_in in wanted.items():
            if hook not in self._handles:
                self._handles[hook] = put_in()

    def _forward_begins(self, *_: Any) -> None:
        if backward_pass() != -1:
            return
        self.inside = True
        self._begin()
        self.depth = 0
        self.compiled.numbering.restart()
        for tap in self.sites:
            tap.begin_forward()

    def _begin(self) -> None:
        self.origin = TRAINING if torch.is_grad_enabled() else EVALUATION
        self.idle = not self._active or is_traced()

    def _forward_ends(self, *_: Any) -> None:
        if backward_pass() == -1:
            self.inside = False
            self.idle = not self._active  # if this was a trace, the step is measured all the same

    def _part_begins(self, prefix: str, *_: Any) -> None:
        """A part of the model is called by itself, not by the model's forward: that is a forward of the part."""
        if self.inside or backward_pass() != -1:
            return
        self._begin()
        self.depth = self._begun.setdefault(prefix, self.depth)
        for tap in self.sites:
            if f"{tap.site.name}.".startswith(prefix):
                tap.begin_forward()

    def _count_depth(self, *_: Any) -> None:
        if backward_pass() == -1:
            self.depth += 1


def _parts(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules that are called first when the model's own forward is not: children, through bare containers."""
    for name, child in module.named_children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from _parts(child, f"{prefix}{name}.")
        elif not isinstance(child, torch.jit.ScriptModule):
            yield prefix + name, child
