"""One function of a probe at one site: what it waits for, how it is called, where its values go."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from propkit.hooks.values import FORWARD, GRADIENTS, OF_A_CALL, Key, Receiver
from propkit.module_map import module_map
from propkit.probe import Measurement, Probe
from propkit.sites import Site, is_sharded, weight_of


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
        reads_weight: Whether it needs the weight, or its change.
        alone: The one signal that it waits for, ``""`` if there are several or none.
    """

    def __init__(self, probe: Probe, measurement: Measurement, site: Site, taps: Switches) -> None:
        self.probe = probe.name
        self.measurement = measurement
        self.needed = OF_A_CALL.intersection(measurement.signals)
        self.of_forward = self.needed <= FORWARD
        self.of_function = "function" in self.needed
        self.of_update = "update" in measurement.signals
        self.reads_weight = self.of_update or "weight" in measurement.signals
        self.alone = next(iter(self.needed)) if len(self.needed) == 1 else ""
        self._of_module = tuple(s for s in measurement.signals if s in ("module", "weight"))
        self._gradients = tuple(s for s in measurement.signals if s.startswith("grad_"))
        self._site = site
        self._taps = taps
        self._keys: dict[tuple[str, int], Key] = {}
        self._on_host: bool | None = None  # where numbers cost no wait; not known yet
        self._numbers = False  # any of its values may be one
        self._heard: set[tuple[object, ...]] = set()  # in this step, of what is measured once

    def hear(self, signals: Mapping[str, torch.Tensor], call: int, origin: int) -> None:
        """Call the function on the signals and hand its values on; a failing probe is switched off."""
        if self.probe in self._taps.disabled:
            self._take_part(signals)
            return
        if self.measurement.once:
            heard = (call, origin, *(t.shape for t in signals.values()))
            if heard in self._heard:
                self._take_part(signals)
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
        # One frame for the common case: in a real step every line here is fetched from memory anew.
        whole = self._of_module or self.of_function
        arguments = self._arguments(signals) if whole else signals
        if arguments is None:
            return
        m, receiver = self.measurement, self._taps.receiver
        elements = signals[self.alone].numel() if self.alone in signals else _elements(signals)
        scale = receiver.loss_scale() if self._gradients else None
        if scale is not None or _autocasts():
            values = self._without_context(arguments, scale)
        elif torch.is_grad_enabled():
            # `torch.no_grad()` takes longer than some of the functions.
            torch._C._set_grad_enabled(False)
            try:
                values = m.function(**arguments)
            finally:
                torch._C._set_grad_enabled(True)
        else:
            values = m.function(**arguments)
        if not isinstance(values, dict):
            values = {m.function.__name__: values}
        for variable, value in values.items():
            if type(value) is not float or not self._numbers:
                self._check(variable, value, arguments)
            key = self._keys.get((variable, call))
            if key is None:
                key = self._keys[variable, call] = Key(self.probe, variable, self._site.name, call)
            receiver.receive(key, m, value, elements, origin)

    def _take_part(self, signals: Mapping[str, Any]) -> None:
        """Gather a sharded weight without use for it: the function may be called on other ranks, which wait."""
        if (
            "weight" in self._of_module
            and "weight" not in signals
            and is_sharded(self._site.module)
        ):
            weight_of(self._site.module)

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

    def _check(self, variable: str, value: Any, arguments: Mapping[str, Any]) -> None:
        """Refuse a value that is neither a tensor of the right dimensions nor a number that cost no wait.

        Raises:
            TypeError: It is.
        """
        ndim = 1 if variable in self.measurement.dims else 0
        if type(value) is float and not ndim:
            if self._on_host is None:
                self._on_host = all(t.is_cpu for t in arguments.values() if hasattr(t, "is_cpu"))
                self._numbers = self._on_host and not self.measurement.dims
            if self._on_host:
                return
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

    def _without_context(self, arguments: Mapping[str, Any], scale: torch.Tensor | None) -> Any:
        """The function's values, without gradients, autocast and the scale of the loss."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for device in _AUTOCAST:
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            if scale is None:
                return self.measurement.function(**arguments)
            return self._unscaled(dict(arguments), scale)

    def _unscaled(self, arguments: dict[str, Any], scale: torch.Tensor) -> Any:
        """The function's values; gradients of a scaled loss are scaled like it."""
        m = self.measurement
        if m.degree is None:
            for name in self._gradients:
                grad = arguments[name]
                exact = grad.float() if grad.dtype in (torch.float16, torch.bfloat16) else grad
                arguments[name] = exact / scale.to(grad.device)
            return m.function(**arguments)
        values = m.function(**arguments)
        if not isinstance(values, dict):
            return _divide(values, scale, m.degree)
        return {k: _divide(v, scale, m.degree) for k, v in values.items()}


def _divide(value: Any, scale: torch.Tensor, degree: int) -> Any:
    if isinstance(value, torch.Tensor):
        scale = scale.to(value.device, value.dtype)
    elif isinstance(value, float):
        value, scale = torch.tensor(value, dtype=torch.float64), scale.to("cpu", torch.float64)
    return value / scale**degree


_AUTOCAST = ("cpu", "cuda")


def _any_autocast() -> bool:
    return any(map(torch.is_autocast_enabled, _AUTOCAST))


_autocasts: Callable[[], bool] = getattr(torch._C, "_is_any_autocast_enabled", _any_autocast)
"""Whether autocast is on for any device; one call where PyTorch has one."""


def _elements(signals: Mapping[str, Any]) -> int:
    """Number of elements of the first signal that is a tensor of a call; 1 without."""
    return next((t.numel() for n, t in signals.items() if n in FORWARD | GRADIENTS), 1)
