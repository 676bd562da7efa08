"""What `torch.compile` traces at one end of a site: statistics that add up in small buffers, inside the graph.

Forward statistics go to a buffer, detached. Those of a gradient go to one in a tensor hook, which the compiler
makes part of the backward graph: it sees the whole gradient, of all consumers, as in eager PyTorch. No value leaves the
graph, no Python object changes when it runs, so that there is no graph break. What Python has to know (calls, shapes,
names) it learns while the graph is traced, from the methods marked ``assume_constant_result``: they run once per trace.
"""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import has_static_value

from propkit.hooks.accumulators import fold
from propkit.hooks.hook import Hook, compiler_callback, exporting
from propkit.hooks.signals import first_tensor
from propkit.hooks.values import end_of
from propkit.probe import Measurement
from propkit.sites import Site, is_kind, weight_of

if TYPE_CHECKING:
    from propkit.hooks.compiled import Compiled


class _Unchecked(torch.autograd.Function):
    """Tells the compiler that a buffer may change between a forward and its backward pass.

    What a function keeps on its ``ctx`` without ``save_for_backward`` is used as it then is: two backward passes
    through one graph, and two forwards before a backward, which add to the same buffer, would be refused otherwise.
    The result is not used, so nothing of this is left in the graph.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
        ctx.buffer = buffer
        return x * buffer.sum()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad * ctx.buffer.sum(), None


class SiteHook(Hook):
    """The hook at one end of a site, for eager calls and for graphs.

    Buffers are attributes of their own (``b0_2`` is that of call 0, measurement 2; ``c0`` counts the runs of call 0):
    a graph guards the attributes that it uses and nothing else.

    Args:
        function: What an eager call does.
        end: ``"input"`` (a forward pre-hook) or ``"output"``.
        site: The site.
        owner: Knows everything outside the graph.
    """

    def __init__(
        self, function: Callable[..., None], end: str, site: Site, owner: "Compiled"
    ) -> None:
        super().__init__(function)
        self.end = end
        self.site = site
        self.owner = owner
        self.variant = ""
        """Names of the probes that the graph measures; a graph is guarded by it. Empty on unsampled steps."""
        self.here: list[tuple[str, Measurement]] = [
            (p.name, m)
            for p in site.probes
            for m in p.measurements
            if end_of(m, site.module) == end
        ]
        self.variables: dict[tuple[int, int], tuple[str, ...]] = {}
        """(call, index in `here`) -> names of the values."""

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, *result: Any) -> Any:
        """Eager, traced or, in an export and without gradients, nothing."""
        if not torch.compiler.is_compiling():
            function = self.function if compiler_callback() is None else self.uncompiled
            return function(module, args, kwargs, *result)
        if (
            torch.compiler.is_dynamo_compiling()
            and not exporting()
            and self.notice(torch.is_grad_enabled())
        ):
            return self._trace(module, (args, kwargs), *result)
        return None

    def _trace(self, module: nn.Module, received: Any, *result: Any) -> Any:
        """Measure; returns what replaces the module's arguments or its result, if anything has to."""
        tensor = first_tensor(result if result else received)
        number = self.arrive(_static_shape(tensor))
        if not self.variant or number < 0:
            return None
        if tensor is None:
            return None
        if result:
            self.counter(number, tensor.device.type, tensor.device.index)
            getattr(self, f"c{number}").add_(1)
        replaced = None
        if result and tensor is result[0] and tensor.requires_grad and self.is_view(tensor.ndim):
            # A later change in place would rebuild the history of a view, and the gradient would miss the hook.
            replaced = tensor = tensor.clone()
        signals = {self.end: tensor.detach()}
        if result:
            given = first_tensor(received)
            if given is not None:
                signals["input"] = given.detach()
        chosen = self.variant.split(",")
        later: list[int] = []
        for k, (probe, m) in enumerate(self.here):
            if probe not in chosen or not self.traceable(k, tensor.ndim):
                continue
            if f"grad_{self.end}" in m.signals:
                later.append(k)
            else:
                self._add(number, k, module, signals)
        if later and tensor.requires_grad and tensor.is_leaf:
            # A hook on a leaf would be put in again whenever the graph runs, and stay: it goes on a copy.
            args, kwargs = received
            if result and tensor is result[0]:
                replaced = tensor = tensor.clone()
            elif not result and args and tensor is args[0]:
                tensor = tensor.clone()
                replaced = (tensor, *args[1:]), kwargs
            else:
                return replaced
        if later and tensor.requires_grad:
            self._on_gradient(number, later, module, tensor, signals)
        return replaced

    def _on_gradient(
        self,
        number: int,
        later: list[int],
        module: nn.Module,
        tensor: torch.Tensor,
        signals: dict[str, torch.Tensor],
    ) -> None:
        # A later operation may change a forward tensor in place.
        asked = [s for k in later for s in self.here[k][1].signals]
        kept = {name: t.clone() for name, t in signals.items() if name in asked}

        def arrived(grad: torch.Tensor) -> torch.Tensor:
            for k in later:
                self._add(number, k, module, {**kept, f"grad_{self.end}": grad})
            return grad

        tensor.register_hook(arrived)
        for k in later:
            if self.has_buffer(number, k) and self.may_mark():
                buffer = getattr(self, f"b{number}_{k}")
                _Unchecked.apply(tensor.sum(), buffer)  # type: ignore[no-untyped-call]

    def _add(
        self, number: int, k: int, module: nn.Module, signals: dict[str, torch.Tensor]
    ) -> None:
        m = self.here[k][1]
        arguments: dict[str, Any] = {}
        weighed = None  # a mean is weighted by the elements of the first signal
        for name in m.signals:
            if name == "module":
                arguments[name] = module
            elif name in signals:
                arguments[name] = signals[name].detach()
                weighed = signals[name] if weighed is None else weighed
            elif name == "weight":
                arguments[name] = getattr(module, self.weight_attribute()).detach()
        if weighed is None or len(arguments) < len(m.signals):
            return
        # Not `torch.no_grad()`: at its end gradients would be enabled in the middle of the backward pass, for which
        # some layers (SiLU, group norm) have another formula, of other rounding.
        with torch.autocast(weighed.device.type, enabled=False):
            values = m.function(**arguments)
            if not isinstance(values, dict):
                values = {m.function.__name__: values}
            rules = self.rules(number, k, tuple(values), weighed.device.type, weighed.device.index)
            if rules:
                found = [_detached(value) for value in values.values()]
                buffer: torch.Tensor = getattr(self, f"b{number}_{k}")
                buffer.copy_(fold(buffer, rules.split(","), found, weighed.numel()))

    # -- what runs in the middle of a trace, in plain Python ------------------------------------------------------

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def notice(self, training: bool) -> bool:
        """Note that a graph is traced; whether it may measure."""
        return self.owner.in_trace(lambda: self.owner.notice(self) and training, False)

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def arrive(self, shape: tuple[int, ...] | None) -> int:
        """A call reaches this end: its number in the forward, -1 after a fault of propkit's."""
        text = "" if shape is None else str(shape).replace("-1", "?")
        return self.owner.in_trace(lambda: self.owner.arrive(self, text), -1)

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def traceable(self, k: int, ndim: int) -> bool:
        """Whether measurement `k` can be part of a graph; said once if not."""
        return self.owner.in_trace(lambda: self.owner.traceable(self, k, ndim), False)

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def is_view(self, ndim: int) -> bool:
        """Whether the output may be a view of a tensor that the layer made, as a linear layer's on 3-D input is."""
        layer = self.site.module
        weight = weight_of(layer) if is_kind(layer, "parametric") else None
        return weight is not None and weight.ndim != ndim

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def weight_attribute(self) -> str:
        """Name of the parameter that is the weight as it stands; empty if it is computed from others."""
        weight = weight_of(self.site.module)
        for name, p in self.site.module.named_parameters(recurse=False):
            if weight is not None and p.data_ptr() == weight.data_ptr() and p.shape == weight.shape:
                return name
        return ""

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def has_buffer(self, number: int, k: int) -> bool:
        """Whether the trace has made a buffer for this measurement."""
        return (number, k) in self.variables

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def may_mark(self) -> bool:
        """Whether `_Unchecked` can be traced: the compiler itself does something deprecated there."""
        try:
            with warnings.catch_warnings(record=True):
                torch.autograd.Function()
        except Warning:  # turned into an error by a filter
            return False
        return True

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def rules(
        self, number: int, k: int, names: tuple[str, ...], device: str, index: int | None
    ) -> str:
        """Make sure that there is a buffer for these values; their reductions, separated by commas."""
        buffers, place = self.owner.buffers, _device(device, index)
        return self.owner.in_trace(lambda: buffers.allocate(self, number, k, names, place), "")

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def counter(self, number: int, device: str, index: int | None) -> bool:
        """Make sure that there is a counter of the runs of this call."""
        if not hasattr(self, f"c{number}"):
            self.owner.buffers.count(self, number, _device(device, index))
        return True


def _detached(value: float | torch.Tensor) -> float | torch.Tensor:
    return value.detach() if isinstance(value, torch.Tensor) else value


def _static_shape(tensor: torch.Tensor | None) -> tuple[int, ...] | None:
    """Shape with -1 for what the graph leaves open."""
    if tensor is None:
        return None
    return tuple([d if has_static_value(d) else -1 for d in tensor.shape])


def _device(kind: str, index: int | None) -> torch.device:
    return torch.device(kind) if index is None else torch.device(kind, index)
