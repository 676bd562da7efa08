"""What the runs of a sweep came to: one line per network, over its seeds."""

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import xarray as xr

_Values = NDArray[np.float64]

RECENT = 50
"""Last steps that training errors are the mean of."""

COLUMNS = (
    "network", "runs", "diverged", "steps", "train_error", "test_error", "best_test_error", "gap_mean",
    "gap_max",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """The runs of one network.

    Attributes:
        network: Name of the recipe.
        runs: Number of runs that are there.
        diverged: How many of them diverged; they are in no mean.
        steps: Optimiser steps, the most of any run.
        train_error: Mean over the runs of the mean error of the last `RECENT` steps, in per cent; NaN
            where there is none.
        test_error: Mean and standard deviation over the runs of the error on the test images after the
            last step, in per cent.
        best_test_error: Mean of the lowest test error.
        gap_mean: Mean over the evaluations of the generalisation gap, the test error less the mean
            training error since the evaluation before, in percentage points.
        gap_max: The largest one; the mean of the runs'.
    """

    network: str
    runs: int
    diverged: int
    steps: int
    train_error: float
    test_error: tuple[float, float]
    best_test_error: float
    gap_mean: float
    gap_max: float

    def cells(self) -> list[str]:
        """As text, in the order of `COLUMNS`."""
        mean, spread = self.test_error
        test = _number(mean) + (f" ± {spread:.2f}" if math.isfinite(spread) else "")
        numbers = [_number(x) for x in (self.best_test_error, self.gap_mean, self.gap_max)]
        counts = [str(n) for n in (self.runs, self.diverged, self.steps)]
        return [self.network, *counts, _number(self.train_error), test, *numbers]


def line(network: str, stores: Iterable[Path]) -> Line:
    """The line of one network.

    Args:
        network: Name of the recipe.
        stores: Its runs; those that are not there are left out.
    """
    from propkit.store.run import open as open_run

    runs = [open_run(store) for store in stores if store.exists()]
    gone = [diverged(store) for store in stores if store.exists()]
    curves = [
        _curves(run["log"])
        for run, bad in zip(runs, gone, strict=True)
        if not bad and "log" in run.groups
    ]
    steps = max((len(c[0]) for c in curves), default=0)
    train = [100 * (1 - float(np.mean(c[0][-RECENT:]))) for c in curves if len(c[0])]
    tests = [100 * (1 - c[1][np.isfinite(c[1])]) for c in curves]
    last = [float(t[-1]) for t in tests if len(t)]
    gaps = [g for g in (_gaps(*c) for c in curves) if len(g)]
    return Line(
        network,
        len(runs),
        sum(gone),
        steps,
        _mean(train),
        (_mean(last), float(np.std(last, ddof=1)) if len(last) > 1 else math.nan),
        _mean([float(t.min()) for t in tests if len(t)]),
        _mean([float(g.mean()) for g in gaps]),
        _mean([float(g.max()) for g in gaps]),
    )


def diverged(store: Path) -> bool:
    """Whether a run ended because its training diverged."""
    from propkit.store.run import open as open_run

    try:
        run = open_run(store)
    except (OSError, ValueError, LookupError):  # not there, or cut off before its first commit
        return False
    reason = str(run.attributes.get("reason", ""))
    return run.state == "failed" and reason.startswith("DivergenceError")


def table(lines: Sequence[Line]) -> str:
    """As text for a terminal."""
    rows = [[c.replace("_", " ") for c in COLUMNS], *(found.cells() for found in lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def save(lines: Sequence[Line], path: Path) -> None:
    """As a file of comma-separated values; the standard deviation has a column of its own."""
    columns = [*COLUMNS[:6], "test_error_std", *COLUMNS[6:]]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for found in lines:
            numbers = (
                found.train_error,
                *found.test_error,
                found.best_test_error,
                found.gap_mean,
                found.gap_max,
            )
            cells = [f"{x:.4f}" if math.isfinite(x) else "" for x in numbers]
            writer.writerow([found.network, found.runs, found.diverged, found.steps, *cells])


def _curves(log: "xr.Dataset") -> tuple[_Values, _Values]:
    """Accuracies of training and test by step."""
    train = np.asarray(log["accuracy"].values, dtype=float)
    test = log["test_accuracy"].values if "test_accuracy" in log else np.full(len(train), np.nan)
    return train, np.asarray(test, dtype=float)


def _gaps(train: _Values, test: _Values) -> _Values:
    found, begin = [], 0
    for end in (np.flatnonzero(np.isfinite(test)) + 1).tolist():
        found.append(100 * (float(train[begin:end].mean()) - float(test[end - 1])))
        begin = end
    return np.array(found)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"
