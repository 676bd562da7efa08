"""`attach`: put probes on a model."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from propkit.blocks import find_blocks
from propkit.hooks.hook import is_compiled
from propkit.hooks.loss_scale import LossScale
from propkit.hooks.steps import OptimizerSteps
from propkit.hooks.taps import Taps
from propkit.notices import say
from propkit.probe import Probe
from propkit.recording.arguments import check_arguments
from propkit.recording.layout import Layout
from propkit.recording.opening import Target
from propkit.recording.outbox import Outbox
from propkit.recording.provenance import describe_run
from propkit.recording.ranks import Ranks
from propkit.recording.recorder import Recorder
from propkit.recording.resume import declared, segment
from propkit.recording.sampling import Sampling
from propkit.registry import find_probes
from propkit.schedules import Schedule, as_schedule, name_of, tried
from propkit.sites import find_sites
from propkit.store.place import Source, without_scheme

When = int | Schedule


def attach(
    model: nn.Module,
    store: Source | None = None,
    *,
    probes: Iterable[str | Probe] | str | Probe | None = None,
    every: When | Mapping[str, When] | None = None,
    include: str | None = None,
    exclude: str | None = None,
    blocks: str | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    scaler: GradScaler | None = None,
    distributed: bool = True,
    label: str | None = None,
    config: Mapping[str, Any] | None = None,
    seed: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    step: int | None = None,
    takeover: bool = False,
    durable: bool = False,
    strict: bool = False,
    budget: float | None = None,
    compact: bool = True,
) -> Recorder:
    """Put probes on `model` and record what they measure, step by step; the training loop stays as it is.

    A step is one step of an optimiser that holds parameters of the model. What happens within it (micro-batches,
    several calls of a module in different forwards) is combined by each quantity's rule into one row. A module
    that runs several times in one forward has one site per call (``name``, ``name#1``, ...).

    >>> import torch, propkit
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with propkit.attach(model, probes="error_moment") as recorder:
    ...     for _ in range(3):
    ...         optimizer.zero_grad()
    ...         model(torch.ones(5, 4)).square().mean().backward()
    ...         optimizer.step()
    >>> recorder.run["error_moment"]["output"].sizes
    Frozen({'step': 3, 'site': 2})

    Args:
        model: Any module, not compiled yet; it may be afterwards.
        store: Path of the zarr store to create, or a URL (``s3://bucket/run.zarr``, see `propkit.open`), or a store of
            zarr's or obstore's; in memory by default.
        probes: Names, or functions decorated with `propkit.probe`; the cheap ones by default.
        every: Measure every n-th step (every one by default), or a schedule ``step -> bool`` (`propkit.log_spaced`),
            or a dict of either by probe name (``{"weight": 100, "representation": 500}``). Dear probes
            (``representation``, ``singular_values``) have a sparse schedule of their own, which a period or schedule
            for all leaves as it is unless all probes are dear: name them in a dict to change it. Probes that a dict
            does not name are measured every step, or on their own schedule. What was used is in the run's attribute
            ``sampling``.
        include: Regular expression for the whole qualified name of the layers to observe.
        exclude: The same for modules to leave out.
        blocks: The same for modules to see as one map, whose gradient norms are measured at both ends; by default
            the blocks that `propkit.blocks.find_blocks` finds, or else the parametric layers.
        optimizer: The optimiser whose steps count, where several hold the model's parameters.
        scaler: The training's gradient scaler, where the process has several; a single one is found by itself.
        distributed: In a training by several processes, combine what the ranks measure into one run of the global
            batch, written by rank 0 (all ranks attach and detach; errors are those of the mean of the ranks' losses).
            False: every process records for itself.
        label: Short name of the run for legends.
        config: What the run should remember of your configuration (JSON-able).
        seed: The seed you used, to be remembered.
        overwrite: Replace an existing run at `store`.
        resume: Continue the run at `store`, with the same model and probes; without one, begin it. Steps are counted
            on from `step`, and rows of that step and later are dropped, so that a training that goes on from a
            checkpoint leaves neither a gap nor a duplicate (``recorder.flush()`` before the checkpoint is saved makes
            sure that no row before it is missing). Each part of the run is described in its attribute ``segments``.
        step: With `resume`: number of optimiser steps that the training has completed, as its checkpoint says; by
            default the step at which the recording stopped.
        takeover: With `resume`: take the run even from a writer of which nothing can be known here, because it ran on
            another machine and did not close the run. Make sure that it has ended; at a URL it is refused if it has
            not, as far as the store allows (see docs/limitations.md).
        durable: Flush each commit to the disk, so that a power failure takes no committed row. By default rows are
            flushed every 10 seconds, and a killed process never loses a committed one.
        strict: Raise an error in the training when the run cannot be written or propkit has a fault. By default a
            warning says so, and the training goes on.
        budget: Share of the step that recording may take, such as 0.02: what it costs is measured while it runs, and
            the sampling of all probes but those with a schedule of their own is widened by a power of two until it
            does. The run says what was done in its attribute ``budget``; what recording cost, with a budget or
            without, is in ``overhead``.
        compact: Compress a local run and gather its files when it is complete; see `propkit.store.compact.compact`.
            A run within the first chunk of each array, which has little to gain, is left as it was written.

    Returns:
        The handle of the recording: a context manager with ``run``, ``log``, ``step`` and ``detach``.

    Raises:
        TypeError: `model` is no module, or an argument has the wrong type.
        ValueError: A pattern matches no module, a probe is unknown, a schedule cannot say whether to measure the first
            step, the model is compiled already; the run to be continued has other sites, probes or variables, or
            `store` holds no run.
        FileExistsError: `store` exists, and neither `overwrite` nor `resume` is given.
        FileNotFoundError: There is no run to be continued at `step`.
        BlockingIOError: Another process writes the run.
        OSError: The run cannot be created at `store`: no room, no permission.
    """
    store = None if store is None else without_scheme(store)
    target = Target(store, overwrite, resume, step, takeover, durable, compact)
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        model = model.module
    _check_model(model)
    check_arguments(
        optimizer=optimizer,
        scaler=scaler,
        probes=probes,
        include=include,
        exclude=exclude,
        blocks=blocks,
        config=config,
    )
    found = find_probes(probes)
    times = _times(every, found)
    schedules = _schedules(times, every, step or 0)
    sites, notes = find_sites(
        model, found, include, exclude, find_blocks(model) if blocks is None else blocks
    )
    # A step that is sampled for others alone, which have no site, is not a sampled one.
    present = {p.name for site in sites for p in site.probes}
    sampling = Sampling(
        {name: when for name, when in schedules.items() if name in present},
        [p.name for p in found if p.every is not None],
        budget,
    )
    if probes is not None:
        for note in notes:
            say(note)
    attributes = describe_run(model, label, config, seed)
    attributes["notes"] = notes
    attributes["sampling"] = {name: name_of(when) for name, when in times.items()}
    attributes |= declared(found, sites)
    attributes["segments"] = [segment(attributes, 0)]
    ranks = Ranks.find() if distributed else None

    opened = target.open(attributes, found, sites, ranks)
    with contextlib.ExitStack() as undo:  # if anything fails from here on, nothing is left behind
        undo.callback(opened.undo)
        start = opened.start
        layout = Layout(found, sites)
        layout.restore(start.groups)
        threaded = store is not None or ranks is not None
        outbox = Outbox(opened.writer, layout, threaded, notes, ranks, start, target.finish)
        undo.callback(outbox.abandon)
        scale = LossScale(scaler, 1 if ranks is None else ranks.size, say)
        undo.callback(scale.remove)
        recorder = Recorder(
            outbox, layout, sampling, opened.open_run, scale, ranks, start.step, strict
        )
        taps = Taps(model, sites, recorder)
        undo.callback(taps.remove)
        steps = OptimizerSteps(model, recorder.end_step, optimizer, recorder.broken)
        undo.callback(steps.remove)
        recorder.start(taps, steps.remove, lambda: steps.found)
        undo.pop_all()
    return recorder


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"attach: expected a torch.nn.Module, found {type(model).__name__}")
    if is_compiled(model):
        raise ValueError(
            "attach: the model is compiled already, so hooks put in now may never run. Attach to the module before "
            "torch.compile or model.compile(), then train the compiled one"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            "attach: a TorchScript module runs no Python hooks; attach to the model before scripting it"
        )


def _times(every: When | Mapping[str, When] | None, probes: Sequence[Probe]) -> dict[str, When]:
    """When each probe is measured."""
    names = [p.name for p in probes]
    if isinstance(every, Mapping):
        unknown = sorted(set(every) - set(names), key=str)
        if unknown:
            raise ValueError(
                f"every names {unknown[0]!r}, which is not recorded; recorded are {', '.join(names)}"
            )
        named: Mapping[str, When] = every
        every = None
    else:
        dear_alone = every is not None and all(p.every is not None for p in probes)
        named = dict.fromkeys(names, every) if dear_alone and every is not None else {}
    usual = 1 if every is None else every
    return {p.name: named.get(p.name, usual if p.every is None else p.every) for p in probes}


def _schedules(
    times: Mapping[str, When], every: When | Mapping[str, When] | None, step: int
) -> dict[str, Schedule]:
    """The schedules of the probes; each is asked once, and the message of an error says which argument it is."""
    named = every if isinstance(every, Mapping) else {}
    schedules = {}
    for name, when in times.items():
        argument = "every" if when is every else f"every of probe {name!r}"
        if name in named:
            argument = f"every[{name!r}]"
        schedules[name] = tried(as_schedule(when, argument), argument, step)
    return schedules
