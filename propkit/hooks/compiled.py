"""Recording from models that `torch.compile` compiles: everything outside the graphs.

A graph keeps the hooks that were there when it was traced; hooks that come later never run in it. So the hooks go in
when the compiler says that it begins (`Compiled.listen`) and, if the trace went through them, they are there on every
sampled step until the recorder is detached. There are two graphs then, one for sampled steps and one without anything
of propkit's for the others, on which `propkit.hooks.gates` are in their place. `SiteHook.variant` selects among graphs
for several sets of probes.

Left out, and said where it matters: forwards with gradients disabled (evaluation keeps its one graph), functions that
need the gradients of both ends together or have more than one number as value, modules inside `torch.cond` and the
like.
"""

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from propkit.hooks.before_step import BeforeStep
from propkit.hooks.buffers import Buffers
from propkit.hooks.cache import GraphCache
from propkit.hooks.gates import Gate
from propkit.hooks.hook import Hook, NoticedHook
from propkit.hooks.numbering import Numbering
from propkit.hooks.signals import hand_on, transformed
from propkit.hooks.traceable import check_traceable, operator_around
from propkit.hooks.traced import SiteHook
from propkit.hooks.values import GRADIENTS, OF_A_CALL, TRAINING, Key, end_of
from propkit.notices import say

if TYPE_CHECKING:
    from propkit.hooks.taps import Taps

T = TypeVar("T")

_VARIANTS = 2
"""Sets of probes that get a graph of their own: the compiler gives up after eight graphs of one function."""
_GRADIENT_HOOKS = importlib.util.find_spec("torch._higher_order_ops.register_hook") is not None
"""Whether this version of PyTorch compiles hooks on the gradients of intermediate tensors."""


