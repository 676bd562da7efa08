"""One function of a probe at one site: what it waits for, how it is called, where its values go."""

import contextlib
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from propkit.hooks.values import FORWARD, GRADIENTS, OF_A_CALL, Key, Receiver
from propkit.module_map import module_map
from propkit.probe import Measurement, Probe
from propkit.sites import Site, weight_of


class Switches(Protocol):
    """What a listener needs of all the hooks (see `propkit.hooks.taps.Taps`)."""

    receiver: Receiver
    disabled: set[str]


class Listener:
    """A function that hears the signals of a site's calls.

    Attributes:
        probe: Name of its probe.
        measurement: The function.
        needed: Signals of a call that it waits for; none for a function of the weight alone.
        of_forward: Whether they are all there when the module returns.
        of_function: Whether it needs the module as a map.
        of_update: Whether it needs the change of the weight in a step.
    """

    def __init__(self, probe: Probe, measurement: Measurement, site: Site, taps: Switches) -> None:
        self.probe = probe.name
        self.measurement = measurement
        self.needed = OF_A_CALL.intersection(measurement.signals)
        self.of_forward = self.needed <= FORWARD
        self.of_function = "function" in self.needed
        self.of_update = "update" in measurement.signals
        self._of_module = tuple(s for s in measurement.signals if s in ("module", "weight"))
        self._gradients = tuple(s for s in measurement.signals if s.startswith("grad_"))
        self._site = site
        self._taps = taps
        self._keys: dict[tuple[str, int], Key] = {}
        self._heard: set[tuple[object, ...]] = set()  # in this step, of what is measured once

    def hear(self, signals: Mapping[str, torch.Tensor], call: int, origin: int) -> None:
        """Call the function on the signals and hand its values on; a failing probe is switched off."""
        if self.probe in self._taps.disabled:
            return
        if self.measurement.once:
            heard = (call, origin, *(t.shape for t in signals.values()))
            if heard in self._heard:
                return
            self._heard.add(heard)
        try:
            self._call(signals, call, origin)
        except Exception as error:  # whatever a probe does, training goes on
            self._taps.disabled.add(self.probe)
            self._taps.receiver.fault(self.probe, error)

    def hear_function(self, args: Any, kwargs: Any, call: int, origin: int) -> None:
        """The same with the module as a map of its input; the module is about to run with these arguments."""
        if self.probe in self._taps.disabled:
            return
        try:
            # Hooks that change the arguments have run by now, so it is the bare forward that is to come.
            module = self._site.module
            with module_map(module, *args, forward=module.forward, **kwargs) as (function, x):
                self._call({"function": function, "input": x}, call, origin)
        except Exception as error:  # whatever a probe does, training goes on
            self._taps.disabled.add(self.probe)
            self._taps.receiver.fault(self.probe, error)

    def forget(self) -> None:
        """The step is over: what is measured once is measured again in the next."""
        self._heard.clear()

    def _call(self, signals: Mapping[str, Any], call: int, origin: int) -> None:
        arguments = self._arguments(signals)
        if arguments is None:
            return
        elements = next((t.numel() for n, t in signals.items() if n in FORWARD | GRADIENTS), 1)
        with _nothing_else():
            values = self._unscaled(arguments)
        if not isinstance(values, dict):
            values = {self.measurement.function.__name__: values}
        for variable, value in values.items():
            self._receive(variable, value, call, elements, origin)

    def _arguments(self, signals: Mapping[str, torch.Tensor]) -> dict[str, Any] | None:
        """The function's arguments; None if the module has no weight."""
        wanted = self.measurement.signals
        arguments: dict[str, Any] = {name: t for name, t in signals.items() if name in wanted}
        for name in self._of_module:
            if name in arguments:
                continue
            if name == "module":
                arguments[name] = self._site.module
            else:
                arguments[name] = weight_of(self._site.module)
                if arguments[name] is None:
                    return None
        return arguments

    def _receive(self, variable: str, value: Any, call: int, elements: int, origin: int) -> None:
        ndim = 1 if variable in self.measurement.dims else 0
        if not isinstance(value, torch.Tensor) or value.ndim != ndim:
            is_tensor = isinstance(value, torch.Tensor)
            found = f"shape {tuple(value.shape)}" if is_tensor else repr(value)
            hint = (
                ""
                if ndim
                else "; a variable with a dimension of its own is named in @probe(dims=...)"
            )
            raise TypeError(
                f"expected a {ndim}-d tensor as value of {variable!r}, found {found}{hint}"
            )
        key = self._keys.get((variable, call))
        if key is None:
            key = self._keys[variable, call] = Key(self.probe, variable, self._site.name, call)
        self._taps.receiver.receive(key, self.measurement, value, elements, origin)

    def _unscaled(self, arguments: dict[str, Any]) -> Any:
        """The function's values, without the scale of the loss (gradients of a scaled loss are scaled like it)."""
        m = self.measurement
        scale = self._taps.receiver.loss_scale() if self._gradients else None
        if scale is None:
            return m.function(**arguments)
        if m.degree is None:
            for name in self._gradients:
                grad = arguments[name]
                exact = grad.float() if grad.dtype in (torch.float16, torch.bfloat16) else grad
                arguments[name] = exact / scale.to(grad.device)
            return m.function(**arguments)
        values = m.function(**arguments)
        if not isinstance(values, dict):
            return values / scale.to(values.device, values.dtype) ** m.degree
        return {k: v / scale.to(v.device, v.dtype) ** m.degree for k, v in values.items()}


def _nothing_else() -> Any:
    """A context without gradients and without autocast; entering one that changes nothing is saved."""
    autocast = [d for d in ("cpu", "cuda") if torch.is_autocast_enabled(d)]
    if not (autocast or torch.is_grad_enabled()):
        return _NOTHING
    stack = contextlib.ExitStack()
    stack.enter_context(torch.no_grad())
    for device in autocast:
        stack.enter_context(torch.autocast(device, enabled=False))
    return stack


_NOTHING = contextlib.nullcontext()
