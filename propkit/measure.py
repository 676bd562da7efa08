"""`measure`: the one-shot diagnosis of a model on a batch, before any training."""

import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from propkit.blocks import find_blocks
from propkit.diagnosis.batch import check_batch, not_finite
from propkit.diagnosis.diagnosis import Diagnosis
from propkit.diagnosis.one_pass import Collector, bare_model, copied, layers, tapped
from propkit.diagnosis.verdict import Thresholds, checked
from propkit.notices import say
from propkit.probe import Probe
from propkit.recording.layout import Layout
from propkit.recording.provenance import describe_run
from propkit.registry import DEFAULT_PROBES, find_probes
from propkit.sites import find_sites
from propkit.store.memory import MemoryWriter
from propkit.untouched import differentiate

Loss = Callable[..., torch.Tensor]


def measure(
    model: torch.nn.Module,
    *inputs: Any,
    loss: Loss | None = None,
    probes: Iterable[str | Probe] | str | Probe | None = None,
    thresholds: Thresholds | None = None,
    include: str | None = None,
    exclude: str | None = None,
    blocks: str | None = None,
    label: str | None = None,
    **keywords: Any,
) -> Diagnosis:
    """Diagnose `model` on one batch: how signals and errors propagate, layer by layer, and whether that is healthy.

    The model runs forward once and, where there is a loss, backward once, in the mode that it is in (training or
    evaluation). It is left bit for bit as it was: parameters, gradients, buffers, mode, hooks, and the random states
    of torch, Python and NumPy. Copies of the inputs are used. Attached recorders do not notice; compiled parts run
    uncompiled.

    >>> import torch, propkit
    >>> import torch.nn.functional as F
    >>> model = torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(4)))
    >>> for layer in model:
    ...     _ = torch.nn.init.orthogonal_(layer.weight)
    >>> x, y = torch.randn(32, 16), torch.arange(32) % 16
    >>> diagnosis = propkit.measure(model, x, y, loss=F.cross_entropy)
    >>> diagnosis.verdict
    'healthy: nothing found at 4 layers'
    >>> diagnosis["error_moment"]["output"].sizes
    Frozen({'step': 1, 'site': 4})
    >>> with torch.no_grad():
    ...     _ = model[3].weight.mul_(100)
    >>> propkit.measure(model, x, y, loss=F.cross_entropy).table["verdict"].values.tolist()
    ['exploding', 'exploding', 'exploding', 'healthy']

    Args:
        model: Any module.
        *inputs: What the model takes, and the target after that where `loss` takes two arguments.
        loss: Function of the model's output and the target, ``loss(model(*inputs[:-1]), inputs[-1])``; or of the output
            alone, ``loss(model(*inputs))``: what counts is how many of its parameters have no default. Without it, the
            output's ``loss`` is used if it has one (as those of transformers' models do that are given labels), or
            else the forward pass alone is measured.
        probes: Names, or functions decorated with `propkit.probe`; by default the default ones of `propkit.attach` and
            ``representation``.
        thresholds: From where on a layer is called unhealthy: a `propkit.diagnosis.verdict.Thresholds`, of which each
            value has a default, so ``Thresholds(dead=0.7)`` changes one. ``diagnosis.judged_by(Thresholds(...))``
            judges what was measured by others.
        include: As in `propkit.attach`.
        exclude: As in `propkit.attach`.
        blocks: As in `propkit.attach`.
        label: Short name for legends.
        **keywords: Further arguments of the model, by name.

    Returns:
        The diagnosis: a table when it is shown, datasets by the probes' names, verdicts.

    Raises:
        TypeError: `model` is no module, `thresholds` are no `Thresholds`, or `loss` gives no scalar tensor.
        ValueError: There is no target for the loss, the batch is empty, a pattern matches no module, a probe is
            unknown, or the model cannot be observed: it is on the meta device, for one.
    """
    thresholds = checked(thresholds)
    model = bare_model(model, "measure")
    _check_values(model)
    inputs, target = _split(inputs, loss)
    check_batch(inputs, keywords)
    strange = not_finite(inputs, target, keywords)
    found = find_probes([*DEFAULT_PROBES, "representation"] if probes is None else probes)
    sites, notes = find_sites(
        model, found, include, exclude, find_blocks(model) if blocks is None else blocks
    )
    if probes is not None:
        for note in notes:
            say(note)
    layout = Layout(found, sites)
    collector = Collector(layout)
    with tapped(model, sites, collector, [p.name for p in found]) as taps:
        args, target, kwargs = copied((inputs, target, keywords))
        value = _loss_of(model(*args, **kwargs), loss, target)
        if value is None:
            notes.append("no loss was given, so errors and gradients are not measured")
        elif value.requires_grad:
            differentiate(value, model)
        else:
            some = next(model.parameters(), None) is not None
            why = "all parameters are frozen or detached" if some else "the model has no parameters"
            notes.append(f"the loss requires no gradient: {why}")
    if strange:
        notes.append(f"NaN or infinite values were given to the model: {strange}")
    attributes = describe_run(model, label, None, None)
    number = None if value is None else float(value.detach())
    attributes |= {"notes": notes, "training": model.training, "loss": number}
    if strange:
        attributes["input_not_finite"] = strange
    writer = MemoryWriter(attributes)
    collector.write(writer, taps.places)
    from propkit.store.run import Run

    return Diagnosis(
        Run.from_memory(writer),
        layers(taps.places, sites),
        collector.measured,
        thresholds,
        number,
    )


def _check_values(model: torch.nn.Module) -> None:
    named = itertools.chain(model.named_parameters(), model.named_buffers())
    meta = next((name for name, tensor in named if tensor.is_meta), None)
    if meta is not None:
        raise ValueError(
            f"measure: {meta!r} is on the meta device, so it has no values to measure; materialise the model with "
            "model.to_empty(device='cpu') and initialise it, or load its weights"
        )


def _split(inputs: tuple[Any, ...], loss: Loss | None) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What the model takes, and what the loss takes after the output."""
    if loss is None:
        return inputs, ()
    if not callable(loss):
        raise TypeError(f"loss: expected a function, found {type(loss).__name__}")
    if _required_parameters(loss) == 1:
        return inputs, ()
    if len(inputs) < 2:
        raise ValueError(
            f"the loss takes the output and a target, so the last input is the target; found {len(inputs)} input(s). "
            "Call measure(model, x, y, loss=...), or give a loss of the output alone: loss=lambda output: ..."
        )
    return inputs[:-1], inputs[-1:]


def _required_parameters(loss: Loss) -> int:
    """How many positional parameters have no default; 2 where it cannot be known."""
    function = loss.forward if isinstance(loss, torch.nn.Module) else loss
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # written in C
        return 2
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters if p.kind in kinds and p.default is p.empty]
    return len(required) or 2


def _loss_of(output: Any, loss: Loss | None, target: tuple[Any, ...]) -> torch.Tensor | None:
    if loss is not None:
        value = loss(output, *target)
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            found = (
                f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
            )
            raise TypeError(f"loss: expected a tensor of one element, found {found}")
        return value.reshape(())
    inner: Any = (
        output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    )
    return inner.reshape(()) if isinstance(inner, torch.Tensor) and inner.numel() == 1 else None