class Compiled:
    """The compiled graphs of one recorder's model.

    Attributes:
        traced: Whether a graph with the recorder's hooks exists, so that they have to stay.
        buffers: What the graphs write to.
        left_out: Sites in a place where no graph can hold a measurement.
    """

    def __init__(self, taps: "Taps") -> None:
        self.traced = False
        self.left_out: set[str] = set()
        self.buffers = Buffers()
        self.numbering = Numbering()
        self._taps = taps
        self._variants: list[frozenset[str]] = []
        self._verdicts: dict[tuple[int, type, int], bool] = {}
        self._measures = False  # a graph does
        self._before_step = BeforeStep(taps.model, self._about_to_change, gradients=True)
        self._ran: set[tuple[str, int]] = set()  # in this step, as far as it was asked
        self._weighed = False  # in this step
        self._told = False
        self._fault: Exception | None = None
        self._marked: dict[nn.Module, Any] = {}
        self._operators: set[str] = set()
        self._unsaid: list[str] = []
        self._cache = GraphCache(self._unsaid)
        # What they call must not be compiled itself, in the middle of a compilation.
        self._begins = torch.compiler.disable(self._compiling)
        self._ends = torch.compiler.disable(self._compiled)

    # -- steps ----------------------------------------------------------------------------------------------------

    def listen(self) -> None:
        """Be told before anything is traced."""
        for function in (hand_on, *(k.__call__ for k in (Hook, NoticedHook, SiteHook, Gate))):
            # Traced in a graph, but no graph of its own: between graphs they are called as in eager PyTorch.
            torch._dynamo.eval_frame.skip_code(function.__code__)
        callbacks = torch._dynamo.callback.callback_handler
        if self._begins not in callbacks.start_callbacks:
            callbacks.start_callbacks.append(self._begins)
            callbacks.end_callbacks.append(self._ends)
            if torch._dynamo.convert_frame.input_codes.seen:
                self._mark()

    def begin(self, active: frozenset[str]) -> None:
        """Measure these probes in the steps that follow."""
        if not self._measures:
            self._variants.clear()
        every = frozenset(name for hook in self.buffers.hooks for name, _ in hook.here)
        names = active & every
        if names and names not in self._variants:
            if len(self._variants) < _VARIANTS:
                self._variants.append(names)
            else:
                names = every
        variant = ",".join(sorted(names))
        for hook in self.buffers.hooks:
            hook.variant = variant
        if names:  # a backward pass in an unsampled step may have added something
            self.guarded(self.buffers.clear, None)

    def finish_step(self) -> None:
        """Hand the values of the step on."""
        self.numbering.restart()
        if self._measures and not self._taps.idle:
            self.guarded(self._deliver, None)
        self._weighed = False
        while self._unsaid:
            say(self._unsaid.pop(0))
        if self._fault is not None:
            fault, self._fault = self._fault, None
            self._taps.receiver.broken(fault)

    def close(self) -> None:
        """Listen no more; graphs that exist measure nothing."""
        callbacks = torch._dynamo.callback.callback_handler
        if self._begins in callbacks.start_callbacks:
            callbacks.start_callbacks.remove(self._begins)
            callbacks.end_callbacks.remove(self._ends)
        self._before_step.remove()
        for module, forward in self._marked.items():
            if module.__dict__.get("forward") is forward:
                del module.__dict__["forward"]
        self._marked.clear()
        self.traced = self._measures = False
        for hook in self.buffers.hooks:
            hook.variant = ""
        self.guarded(self._cache.make_room, None)

    def guarded(self, action: Callable[[], T], otherwise: T) -> T:
        """Keep propkit's own faults from the training."""
        try:
            return action()
        except Exception as error:
            self._taps.receiver.broken(error)
            return otherwise

    # -- in the middle of a trace ---------------------------------------------------------------------------------

    def in_trace(self, action: Callable[[], T], otherwise: T) -> T:
        """Keep propkit's own faults until the step is over: hooks must not be taken out during a trace."""
        try:
            return action()
        except Exception as error:
            self._fault = self._fault or error
            return otherwise

    def notice(self, hook: SiteHook) -> bool:
        """A trace goes through a hook; whether a measurement is possible there."""
        operator = operator_around()
        if operator:
            self.left_out.add(hook.site.name)
            if operator not in self._operators:
                self._operators.add(operator)
                self._unsaid.append(
                    f"nothing can be measured inside {operator}: {hook.site.name} and what else runs there is left out"
                )
            return False
        hook.traced = True
        return True

    def pass_gate(self) -> bool:
        """A trace goes through a site on a step in which nothing is measured; whether its graph could measure."""
        self.in_trace(self._cache.note, None)
        return not self.in_trace(operator_around, "")

    def arrive(self, hook: SiteHook, shape: str) -> int:
        """A traced call reaches one end of a site: its number in the forward, -1 in a `torch.func` transform."""
        if transformed() is not None:
            self._taps.skipped_transforms += 1
            return -1
        if not self._measures:
            self._measures = True
            self._before_step.listen()
            self._refuse_scattered()
        self._cache.note()
        self._taps.depth = self.numbering.follow(self._taps.depth)
        if hook.end == "input":
            return self.numbering.enter(hook.site.name, shape)
        number, received = self.numbering.leave(hook.site.name)
        self._taps.visit(hook.site.name, number, received, shape)
        return number

    def traceable(self, hook: SiteHook, k: int, ndim: int) -> bool:
        """Whether a measurement may go into the graph; a probe that may not is switched off, and it is said."""
        probe, m = hook.here[k]
        if probe in self._taps.disabled:
            return False
        if "weight" in m.signals and not hook.weight_attribute():
            self._switch_off(probe, NotImplementedError("in a graph it needs a plain weight"))
            return False
        if GRADIENTS.intersection(m.signals) and not _GRADIENT_HOOKS:
            why = f"PyTorch {torch.__version__} does not compile hooks on gradients"
            self._switch_off(probe, NotImplementedError(why))
            return False
        if m.function.__module__.startswith("propkit.probes."):
            return True
        case = id(m), type(hook.site.module), ndim
        if case not in self._verdicts:
            try:
                check_traceable(m, hook.site.module, ndim)
                self._verdicts[case] = True
            except Exception as error:  # whatever a probe does, training goes on
                self._verdicts[case] = False
                why = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
                self._switch_off(probe, TypeError(f"not possible in a compiled graph ({why})"))
        return self._verdicts[case]

    # -- inside ---------------------------------------------------------------------------------------------------

    def _compiling(self, *_: Any) -> None:
        self._mark()
        self.numbering.attempt(self._graphs(), self._taps.depth)
        self.guarded(self._taps.expect_trace, None)

    def _compiled(self, *_: Any) -> None:
        self._taps.depth = self.numbering.attempted(self._graphs(), self._taps.depth)
        self.guarded(self._taps.trace_ended, None)

    def _graphs(self) -> int:
        """Number of graphs that the compiler has made in this process."""
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    def _mark(self) -> None:
        """Keep graphs that were made for other models of the same classes, without hooks, from being used for this one.

        A graph is not guarded by the absence of hooks, but by that of a ``forward`` in the module's own dictionary.
        """
        for tap in self._taps.sites:
            module = tap.site.module
            if "forward" not in module.__dict__:
                self._marked[module] = module.__dict__["forward"] = module.forward

    def _switch_off(self, probe: str, error: Exception) -> None:
        if probe not in self._taps.disabled:
            self._taps.disabled.add(probe)
            self._taps.receiver.fault(probe, error)

    def _refuse_scattered(self) -> None:
        """Switch off the probes whose signals no single place in a graph has."""
        for tap in self._taps.sites:
            for p, m in tap.here:
                if OF_A_CALL.intersection(m.signals) and not end_of(m, tap.site.module):
                    why = f"in a compiled graph {', '.join(m.signals)} are not there together"
                    if m.dims:
                        why = "in a compiled graph there is no room for values with a dimension of their own"
                    self._switch_off(p.name, NotImplementedError(why))

    def _about_to_change(self) -> None:
        if not self._taps.idle:
            self.guarded(self._weigh, None)

    def _weigh(self) -> None:
        """Measure the weights that a step is about to change, of the sites that ran."""
        self._weighed = True
        self._ran |= self.buffers.ran()
        measuring = any(hook.variant for hook in self.buffers.hooks)
        names = {name for name, _ in self._ran} if measuring else self.numbering.sites
        for tap in self._taps.sites:
            if tap.site.name in names:
                tap.measure_weight()

    def _deliver(self) -> None:
        if not self._weighed and self._before_step.found:
            self._weigh()  # a scaler has skipped the optimiser's step
        ran = self._ran | self.buffers.ran()
        self._ran = set()
        self._taps.visit_rest(ran)
        entries = [e for e in self.buffers.entries if (e.hook.site.name, e.number) in ran]
        gradients = any(GRADIENTS.intersection(e.measurement.signals) for e in entries)
        scale = self._taps.receiver.loss_scale() if gradients else None
        for e, variable, value, weight in self.buffers.take(entries, scale):
            probe, m = e.hook.here[e.k]
            if scale is not None and m.degree is None and GRADIENTS.intersection(m.signals):
                why = "in a compiled graph a function of a scaled gradient has to say its `degree`"
                self._switch_off(probe, ValueError(why))
            elif self._taps.is_active(probe):
                key = Key(probe, variable, e.hook.site.name, e.number)
                self._taps.receiver.receive(key, m, value, weight, TRAINING)
        if not self._weighed and not self._told:
            self._tell_about_weights()

    def _tell_about_weights(self) -> None:
        lost = {
            p.name
            for tap in self._taps.sites
            for p, m in tap.here
            if self._taps.is_active(p.name) and not OF_A_CALL.intersection(m.signals)
        }
        if lost:
            self._told = True
            say(
                f"{', '.join(sorted(lost))}: the weights of a compiled model are measured when a torch.optim "
                "optimiser steps, or when a parameter gets its gradient, and neither happened, so they are left out"
            )
