"""One pass of a model under observation, from its hooks to a run in memory; the model stays as it was."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as pytree

from propkit.diagnosis.judging import observations
from propkit.hooks.taps import Key, Place, Receiver, Taps
from propkit.notices import say
from propkit.probe import Measurement
from propkit.recording.flush import append_rows
from propkit.recording.layout import Layout
from propkit.recording.rows import Observation, make_row, own_copy, rows_to_host
from propkit.sites import Site
from propkit.store.memory import MemoryWriter
from propkit.untouched import untouched


class Layer(NamedTuple):
    """One call of a site, as a table shows it.

    Attributes:
        site: Its name, with the number of the call after the first.
        depth: Number of parametric layers that ran by then.
        type: The module's class.
        shape: Shape of the tensor that it returned; () where it returned none.
        observations: Samples times positions that the probe `activation` sees of one unit.
    """

    site: str
    depth: int
    type: str
    shape: tuple[int, ...]
    observations: int


class Collector:
    """Takes the values of one pass from the hooks.

    Args:
        layout: Numbers the values.

    Attributes:
        faults: Probe -> what went wrong in it.
        measured: (probe, variable, site) of every value, whatever it is.
    """

    def __init__(self, layout: Layout) -> None:
        self.faults: dict[str, str] = {}
        self.measured: set[tuple[str, str, str]] = set()
        self._layout = layout
        self._observed: list[Observation] = []
        self._broken_by: Exception | None = None

    def receive(
        self,
        key: Key,
        measurement: Measurement,
        value: float | torch.Tensor,
        weight: float | torch.Tensor,
        origin: int,
    ) -> None:
        """Keep one value; what an optimiser's step would change is not measured."""
        if "update" not in measurement.signals:
            self.measured.add((key.probe, key.variable, _name(key.site, key.call)))
            length = None
            if isinstance(value, torch.Tensor) and value.ndim:
                length = len(value)
                value = own_copy(value, measurement.dtype_of(key.variable))
            slot = self._layout.slot(key, measurement, length)
            self._observed.append((slot, value, weight, origin))

    def loss_scale(self) -> torch.Tensor | None:
        """The loss is not scaled, whatever scaler the process has."""
        return None

    def fault(self, probe: str, error: Exception) -> None:
        """Note that a probe failed."""
        self.faults[probe] = f"{type(error).__name__}: {error}"
        say(f"probe {probe!r} failed and is left out: {self.faults[probe]}")

    def broken(self, error: Exception) -> None:
        """Keep a fault of propkit's own until the pass is over."""
        self._broken_by = self._broken_by or error

    def write(self, writer: MemoryWriter, places: Mapping[tuple[str, int], Place]) -> None:
        """Write the values as step 0 of a run, which is then complete.

        Raises:
            RuntimeError: The hooks failed.
        """
        if self._broken_by is not None:
            raise RuntimeError(f"a fault in propkit: {self._broken_by!r}") from self._broken_by
        if self._observed:
            row = make_row(0, self._observed)
            for group in self._layout.new_groups(places):
                writer.define(group)
            append_rows(writer, self._layout.plan(), rows_to_host([row]))
        writer.update(faults=self.faults)
        writer.close("complete")


@contextlib.contextmanager
def tapped(
    model: nn.Module, sites: list[Site], receiver: Receiver, probes: list[str]
) -> Iterator[Taps]:
    """Hooks on the model, gradients enabled, and everything as it was at the end (see `untouched`)."""
    taps = Taps(model, sites, receiver)
    # Tensors made in inference mode, the copies of buffers too, cannot take part in a backward pass.
    with torch.inference_mode(False), torch.enable_grad(), untouched(model):
        try:
            taps.install(probes)
            yield taps
            taps.finish_step()
        finally:
            taps.remove()


def layers(places: Mapping[tuple[str, int], Place], sites: list[Site]) -> tuple[Layer, ...]:
    """The calls that were observed, in the order of execution."""
    modules = {s.name: s.module for s in sites}
    found = []
    for (site, call), place in sorted(places.items(), key=lambda item: item[1].order):
        shape = tuple(int(n) for n in place.output_shape.strip("()").split(",") if n.strip())
        module = modules[site]
        seen = observations(shape, isinstance(module, nn.modules.conv._ConvNd))
        found.append(Layer(_name(site, call), place.depth, type(module).__name__, shape, seen))
    return tuple(found)


def _name(site: str, call: int) -> str:
    return f"{site}#{call}" if call else site


def bare_model(model: Any, caller: str) -> nn.Module:
    """The module itself, without the wrappers of ``torch.compile`` and of distributed training.

    Raises:
        TypeError: It is no module.
        ValueError: It runs no Python hooks, or its parameters are not there yet.
    """
    while isinstance(model, DistributedDataParallel) or hasattr(model, "_orig_mod"):
        model = model.module if isinstance(model, DistributedDataParallel) else model._orig_mod
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller}: expected a torch.nn.Module, found {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            f"{caller}: a TorchScript module runs no Python hooks; give the module that was scripted"
        )
    lazy = [n for n, p in model.named_parameters() if nn.parameter.is_lazy(p)]
    if lazy:
        raise ValueError(
            f"{caller}: parameter {lazy[0]!r} gets its shape in the first forward, which cannot be undone; run the "
            "model once on a batch before"
        )
    return model


def copied(inputs: Any) -> Any:
    """The inputs with every tensor copied and cut off from its graph: the model may change them, hooks may stay."""

    def copy(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        twin = value.detach().clone()
        return twin.requires_grad_() if value.requires_grad else twin

    with torch.inference_mode(False):
        return pytree.tree_map(copy, inputs)
