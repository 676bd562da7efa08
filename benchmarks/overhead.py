"""What observing a training costs: propkit beside other tools, step by step in one process.

    python benchmarks/overhead.py [--network plain44] [--batch 64] [--rounds 9] [--threads 1] [--quick]

Other tools are optional; those that are not installed are listed with the command that installs them. How each number
is measured, and what came out, is in benchmarks/overhead.md.
"""

import argparse
import contextlib
import json
import logging
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from watching.compiling import part_compiled
from watching.rounds import Bench, Spread, keep_freed_memory, peak_bytes, spread
from watching.targets import Measured, print_targets
from watching.tools import (
    AGAIN,
    DEFAULTS,
    ERRORS_HERE,
    EVERY,
    GIT,
    OURS,
    PEERS,
    SPARSE,
    Configuration,
    attached,
    bare,
)
from watching.training import Stopwatch, Subject, let_stopwatches_in

from propkit.probes._fused import can_fuse
from propkit.registry import DEFAULT_PROBES

FLUSHED = 8  # rows in the flush that is timed
PARTS = ("rounds", "cycles", "dispatch", "compiled")


def part_rounds(
    bench: Bench, configurations: Sequence[Configuration], rounds: int
) -> dict[str, Measured]:
    reference = peak_bytes(bench, Configuration("bare", bare))
    peaks = {c.label: peak_bytes(bench, c) / reference for c in configurations}
    with _no_flush_by_time() as flush_seconds:
        with contextlib.ExitStack() as stack:
            subjects = {c.label: stack.enter_context(bench.observed(c)) for c in configurations}
            costs = bench.interleaved(subjects, rounds)
            flush = _flush_cost(subjects[DEFAULTS])
        alone = _reductions_alone(bench, rounds)
        let_stopwatches_in()  # afterwards: they take half a per cent of the step
        with contextlib.ExitStack() as stack:
            subjects = {
                c.label: stack.enter_context(bench.observed(c, Stopwatch())) for c in configurations
            }
            watched = bench.interleaved(subjects, max(3, rounds // 3))
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
        hook_share = spread([a.hooks / b.cpu for a, b in watched[c.label]])
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
    if alone is not None:
        print(
            f"The reductions of the errors at the outputs alone: {100 * alone:.2f} % of the step."
        )
    result[ERRORS_HERE] = result[ERRORS_HERE]._replace(reductions=alone)
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


def _reductions_alone(bench: Bench, rounds: int) -> float | None:
    """Time in the loops that read the errors, of the bare step: no hooks, no Python; None without Numba."""
    if not can_fuse(torch.empty(1)):
        return None
    kernels: Any = import_module("propkit.probes._kernels")
    watch, loop = Stopwatch(time.perf_counter), kernels.square_sum
    with bench.observed(next(c for c in OURS if c.label == ERRORS_HERE)) as s:
        kernels.square_sum = watch.wrap(loop)
        pairs = bench.interleaved({"timed": s}, rounds)["timed"]
        kernels.square_sum = loop
    return watch.seconds / sum(b.wall for _, b in pairs)


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


def part_cycles(bench: Bench, cycles: int) -> tuple[float, float]:
    """Mean ratio of whole cycles of one sampled step and the others, and that of a bare network beside it (CPU)."""
    with (
        bench.observed(Configuration(SPARSE, attached(every=EVERY))) as s,
        bench.observed(Configuration(AGAIN, bare)) as control,
    ):
        assert s.recorder is not None
        first = s.recorder.steps
        costs = bench.interleaved({SPARSE: s, AGAIN: control}, EVERY * cycles)
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in s.model.modules())
    sampled = [(first + i) % EVERY == 0 for i in range(EVERY * cycles)]
    print(f"\n{SPARSE}: {cycles} cycles of {EVERY} steps, flushes included. Ratios to bare:")
    result = {}
    for clock in ("wall", "cpu"):
        for label, pairs in costs.items():
            ratios = [(getattr(a, clock), getattr(b, clock)) for a, b in pairs]
            whole = [
                sum(a for a, _ in ratios[i : i + EVERY]) / sum(b for _, b in ratios[i : i + EVERY])
                for i in range(0, len(ratios), EVERY)
            ]
            here = spread([a / b for (a, b), yes in zip(ratios, sampled, strict=True) if yes])
            away = spread([a / b for (a, b), yes in zip(ratios, sampled, strict=True) if not yes])
            result[label] = statistics.mean(whole)
            error = statistics.stdev(whole) / math.sqrt(cycles) if cycles > 1 else math.nan
            name = "this" if label == SPARSE else label
            print(
                f"{clock:5}{name:12} whole cycles {result[label]:.4f} +- {error:.4f}   "
                f"sampled steps {here}   others {away}"
            )
    print(f"hooks on the modules after an unsampled step: {hooks}")
    return result[SPARSE], result[AGAIN]


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
        loops = (
            "Numba's"
            if can_fuse(torch.empty(1))
            else "PyTorch's alone (pip install 'propkit[cpu]')"
        )
        print(f"default probes: {', '.join(DEFAULT_PROBES)}; loops: {loops}", flush=True)
        measured = part_rounds(bench, (*OURS, *present), a.rounds) if "rounds" in a.parts else {}
        sys.stdout.flush()
        cycles = part_cycles(bench, a.cycles) if "cycles" in a.parts else None
        cheap = [
            c
            for c in (*OURS, *present)
            if c.package in ("", "numba") or c.label.startswith("tensor-tracker, std")
        ]
        dispatch = (
            part_dispatch(depth, folder, cheap, 20 * a.rounds) if "dispatch" in a.parts else {}
        )
        sys.stdout.flush()
        compiled = compiled_in_a_process(a) if "compiled" in a.parts else None
        print_targets(measured, cycles, dispatch, compiled)


if __name__ == "__main__":
    main()
