"""What observing a training costs: propkit beside other tools, step by step in one process.

    python benchmarks/overhead.py [--network plain44] [--batch 64] [--rounds 9] [--threads 1] [--quick]

Other tools are optional; those that are not installed are listed with the command that installs them. How each number
is measured, and what came out, is in benchmarks/README.md.
"""

import argparse
import contextlib
import copy
import ctypes
import gc
import itertools
import json
import logging
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import optimizer as torch_optimizer
from torch.profiler import ProfilerActivity, profile

import propkit
from propkit.models import plain
from propkit.probes._reductions import mean_square
from propkit.registry import DEFAULT_PROBES

EVERY = 50  # sampling period of the rows that sample
FLUSHED = 8  # rows in the flush that is timed
CONVS = r"(^|\.)conv\d+$"  # names of the convolutions
_MODULE_HOOKS = ("forward_", "forward_pre_", "full_backward_", "full_backward_pre_")
_TENSOR_HOOKS = ("register_hook", "register_post_accumulate_grad_hook")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
PARTS = ("rounds", "cycles", "dispatch", "compiled")
AGAIN, ERRORS_HERE, ALL_NORMS, MOMENTS, DEFAULTS, SPARSE, IDLE = (
    "bare, again",
    "propkit: error moments at the outputs",
    "propkit: all outputs + errors, one norm each",
    "propkit: error moments, both ends",
    "propkit: all default probes",
    f"propkit: all default probes, every={EVERY}",
    "propkit: attached, nothing sampled",
)


@propkit.probe(degree=2)
def error(grad_output: torch.Tensor) -> torch.Tensor:
    """Mean square of the error at a layer's output: what most of the other tools see."""
    return mean_square(grad_output)


@propkit.probe
def length(output: torch.Tensor) -> torch.Tensor:
    """Mean square of a layer's output."""
    return mean_square(output)


# -- one training step of one network, and how it is watched ---------------------------------------------------------


