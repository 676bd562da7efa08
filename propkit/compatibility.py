"""`compatibility`: which probes will record what on a model, and why others will not."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from propkit.blocks import find_blocks
from propkit.diagnosis.compatibility_report import NO, PARTLY, YES, Compatibility, SiteReport
from propkit.diagnosis.inspection import (
    NOTHING_ARRIVED,
    Facts,
    Inspector,
    peculiarities,
    why_missing,
)
from propkit.diagnosis.one_pass import bare_model, copied, tapped
from propkit.hooks.signals import tensors_in
from propkit.hooks.taps import Key
from propkit.probe import Measurement, Probe
from propkit.registry import find_probes
from propkit.sites import ROOT, Site, find_sites
from propkit.untouched import differentiate

_COMPILED = "it is compiled already, so hooks put in now would not run: attach before torch.compile"


def compatibility(
    model: nn.Module,
    *inputs: Any,
    probes: Iterable[str | Probe] | str | Probe | None = None,
    include: str | None = None,
    exclude: str | None = None,
    blocks: str | None = None,
    **keywords: Any,
) -> Compatibility:
    """Say what `propkit.attach` would record on `model`, and why it would not record the rest.

    Runs the model forward on a batch, and backward from the sum of all that it returns, with the hooks that `attach`
    uses. The model is left as it was, as by `propkit.measure`.

    >>> import torch, propkit
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> _ = model[0].requires_grad_(False)
    >>> report = propkit.compatibility(model, torch.ones(5, 4), probes=["error_moment", "weight"])
    >>> report.problems[0].site, report.problems[0].probes
    ('0', ('error_moment',))
    >>> report.problems[0].reason
    'its output needs no gradient: it is frozen, and so is everything before it'

    Args:
        model: Any module.
        *inputs: What it takes.
        probes: Names, or functions decorated with `propkit.probe`; the default ones of `attach` by default.
        include: As in `propkit.attach`.
        exclude: As in `propkit.attach`.
        blocks: As in `propkit.attach`.
        **keywords: Further arguments of the model, by name.

    Raises:
        TypeError: `model` is no module.
        ValueError: A pattern matches no module, a probe is unknown, or nothing can be observed.
    """
    bare = bare_model(model, "compatibility")
    found = find_probes(probes)
    sites, remarks = find_sites(
        bare, found, include, exclude, find_blocks(bare) if blocks is None else blocks
    )
    remarks = [r for r in remarks if "TorchScript" not in r]  # such modules have rows of their own
    arrivals = _Arrivals()
    with tapped(bare, sites, arrivals, [p.name for p in found]) as taps:
        inspector = Inspector([(s.name, s.module) for s in sites])
        try:
            args, kwargs = copied((inputs, keywords))
            output = bare(*args, **kwargs)
            inspector.forward_is_over()
            failure = _backward(output, bare)
        finally:
            inspector.remove()
    remarks += [failure] if failure else []
    remarks += [f"a fault in propkit: {error!r}" for error in arrivals.errors]
    first = {site: place for (site, call), place in taps.places.items() if call == 0}
    ran = sorted((s for s in sites if s.name in first), key=lambda s: first[s.name].order)
    shared = _shared_weights(sites)
    rows = [
        _report(
            s,
            inspector.facts[s.name],
            first[s.name].depth if s.name in first else 0,
            arrivals,
            shared.get(s.name, []),
            failure,
        )
        for s in (*ran, *(s for s in sites if s.name not in first))
    ]
    names = [p.name for p in found]
    for name, module, why in _opaque(model):
        kind = str(getattr(module, "original_name", type(module).__name__))
        no, reasons = dict.fromkeys(names, NO), dict.fromkeys(names, why)
        rows.append(SiteReport(name, kind, 0, 0, no, reasons, ()))
    return Compatibility(type(bare).__name__, names, rows, remarks)


class _Arrivals:
    """Takes note of which functions of which probes had all their signals, and of failures."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, str, int]] = set()
        self.variables: dict[int, dict[str, None]] = {}  # by measurement
        self.faults: dict[str, str] = {}
        self.errors: list[Exception] = []

    def receive(
        self,
        key: Key,
        measurement: Measurement,
        value: float | torch.Tensor,  # noqa: ARG002 - the signature of `propkit.hooks.taps.Receiver`
        weight: float | torch.Tensor,  # noqa: ARG002 - the receiver's signature
        origin: int,  # noqa: ARG002
    ) -> None:
        self.seen.add((key.site, key.probe, id(measurement)))
        self.variables.setdefault(id(measurement), {})[key.variable] = None

    def names(self, measurement: Measurement) -> list[str]:
        """The variables of a function: those that came from other sites, else what it declares."""
        declared = measurement.units if isinstance(measurement.units, Mapping) else ()
        name = getattr(measurement.function, "__name__", "values")
        return [*self.variables.get(id(measurement), declared)] or [name]

    def loss_scale(self) -> torch.Tensor | None:
        return None

    def fault(self, probe: str, error: Exception) -> None:
        self.faults[probe] = f"the probe failed: {type(error).__name__}: {error}"

    def broken(self, error: Exception) -> None:
        self.errors.append(error)


