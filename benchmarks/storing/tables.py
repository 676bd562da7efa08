"""The tables that are printed, and the targets, each with what was measured."""

from typing import NamedTuple

import numpy as np
from storing.formats import OURS
from storing.rows import QUANTITIES
from watching.rounds import Spread, spread

from propkit.store.arrays import rows_per_chunk

TIMES_FASTER = {
    "HDF5, SWMR": 2.5,
    "SQLite, wide": 2.5,
    "CSV": 25,
    "zarr, append": 40,
    "TensorBoard": 1000,
}
RAW_SHARES = {"1,024 rows": 0.2, "1,000 layers": 0.3}


class Cost(NamedTuple):
    """Seconds on the wall clock, and of CPU by all threads."""

    wall: float
    cpu: float


class Written(NamedTuple):
    """What is known of one format: cost of each flush by round, rows written, bytes, files, reading, its warnings."""

    costs: dict[int, Cost]
    rows: int
    bytes: int
    files: int
    open: list[Cost]
    series: list[Cost]
    warnings: set[str]


def print_flushes(found: dict[str, Written], rows: int, raw: int) -> None:
    """What writing and reading cost; `raw` is the number of bytes of a row."""
    ours = found[OURS]
    print(f"\nA flush of {rows} rows, made visible: median [quartiles]")
    print(
        f"{'':27}{'wall, ms':>25}{'CPU, ms':>25}{'rows/s':>10}{'x propkit, wall / CPU':>24}"
        f"{'rows':>8}{'bytes / raw':>13}{'files':>7}"
    )
    for label, w in found.items():
        wall, cpu = (spread([1e3 * c[k] for c in w.costs.values()]) for k in (0, 1))
        times = " / ".join(f"{ratio(w, ours, k):.2f}" for k in (0, 1))
        print(
            f"{label:27}{wall!s:>25}{cpu!s:>25}{1e3 * rows / wall.median:10,.0f}{times:>24}"
            f"{w.rows:8}{w.bytes / (w.rows * raw):13.2f}{w.files:7}"
        )
    steps = ours.rows
    print(
        f"\nReading one layer's series of {steps} steps: ms of wall clock, median; in brackets: scaled up from fewer"
    )
    print(f"{'':27}{'open':>12}{'series':>12}{'both':>12}{'both, CPU':>12}{'x propkit':>12}")
    reference = _total(ours, 1).median
    for label, w in found.items():
        scale = steps / w.rows
        opened, series = (
            1e3 * spread([c.wall for c in part]).median for part in (w.open, w.series)
        )
        both, cpu = (1e3 * _total(w, k).median * scale for k in (0, 1))
        if scale > 1:  # what takes time is going through the rows, wherever that happens
            cells = ["", "", f"({both:.0f})", f"({cpu:.0f})", f"({cpu / reference / 1e3:.1f})"]
        else:
            cells = [f"{opened:.2f}", f"{series:.2f}", f"{both:.2f}", f"{cpu:.2f}"]
            cells.append(f"{cpu / reference / 1e3:.2f}")
        print(f"{label:27}{''.join(f'{cell:>12}' for cell in cells)}")


def ratio(theirs: Written, ours: Written, clock: int) -> float:
    """Median over the rounds of what their flush costs to what ours costs in the same round."""
    rounds = theirs.costs.keys() & ours.costs.keys()
    return spread([theirs.costs[i][clock] / ours.costs[i][clock] for i in rounds]).median


def _total(w: Written, clock: int) -> Spread:
    return spread([a[clock] + b[clock] for a, b in zip(w.open, w.series, strict=True)])


def print_targets(
    found: dict[str, Written], shares: dict[str, Cost], layers: int, dtype: str
) -> None:
    """Each target with what was measured: CPU time, and in brackets wall clock."""
    rows: list[tuple[str, str, bool]] = []
    for label, least in TIMES_FASTER.items():
        if label in found:
            wall, cpu = (ratio(found[label], found[OURS], k) for k in (0, 1))
            target = f"a flush {least:g}x faster than {label}"
            rows.append((target, f"{cpu:.1f}x ({wall:.1f}x)", cpu >= least))
    for name, least in RAW_SHARES.items():
        if name in shares:
            wall, cpu = shares[name]
            target = f"a flush of {name}: {least:.0%} of raw speed"
            rows.append((target, f"{cpu:.0%} ({wall:.0%})", cpu >= least))
    if found:
        ours = found[OURS]
        wall, cpu = (1e3 * _total(ours, k).median for k in (0, 1))
        target = f"open + one series <= 15 ms at {ours.rows} steps"
        rows.append((target, f"{cpu:.1f} ms ({wall:.1f} ms)", cpu <= 15))
        warned = "; ".join(sorted(ours.warnings))
        rows.append(("no warnings on reading", warned or "none", not warned))
        period = rows_per_chunk(layers, np.dtype(dtype).itemsize)
        most = (QUANTITIES + 3) * (ours.rows / period + 2)  # arrays: also step, site and depth
        target = f"files <= arrays x (steps / {period} + 2)"
        rows.append((target, f"{ours.files} (at most {most:.0f})", ours.files <= most))
    print("\nTargets: medians of CPU time, in brackets of wall clock")
    for target, value, met in rows:
        print(f"{target:50}{value:>25}  {'met' if met else 'NOT MET'}")