class Stopwatch:
    """CPU time that this thread spends in the hooks of a tool, nested ones counted once."""

    current: "Stopwatch | None" = None

    def __init__(self) -> None:
        self.seconds = 0.0
        self._inside = False

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function on the watch."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            self._inside, begin = True, time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self._inside = False
                self.seconds += time.thread_time() - begin

        return timed

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Every hook that is put on a module, a tensor or an optimiser meanwhile is on the watch."""
        steps = (
            torch_optimizer._global_optimizer_pre_hooks,
            torch_optimizer._global_optimizer_post_hooks,
        )
        before = [set(hooks) for hooks in steps]
        Stopwatch.current = self
        try:
            yield
        finally:
            Stopwatch.current = None
            for hooks, known in zip(steps, before, strict=True):
                hooks.update({k: self.wrap(hooks[k]) for k in hooks if k not in known})


def let_stopwatches_in() -> None:
    """Replace, for good, the methods that register hooks.

    Exchanging them around the watched steps alone would touch classes of torch there and not in the bare steps.
    """

    def registering(original: Callable[..., Any]) -> Callable[..., Any]:
        def register(owner: Any, hook: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            watch = Stopwatch.current
            return original(owner, hook if watch is None else watch.wrap(hook), *args, **kwargs)

        return register

    places = [(nn.Module, f"register_{kind}hook") for kind in _MODULE_HOOKS]
    places += [(torch.Tensor, name) for name in _TENSOR_HOOKS]
    for owner, name in places:
        setattr(owner, name, registering(getattr(owner, name)))


class Cost(NamedTuple):
    """Seconds of one step: on the wall clock, on the CPU by all threads, and in hooks (CPU)."""

    wall: float
    cpu: float
    hooks: float


@dataclass
class Subject:
    """A network in training. Observers change `run` and `after_step`."""

    model: nn.Module
    x: torch.Tensor
    y: torch.Tensor
    folder: Path
    watch: Stopwatch | None = None
    after_step: Callable[[torch.Tensor], None] | None = None
    recorder: propkit.Recorder | None = None
    steps: int = 0
    run: Callable[[], torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.run = self.forward_backward

    def forward_backward(self) -> torch.Tensor:
        """The loss, with gradients."""
        loss = F.cross_entropy(self.model(self.x), self.y)
        loss.backward()
        return loss

    def step(self) -> Cost:
        """One training step."""
        self.steps += 1
        begin, watched = (time.perf_counter(), time.process_time()), self.hook_seconds()
        with contextlib.nullcontext() if self.watch is None else self.watch.watching():
            self.optimizer.zero_grad()
            loss = self.run()
            self.optimizer.step()
            if self.after_step is not None:
                self.after_step(loss)
        wall, cpu = time.perf_counter() - begin[0], time.process_time() - begin[1]
        return Cost(wall, cpu, self.hook_seconds() - watched)

    def hook_seconds(self) -> float:
        """Time in hooks so far."""
        return 0.0 if self.watch is None else self.watch.seconds

    def convs(self) -> dict[str, nn.Module]:
        """Convolutions by name."""
        return {n: m for n, m in self.model.named_modules() if isinstance(m, nn.Conv2d)}


Observer = Callable[[Subject], contextlib.AbstractContextManager[None]]


class Configuration(NamedTuple):
    """A way to watch a training, the package it needs, the propkit row that gives the nearest quantities."""

    label: str
    observe: Observer
    package: str = ""
    rival: str = ""


def attached(**options: Any) -> Observer:
    @contextlib.contextmanager
    def observe(s: Subject) -> Iterator[None]:
        store = s.folder / f"{id(s)}.zarr"
        with propkit.attach(s.model, store, overwrite=True, **options) as s.recorder:
            yield

    return observe


def on_conv_errors(s: Subject, see: Callable[[str, torch.Tensor], None]) -> None:
    """Tensor hooks on the outputs of the convolutions, by hand."""

    def at(name: str) -> Callable[..., None]:
        def seen(_m: nn.Module, _args: Any, out: torch.Tensor) -> None:
            def arrived(grad: torch.Tensor) -> None:
                see(name, grad)

            out.register_hook(arrived)

        return seen

    for name, module in s.convs().items():
        module.register_forward_hook(at(name))


@contextlib.contextmanager
def bare(s: Subject) -> Iterator[None]:  # noqa: ARG001 - an observer
    yield


@contextlib.contextmanager
def naive(s: Subject) -> Iterator[None]:
    values: dict[str, float] = {}
    on_conv_errors(s, lambda name, grad: values.update({name: grad.pow(2).mean().item()}))
    yield


@contextlib.contextmanager
def backward_hooks(s: Subject) -> Iterator[None]:
    for module in s.convs().values():
        module.register_full_backward_hook(lambda *_: None)
    yield


def tensor_tracker(convs_std: bool) -> Observer:
    @contextlib.contextmanager
    def observe(s: Subject) -> Iterator[None]:
        tool = import_module("tensor_tracker")
        std = {"include": CONVS, "stash_value": lambda t: t.detach().std().cpu()}
        with tool.track(s.model, **(std if convs_std else {})) as tracker:

            def read(_: torch.Tensor) -> None:
                if convs_std:
                    [stash.first_value.item() for stash in tracker]
                tracker.clear()

            s.after_step = read
            yield

    return observe


def wandb_watch(what: str) -> Observer:
    @contextlib.contextmanager
    def observe(s: Subject) -> Iterator[None]:
        wandb = import_module("wandb")
        quiet = wandb.Settings(silent=True, console="off", x_disable_stats=True)
        run = wandb.init(mode="offline", dir=s.folder, reinit="create_new", settings=quiet)
        run.watch(s.model, log=what, log_freq=1)

        def forward_backward() -> torch.Tensor:
            wandb.run = run  # its hooks log to the current run, and there are two here
            return s.forward_backward()

        s.run = forward_backward
        s.after_step = lambda loss: run.log({"loss": loss.item()})
        yield
        run.finish()

    return observe


def tensorboard(errors: bool) -> Observer:
    @contextlib.contextmanager
    def observe(s: Subject) -> Iterator[None]:
        writer = import_module("torch.utils.tensorboard").SummaryWriter(s.folder / f"tb{id(s)}")

        def gradients(_: torch.Tensor) -> None:
            for name, p in s.model.named_parameters():
                writer.add_histogram(name, p.grad, s.steps)

        if errors:
            on_conv_errors(s, lambda name, grad: writer.add_histogram(name, grad, s.steps))
        else:
            s.after_step = gradients
        yield
        writer.close()

    return observe


@contextlib.contextmanager
def torchlens(s: Subject) -> Iterator[None]:
    tool, options = import_module("torchlens"), import_module("torchlens.options")
    capture = options.CaptureOptions(backward_ready=True, unwrap_when_done=True)

    def run() -> torch.Tensor:
        trace = tool.trace(s.model, s.x, capture=capture)
        loss = F.cross_entropy(trace[trace.output_layers[0]].out, s.y)
        trace.log_backward(loss)
        trace.cleanup()
        return loss

    s.run = run
    yield


GIT = {"tensor_tracker": "git+https://github.com/graphcore-research/pytorch-tensor-tracker"}
OURS = (
    Configuration(AGAIN, bare),
    Configuration(IDLE, attached(every=lambda _: False)),
    Configuration(ERRORS_HERE, attached(probes=error)),
    Configuration(MOMENTS, attached(probes="error_moment")),
    Configuration(ALL_NORMS, attached(probes=[error, length])),
    Configuration(DEFAULTS, attached()),
)
PEERS = (
    Configuration("no-op full backward hooks", backward_hooks, rival=ERRORS_HERE),
    Configuration("tensor hooks with .item(), by hand", naive, rival=ERRORS_HERE),
    Configuration("tensor-tracker, std of convolutions", tensor_tracker(True), "tensor_tracker", ALL_NORMS),
    Configuration("tensor-tracker, clones (default)", tensor_tracker(False), "tensor_tracker", ALL_NORMS),
    Configuration("wandb.watch, gradients", wandb_watch("gradients"), "wandb", MOMENTS),
    Configuration("wandb.watch, all", wandb_watch("all"), "wandb", DEFAULTS),
    Configuration("TensorBoard, histograms of gradients", tensorboard(False), "tensorboard", MOMENTS),
    Configuration("TensorBoard, histograms of conv errors", tensorboard(True), "tensorboard", ERRORS_HERE),
    Configuration("torchlens, trace", torchlens, "torchlens", ALL_NORMS),
)  # fmt: skip


# -- measuring -------------------------------------------------------------------------------------------------------


class Spread(NamedTuple):
    """Quartiles."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:6.3f} [{self.low:5.3f}, {self.high:5.3f}]"


