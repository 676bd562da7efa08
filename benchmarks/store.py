"""What keeping a run costs: propkit's store beside other formats, written block by block in one process.

    python benchmarks/store.py                        # some minutes, and 3 GB of disk
    python benchmarks/store.py --folder /dev/shm      # in memory: without what the disk adds
    python benchmarks/store.py --quick                # a trial of the script

Other formats are optional; those that are not installed are listed with the command that installs them. How each number
is measured, and what came out, is in benchmarks/README.md.
"""

import argparse
import contextlib
import gc
import logging
import os
import platform
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from storing.formats import FORMATS, OURS, RAW, Format, bytes_on_disk
from storing.rows import QUANTITIES, Diagnostics, Shape
from storing.tables import Cost, Written, print_flushes, print_targets
from storing.writers import Writer
from watching.rounds import spread

from propkit import __version__

ROWS = 64
READS = 7
QUANTITY, LAYER = "q3", 7
PARTS = ("flush", "shapes")


def timed(call: Callable[[], Any]) -> tuple[Any, Cost]:
    """What it returns, and what it costs."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, Cost(time.perf_counter() - wall, time.process_time() - cpu)


def part_flush(
    formats: Sequence[Format], data: Diagnostics, folder: Path, rows: int
) -> dict[str, Written]:
    """All flushes, round by round in random order, then the reading in turns."""
    paths = {f.label: folder / f"run{i}" for i, f in enumerate(formats)}
    rounds = len(data.wide) // rows
    last = {f.label: max(2, ceil(rounds * f.share)) for f in formats}
    costs: dict[str, dict[int, Cost]] = {f.label: {} for f in formats}
    with writers(formats, paths, data.shape) as open_writers:
        for i in range(rounds):
            block, order = data.block(i * rows, rows), [f for f in formats if i < last[f.label]]
            random.Random(i).shuffle(order)
            for f in order:
                writer = open_writers[f.label]
                _, costs[f.label][i] = timed(lambda w=writer, b=block: w.flush(b))
    reading: dict[str, list[tuple[Cost, Cost]]] = {f.label: [] for f in formats}
    warned: dict[str, set[str]] = {f.label: set() for f in formats}
    for turn in range(READS):
        for f in formats:
            if f.share < 0.1 and turn:  # one reading of the slowest will do
                continue
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                reading[f.label].append(_read(f, paths[f.label], data, last[f.label] * rows))
            warned[f.label].update(str(w.message) for w in caught)
    result = {}
    for f in formats:
        opened, read = zip(*reading[f.label], strict=True)
        size, files = bytes_on_disk(paths[f.label])
        result[f.label] = Written(
            costs[f.label],
            last[f.label] * rows,
            size,
            files,
            list(opened),
            list(read),
            warned[f.label],
        )
    return result


def _read(f: Format, path: Path, data: Diagnostics, rows: int) -> tuple[Cost, Cost]:
    """Open what was written, read one layer's series, and see that it is what was written."""
    opened, cost = timed(lambda: f.open(path))
    series, more = timed(lambda: f.series(opened, data.shape, QUANTITY, LAYER))
    expected = data.series(QUANTITY, LAYER)[:rows]
    precision = 1e-6 if f.label == "TensorBoard" else 0
    np.testing.assert_allclose(series, expected, rtol=precision, err_msg=f.label)
    if hasattr(opened, "close"):
        opened.close()
    return cost, more


@contextlib.contextmanager
def writers(
    formats: Sequence[Format], paths: dict[str, Path], shape: Shape
) -> Iterator[dict[str, Writer]]:
    """A writer per format, closed in the end."""
    made = {f.label: f.create(paths[f.label], shape) for f in formats}
    gc.collect()
    gc.freeze()
    try:
        yield made
    finally:
        for writer in made.values():
            writer.close()


def part_shapes(
    formats: Sequence[Format], folder: Path, layers: int, dtype: str, quick: bool
) -> dict[str, Cost]:
    """Other flushes: one row, many rows, wide rows; the share of raw speed that propkit's store reaches."""
    fast = [f for f in formats if f.share == 1]
    shares = {}
    for name, rows, width, flushes in (
        ("1 row", 1, layers, 400),
        ("1,024 rows", 1024, layers, 50),
        ("1,000 layers", 64, 1000, 50),
    ):
        flushes = 8 if quick else flushes
        here = [f for f in fast if f.label != "SQLite, wide" or QUANTITIES * width < 2000]
        data = Diagnostics(rows * 8, width, dtype)
        place = folder / name
        place.mkdir()
        paths = {f.label: place / f"run{i}" for i, f in enumerate(here)}
        costs: dict[str, list[Cost]] = {f.label: [] for f in here}
        with writers(here, paths, data.shape) as open_writers:
            for i in range(flushes):
                block = data.block(i % 8 * rows, rows)
                block = block._replace(step=np.arange(i * rows, (i + 1) * rows))
                random.Random(i).shuffle(here)
                for f in here:
                    writer = open_writers[f.label]
                    costs[f.label].append(timed(lambda w=writer, b=block: w.flush(b))[1])
        print(f"\nA flush of {rows} rows of {width} layers, {flushes} times")
        for label, found in sorted(
            costs.items(), key=lambda item: spread([c.wall for c in item[1]])[1]
        ):
            wall, cpu = (spread([1e3 * c[k] for c in found]) for k in (0, 1))
            print(f"{label:27}{wall!s:>27} ms on the wall{cpu!s:>27} ms of CPU")
        pairs = list(zip(costs[RAW], costs[OURS], strict=True))
        shares[name] = Cost(
            *(spread([raw[k] / own[k] for raw, own in pairs]).median for k in (0, 1))
        )
        shutil.rmtree(place)
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=64_000)
    parser.add_argument("--layers", type=int, default=44)
    parser.add_argument("--dtype", choices=["float64", "float32"], default="float64")
    parser.add_argument(
        "--folder", type=Path, help="where to write (default: the system's temporary folder)"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="few steps: a trial of the script")
    a = parser.parse_args()
    if a.quick:
        a.steps = 2048
    a.steps -= a.steps % ROWS
    if a.steps < 2 * ROWS or a.layers <= LAYER:
        parser.error(f"expected at least {2 * ROWS} steps and {LAYER + 1} layers")
    logging.disable(logging.WARNING)
    present, versions = [], {}
    for f in FORMATS:
        try:
            if f.package:
                versions[f.package] = import_module(f.package).__version__
            present.append(f)
        except ImportError:
            print(f"skipped: {f.label} (pip install {f.package})")
    others = ", ".join(f"{k} {v}" for k, v in versions.items())
    print(
        f"{a.steps} steps x {a.layers} layers x {QUANTITIES} quantities, {a.dtype}; propkit {__version__}, "
        f"zarr {import_module('zarr').__version__}, {others}; Python {platform.python_version()}"
    )
    print(
        f"load of this machine at the start: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
        flush=True,
    )
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(dir=a.folder, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        found: dict[str, Written] = {}
        shares: dict[str, Cost] = {}
        if "flush" in a.parts:
            found = part_flush(present, Diagnostics(a.steps, a.layers, a.dtype), folder, ROWS)
            print_flushes(found, ROWS, np.dtype(a.dtype).itemsize * QUANTITIES * a.layers)
            sys.stdout.flush()
        if "shapes" in a.parts:
            shares = part_shapes(present, folder, a.layers, a.dtype, a.quick)
        print_targets(found, shares, a.layers, a.dtype)
    print(f"load at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
