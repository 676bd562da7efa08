"""Steps of compiled networks, observed and bare."""

import contextlib
import itertools
import statistics
import time

import torch
from watching.rounds import Bench, spread
from watching.tools import attached
from watching.training import Subject

_COPIES = 4
"""Of what is compared closely: networks that are alike differ by a fifth of a per cent, by where their memory lies."""


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
    whens = {"unsampled steps": lambda step: step == 0, "every=1": 1}
    with contextlib.ExitStack() as stack:
        subjects = {}
        for copy in range(_COPIES):
            subjects["bare, again", copy] = compiled(bench.subject())
            for when, every in whens.items():
                if when == "unsampled steps" or not copy:
                    s = bench.subject()
                    stack.enter_context(attached(every=every)(s))
                    subjects[f"all default probes, {when}", copy] = compiled(s)
        graphs = counters["stats"]["unique_graphs"]
        costs = bench.interleaved(subjects, rounds, [reference])
        late = counters["stats"]["unique_graphs"] - graphs
        for (label, copy), s in subjects.items():
            if s.recorder and not copy:
                values = s.recorder.run["error_moment"]["output"]
                print(f"  {label}: {values.sizes}, {int(values.isnull().sum())} values missing")
    step = spread([b.wall for pairs in costs.values() for _, b in pairs]).median
    print(f"  bare compiled step: {1e3 * step:.1f} ms. Ratios to it, wall clock and CPU:")
    result = {}
    for label in dict.fromkeys(label for label, _ in subjects):
        copies = [
            [(a.wall / b.wall, a.cpu / b.cpu) for a, b in pairs]
            for (name, _), pairs in costs.items()
            if name == label
        ]
        wall, cpu = (spread(values) for values in zip(*itertools.chain(*copies), strict=True))
        medians = [statistics.median(cpu for _, cpu in pairs) for pairs in copies]
        result[label] = statistics.fmean(medians)
        each = " ".join(f"{m:.3f}" for m in medians)
        print(f"  {label:43}{wall} {cpu}  copies: {each}")
    breaks = sum(counters["graph_break"].values())
    print(f"  graph breaks: {breaks}; compiled again while timed: {late}", flush=True)
    return {
        "unsampled": result["all default probes, unsampled steps"],
        "again": result["bare, again"],
        "breaks": breaks,
    }
