"""Steps of compiled networks, observed and bare."""

import contextlib
import time

import torch
from watching.rounds import Bench, spread
from watching.tools import attached
from watching.training import Subject


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