def _backward(output: Any, model: nn.Module) -> str:
    """Run the backward pass from the sum of everything that needs a gradient; why that was impossible, or empty."""
    total: torch.Tensor | None = None
    for tensor in tensors_in(output):
        if tensor.requires_grad:
            part = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).sum()
            total = part if total is None else total + part.to(total.device)
    if total is None:
        return "there is no backward pass: nothing that the model returns needs a gradient"
    try:
        differentiate(total, model)
    except Exception as error:  # a report on what does not work
        return f"the backward pass failed: {type(error).__name__}: {error}"
    return ""


def _report(
    site: Site, facts: Facts, depth: int, arrivals: _Arrivals, shared: list[str], failure: str
) -> SiteReport:
    status, reasons, lacking = {}, {}, {}
    for p in site.probes:
        # What an optimiser's step changes is not there in a single pass.
        measurements = [m for m in p.measurements if "update" not in m.signals]
        missing = [m for m in measurements if (site.name, p.name, id(m)) not in arrivals.seen]
        main_is_missing = any(m is measurements[0] for m in missing)
        status[p.name] = YES if not missing else NO if main_is_missing else PARTLY
        if missing:
            why = arrivals.faults.get(p.name) or _first_reason(missing, facts)
            reasons[p.name] = failure if failure and why == NOTHING_ARRIVED else why
        if status[p.name] == PARTLY:
            lacking[p.name] = tuple(v for m in missing for v in arrivals.names(m))
    remarks = peculiarities(facts)
    if shared:
        remarks.append(f"shares its weight with {', '.join(shared)}")
    kind = type(site.module).__name__
    return SiteReport(site.name, kind, depth, facts.calls, status, reasons, tuple(remarks), lacking)


def _first_reason(missing: list[Measurement], facts: Facts) -> str:
    """Why the functions were not called: the first of their signals that cannot have arrived."""
    order = ("weight", "input", "output", "grad_output", "grad_input")
    signals = {s for m in missing for s in m.signals}
    return next(
        (why for s in order if s in signals and (why := why_missing(facts, s))),
        "its signals did not arrive together",
    )


def _shared_weights(sites: list[Site]) -> dict[str, list[str]]:
    """Site -> the others that hold the same parameter."""
    owners: dict[int, list[str]] = {}
    for site in sites:
        weight = site.module._parameters.get("weight")
        if weight is not None and weight.ndim >= 2:
            owners.setdefault(id(weight), []).append(site.name)
    groups = [names for names in owners.values() if len(names) > 1]
    return {n: [o for o in names if o != n] for names in groups for n in names}


def _opaque(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """The outermost modules whose hooks would not run, and why."""
    inside: list[nn.Module] = []
    for name, module in model.named_modules():
        scripted = isinstance(module, torch.jit.ScriptModule)
        compiled = hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None)
        if (scripted or compiled) and not any(module is m for m in inside):
            yield name or ROOT, module, why_missing(Facts(module), "") if scripted else _COMPILED
            inside.extend(module.modules())