def spread(values: Sequence[float]) -> Spread:
    if len(values) < 2:
        return Spread(values[0], values[0], values[0])
    return Spread(*statistics.quantiles(values, n=4, method="inclusive"))


class Bench:
    """Networks alike in all but how they are watched."""

    def __init__(self, depth: int, batch: int, size: int, folder: Path, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = plain(depth, **options)
        self.x, self.y = torch.randn(batch, 3, size, size), torch.randint(0, 10, (batch,))
        self.layers = depth
        self.folder = folder

    def subject(self, watch: Stopwatch | None = None) -> Subject:
        """Another copy of the network, in training."""
        return Subject(copy.deepcopy(self.model), self.x, self.y, self.folder, watch)

    @contextlib.contextmanager
    def observed(self, c: Configuration, watch: Stopwatch | None = None) -> Iterator[Subject]:
        """A network of its own under observation, after two steps and a flush."""
        s = self.subject(watch)
        with contextlib.ExitStack() as stack:
            with contextlib.nullcontext() if watch is None else watch.watching():
                stack.enter_context(c.observe(s))
            if watch is not None and s.after_step is not None:
                s.after_step = watch.wrap(s.after_step)
            s.step()
            s.step()
            if s.recorder is not None:
                _ = s.recorder.run  # the first flush ends the discovery of the network
            yield s

    def interleaved(
        self, subjects: dict[str, Subject], rounds: int, references: Sequence[Subject] = ()
    ) -> dict[str, list[tuple[Cost, Cost]]]:
        """Per round, in random order, a step of each with a bare step before and after: (its cost, mean of both).

        The bare steps go round as many copies as there are subjects, so that every network has rested as long as
        the others when its turn comes.
        """
        result: dict[str, list[tuple[Cost, Cost]]] = {label: [] for label in subjects}
        order = list(subjects)
        references = references or [self.subject() for _ in order]
        for reference in references:
            reference.step()
        turn = itertools.cycle(references)
        shuffle = random.Random(0).shuffle
        gc.collect()
        gc.freeze()  # a collection now and then goes through what the step made, not through all of torch
        before = next(turn).step()
        for _ in range(rounds):
            shuffle(order)
            for label in order:
                cost, after = subjects[label].step(), next(turn).step()
                result[label].append((cost, _mean(before, after)))
                before = after
        return result


def _mean(a: Cost, b: Cost) -> Cost:
    return Cost(*((x + y) / 2 for x, y in zip(a, b, strict=True)))


def peak_bytes(bench: Bench, c: Configuration) -> int:
    """Most bytes that torch's allocator held at a time, from before the observer until after three steps."""
    gc.collect()  # what an earlier network left would be freed meanwhile
    with (
        _silent_stderr(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p,
        bench.observed(c) as s,
    ):
        s.step()
    events = [e for e in p.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


# -- the parts -------------------------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """What is known of one configuration: ratios to bare, share of hooks in the bare step, peak memory."""

    wall: Spread
    cpu: Spread
    hooks: Spread
    peak: float

    @property
    def overhead(self) -> float:
        """Overhead in the loop, or the time in hooks if the loop's noise hides it."""
        return max(self.cpu.median - 1, self.hooks.median)


def part_rounds(
    bench: Bench, configurations: Sequence[Configuration], rounds: int
) -> dict[str, Measured]:
    reference = peak_bytes(bench, Configuration("bare", bare))
    peaks = {c.label: peak_bytes(bench, c) / reference for c in configurations}
    let_stopwatches_in()
    with _no_flush_by_time() as flush_seconds, contextlib.ExitStack() as stack:
        subjects = {
            c.label: stack.enter_context(bench.observed(c, Stopwatch())) for c in configurations
        }
        costs = bench.interleaved(subjects, rounds)
        flush = _flush_cost(subjects[DEFAULTS])
    step = spread([b.wall for pairs in costs.values() for _, b in pairs]).median
    cpu = spread([b.cpu for pairs in costs.values() for _, b in pairs]).median
    print(
        f"\nEvery step. Bare: {step:.3f} s on the wall, {cpu:.3f} s of CPU, peak {reference / 1e6:.1f} MB. "
        "Ratios to bare:"
    )
    print(f"{'':45}{'wall clock':>22}{'CPU time':>23}{'hooks, % of step':>18}{'peak memory':>13}")
    result = {}
    for c in configurations:
        pairs = costs[c.label]
        hook_share = spread([a.hooks / b.cpu for a, b in pairs])
        result[c.label] = m = Measured(
            spread([a.wall / b.wall for a, b in pairs]),
            spread([a.cpu / b.cpu for a, b in pairs]),
            hook_share,
            peaks[c.label],
        )
        print(
            f"{c.label:45}{m.wall!s:>22} {m.cpu!s:>22}{100 * hook_share.median:18.2f}{m.peak:13.4f}"
        )
    print(
        f"One flush of {FLUSHED} rows of all default probes: {1e3 * flush:.1f} ms of CPU in the background, once in "
        f"{flush_seconds:g} s: {100 * flush / flush_seconds:.2f} %."
    )
    return result


@contextlib.contextmanager
def _no_flush_by_time() -> Iterator[float]:
    """Put off the flushes that are due by time: a round lasts longer than that, so that every step would flush."""
    modules = [m for name, m in sys.modules.items() if name.startswith("propkit.")]
    before = {m: m.FLUSH_SECONDS for m in modules if hasattr(m, "FLUSH_SECONDS")}
    if not before:
        raise RuntimeError("propkit has no FLUSH_SECONDS to put off; see propkit.recorder")
    try:
        for m in before:
            m.FLUSH_SECONDS = math.inf  # type: ignore[attr-defined]
        yield next(iter(before.values()))
    finally:
        for m, seconds in before.items():
            m.FLUSH_SECONDS = seconds  # type: ignore[attr-defined]


def _flush_cost(s: Subject) -> float:
    """CPU time of one flush of `FLUSHED` rows: `run` flushes and opens the store, the second time it only opens it."""
    assert s.recorder is not None
    _ = s.recorder.run
    for _ in range(FLUSHED):
        s.step()
    marks = [time.process_time()]
    for _ in range(2):
        _ = s.recorder.run
        marks.append(time.process_time())
    return max(0.0, 2 * marks[1] - marks[0] - marks[2])


def part_cycles(bench: Bench, cycles: int) -> Spread:
    """Whole cycles of one sampled step and the others, every step beside bare ones."""
    configuration = Configuration(SPARSE, attached(every=EVERY))
    with bench.observed(configuration) as s:
        assert s.recorder is not None
        first = s.recorder.steps
        pairs = bench.interleaved({SPARSE: s}, EVERY * cycles)[SPARSE]
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in s.model.modules())
    sampled = [(first + i) % EVERY == 0 for i in range(len(pairs))]
    print(f"\n{SPARSE}: {cycles} cycles of {EVERY} steps, flushes included. Ratios to bare:")
    result = {}
    for k, clock in enumerate(("wall", "cpu")):
        total = [
            sum(a[k] for a, _ in pairs[i : i + EVERY]) / sum(b[k] for _, b in pairs[i : i + EVERY])
            for i in range(0, len(pairs), EVERY)
        ]
        here = spread([a[k] / b[k] for (a, b), yes in zip(pairs, sampled, strict=True) if yes])
        away = spread([a[k] / b[k] for (a, b), yes in zip(pairs, sampled, strict=True) if not yes])
        result[clock] = spread(total)
        print(f"{clock:5} whole cycles {result[clock]}   sampled steps {here}   unsampled {away}")
        amortised = (here.median + (EVERY - 1) * away.median) / EVERY
        print(f"      (sampled + {EVERY - 1} x unsampled) / {EVERY}: {amortised:.4f}")
    print(f"hooks on the modules after an unsampled step: {hooks}")
    return result["cpu"]


def part_dispatch(
    depth: int, folder: Path, configurations: Sequence[Configuration], rounds: int
) -> dict[str, Spread]:
    """CPU time per layer where the tensors are tiny, so that only Python and dispatching cost."""
    bench = Bench(depth, 1, 8, folder, widths=(2, 2, 2))
    with contextlib.ExitStack() as stack:
        subjects = {c.label: stack.enter_context(bench.observed(c)) for c in configurations}
        costs = bench.interleaved(subjects, rounds)
    plain_steps = [
        a.cpu for a, _ in costs[AGAIN]
    ]  # the bare steps between are warmer, as they are more
    print("\nDispatch: the same layers, 2 channels wide, one 8x8 image. CPU us per layer and step")
    print(f"beyond the bare step of the same round, {1e3 * spread(plain_steps).median:.2f} ms:")
    result = {}
    for label, pairs in costs.items():
        own = zip(pairs, plain_steps, strict=True)
        result[label] = m = spread([1e6 * (a.cpu - b) / bench.layers for (a, _), b in own])
        if label != AGAIN:
            print(f"{label:45}{m.median:8.1f} [{m.low:.1f}, {m.high:.1f}]")
    return result


def part_compiled(bench: Bench, rounds: int) -> dict[str, float]:
    """Ratios of compiled steps to bare compiled ones; recorders attached before `torch.compile`."""
    counters = torch._dynamo.utils.counters
    print(
        f"\ntorch.compile, {bench.x.shape[0]} images of {bench.x.shape[-1]} pixels, {bench.layers} layers:"
    )

    def compiled(s: Subject) -> Subject:
        # The networks are of one class, and their graphs would be taken for each other's.
        s.model = torch.compile(s.model, isolate_recompiles=True)  # type: ignore[assignment]
        begin = time.perf_counter()
        for _ in range(3):
            s.step()
        print(f"  compiled in {time.perf_counter() - begin:.0f} s", flush=True)
        return s

    reference = compiled(bench.subject())
    with contextlib.ExitStack() as stack:
        subjects = {"bare, again": compiled(bench.subject())}
        for label, every in (("unsampled steps", lambda step: step == 0), ("every=1", 1)):
            s = bench.subject()
            stack.enter_context(attached(every=every)(s))
            subjects[f"all default probes, {label}"] = compiled(s)
        graphs = counters["stats"]["unique_graphs"]
        costs = bench.interleaved(subjects, rounds, [reference])
        late = counters["stats"]["unique_graphs"] - graphs
        recorded = {
            label: s.recorder.run["error_moment"]["output"]
            for label, s in subjects.items()
            if s.recorder
        }
        for label, values in recorded.items():
            print(f"  {label}: {values.sizes}, {int(values.isnull().sum())} values missing")
    step = spread([b.wall for pairs in costs.values() for _, b in pairs]).median
    print(f"  bare compiled step: {1e3 * step:.1f} ms. Ratios to it, wall clock and CPU:")
    result = {}
    for label, pairs in costs.items():
        wall, cpu = (
            spread([a.wall / b.wall for a, b in pairs]),
            spread([a.cpu / b.cpu for a, b in pairs]),
        )
        result[label] = cpu.median
        print(f"  {label:43}{wall} {cpu}")
    breaks = sum(counters["graph_break"].values())
    print(f"  graph breaks: {breaks}; compiled again while timed: {late}", flush=True)
    return {
        "unsampled": result["all default probes, unsampled steps"],
        "again": result["bare, again"],
        "breaks": breaks,
    }


def compiled_in_a_process(arguments: argparse.Namespace) -> dict[str, float] | None:
    """`part_compiled` where it cannot disturb the others; None, and the reason printed, if it fails."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", "--network", arguments.network]
    command += [
        "--batch",
        str(arguments.batch),
        "--rounds",
        str(arguments.rounds),
        "--threads",
        str(arguments.threads),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    except subprocess.TimeoutExpired:
        print("\ntorch.compile: left out, it took longer than 25 minutes")
        return None
    *lines, last = done.stdout.splitlines() or [""]
    try:
        found: dict[str, float] = json.loads(last)
    except ValueError:
        print(
            f"{done.stdout}\ntorch.compile: left out: {(done.stderr.strip() or 'no output').splitlines()[-1]}"
        )
        return None
    print("\n".join(lines))
    return found


# -- targets and the command line ------------------------------------------------------------------------------------


def print_targets(
    found: dict[str, Measured],
    cycles: Spread | None,
    dispatch: dict[str, Spread],
    compiled: dict[str, float] | None,
) -> None:
    """Each target with what was measured."""
    rows: list[tuple[str, str, bool]] = []
    if found:
        moments = found[MOMENTS]
        rows += [
            (
                "error moments, every step, time in hooks <= 1.01",
                f"{1 + moments.hooks.median:.4f}",
                moments.hooks.median <= 0.01,
            ),
            (
                "error moments, every step, in the loop <= 1.03",
                f"{moments.cpu.median:.3f}",
                moments.cpu.median <= 1.03,
            ),
        ]
        worst = max(
            (label for label in found if label.startswith("propkit")),
            key=lambda label: found[label].peak,
        )
        rows.append(
            (
                f"peak memory <= 1.01 (worst: {worst.removeprefix('propkit: ')})",
                f"{found[worst].peak:.4f}",
                found[worst].peak <= 1.01,
            )
        )
    if cycles:
        rows.append(
            (
                f"all default probes, every={EVERY}, whole cycles <= 1.005",
                f"{cycles.median:.4f}",
                cycles.median <= 1.005,
            )
        )
    if dispatch:
        idle = dispatch[IDLE].median
        rows.append(("unsampled steps <= 10 us a layer", f"{idle:.1f} us", idle <= 10))
    if compiled:
        gap = compiled["unsampled"] - compiled["again"]
        rows.append(
            (
                "compiled, unsampled: as fast as bare compiled (+-0.01)",
                f"{compiled['unsampled']:.3f} (bare again {compiled['again']:.3f})",
                gap <= 0.01,
            )
        )
        rows.append(("0 graph breaks", f"{compiled['breaks']:.0f}", compiled["breaks"] == 0))
    for c in PEERS if found else ():
        if c.label in found:
            theirs, ours = found[c.label].overhead, found[c.rival].overhead
            times = theirs / max(ours, 1e-9)
            rows.append(
                (
                    f"4x less than {c.label}",
                    f"{times:.1f}x ({100 * ours:.2f} % to {100 * theirs:.2f} %)",
                    times >= 4,
                )
            )
    print(
        "\nTargets (CPU time; the overhead of a row is that in the loop or that in its hooks, whichever is more)"
    )
    for target, value, met in rows:
        print(f"{target:75}{value:>30}  {'met' if met else 'NOT MET'}")


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed.

    By default a step gives some back and the next gets it again page by page: between none and 28,000 page faults a
    step, not alike for networks that are alike.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for parameter, value in ((_M_TRIM_THRESHOLD, 2**31 - 1), (_M_MMAP_THRESHOLD, 32 << 20)):
            libc.mallopt(parameter, value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="plain44", help="plain<6n+2> (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="images of 3x32x32 per step")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cycles", type=int, default=2, help=f"cycles of {EVERY} steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="plain8, 8 images, few rounds, not compiled: a trial of the script",
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if not a.network.startswith("plain") or not a.network[5:].isdigit():
        parser.error(f"--network {a.network}: expected plain<depth>, such as plain44")
    if a.quick:
        a.network, a.batch, a.rounds, a.cycles = "plain8", 8, 3, 1
        a.parts = [p for p in a.parts if p != "compiled"]
    torch.set_num_threads(a.threads)
    keep_freed_memory()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    depth = int(a.network[5:])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench = Bench(depth, a.batch, 32, folder)
        if a.child:
            found = part_compiled(bench, a.rounds)
            print(json.dumps(found))
            return
        present, versions = [], {}
        for c in PEERS:
            try:
                versions[c.package] = (
                    getattr(import_module(c.package), "__version__", "") if c.package else ""
                )
                present.append(c)
            except ImportError:
                print(f"skipped: {c.label} (pip install {GIT.get(c.package, c.package)})")
        others = ", ".join(f"{k} {v}".strip() for k, v in versions.items() if k)
        print(
            f"{a.network}, batch {a.batch}, {a.threads} thread(s), {a.rounds} rounds; "
            f"torch {torch.__version__}, {others}"
        )
        print(
            f"load of this machine at the start: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; "
            "median [quartiles]",
            flush=True,
        )
        print(f"default probes: {', '.join(DEFAULT_PROBES)}", flush=True)
        measured = part_rounds(bench, (*OURS, *present), a.rounds) if "rounds" in a.parts else {}
        sys.stdout.flush()
        cycles = part_cycles(bench, a.cycles) if "cycles" in a.parts else None
        cheap = [
            c
            for c in (*OURS, *present)
            if not c.package or c.label.startswith("tensor-tracker, std")
        ]
        dispatch = (
            part_dispatch(depth, folder, cheap, 20 * a.rounds) if "dispatch" in a.parts else {}
        )
        sys.stdout.flush()
        compiled = compiled_in_a_process(a) if "compiled" in a.parts else None
        print_targets(measured, cycles, dispatch, compiled)


if __name__ == "__main__":
    main()
