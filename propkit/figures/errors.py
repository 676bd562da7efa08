"""Training and test errors that the training loop logged, in per cent, and what the runs are."""

import re
from collections.abc import Mapping

import numpy as np
import xarray as xr

from propkit.figures.learning_curves import split
from propkit.figures.runs import FigureError, RunLike, configured, need

_TRAINING = ("", "train")
_MEANS = 80
"""Points of the training error where the test images were rarely looked at."""


def error_curves(run: RunLike, figure: str) -> xr.Dataset:
    """Errors of one run, from the logged ``accuracy`` or ``error`` and its like with a prefix (``test_``, ``val_``).

    Args:
        run: The run.
        figure: Who asks, for the message.

    Returns:
        In per cent. Along ``step``: ``train``, each value the mean since the one before; these are
        the steps of the evaluations where there are ten, else there are up to 80. Along
        ``evaluation``, the steps at which test images were looked at: ``test``, ``gap``: test minus
        the mean training error since the evaluation before, and that mean itself, ``train_then``.

    Raises:
        FigureError: Nothing of the kind was logged.
    """
    dataset = need(run, "log", figure).compute()
    steps = dataset["step"].values
    training, test = (_error(dataset, held_out) for held_out in (False, True))
    if training is None or test is None:
        lacking = "training accuracy" if training is None else "accuracy on test images"
        name = "accuracy" if training is None else "test_accuracy"
        raise FigureError(
            f"{figure}: run {run.label!r} has no {lacking}; there are: "
            f"{', '.join(map(str, dataset.data_vars)) or 'none'}. recorder.log({name}=value) logs it, "
            "as `python -m propkit train RECIPE --set evaluate_every=N` does"
        )
    rows = np.flatnonzero(~np.isnan(test))
    often = rows if len(rows) >= 10 else _spaced(len(steps))
    then = _means(training, rows)
    with np.errstate(invalid="ignore", over="ignore"):
        gap = test[rows] - then
    return xr.Dataset(
        {
            "train": ("step", _means(training, often)),
            "test": ("evaluation", test[rows]),
            "train_then": ("evaluation", then),
            "gap": ("evaluation", gap),
        },
        {"step": steps[often], "evaluation": steps[rows]},
    )


def _spaced(count: int) -> np.ndarray:
    ends: np.ndarray = np.unique(np.linspace(0, count, min(count, _MEANS) + 1).astype(int))[1:] - 1
    return ends


def _error(dataset: xr.Dataset, held_out: bool) -> np.ndarray | None:
    """Error in per cent of all rows; NaN where it was not logged."""
    for quantity in ("error", "accuracy"):
        for name in map(str, dataset.data_vars):
            prefix, what = split(name)
            if what == quantity and (prefix not in _TRAINING) == held_out:
                values = dataset[name].values.astype(np.float64)
                with np.errstate(over="ignore"):
                    return np.asarray(100.0 * (values if what == "error" else 1.0 - values))
    return None


def _means(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Means of what is known of the rows up to each end, since the end before; NaN of nothing."""
    known = ~np.isnan(values)
    number = np.searchsorted(ends, np.arange(len(values)))
    inside = known & (number < len(ends))
    count = np.bincount(number[inside], minlength=len(ends))
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        total = np.bincount(number[inside], values[inside], len(ends))
        return np.where(count > 0, total / count, np.nan)


def parameters_of(run: RunLike) -> float:
    """Number of the model's parameters; NaN where the run does not say."""
    value = configured(run, "parameters")
    if isinstance(value, int | float):
        return float(value)
    found = re.search(r"([\d,]+) parameters", str(run.attributes.get("model_summary", "")))
    return float(found[1].replace(",", "")) if found else np.nan


def depth_groups(depths: Mapping[str, int | None]) -> dict[str, list[str]]:
    """Runs of about the same depth: a group's largest is at most a sixth, or 2, more than its smallest.

    Args:
        depths: Label -> depth; None where it is not known, which is a group of its own.

    Returns:
        Title -> labels, shallow networks first.

    >>> depth_groups({"plain20": 20, "procresnet22": 22, "plain83": 83, "mine": None})
    {'20 to 22 layers': ['plain20', 'procresnet22'], '83 layers': ['plain83'], '': ['mine']}
    """
    known = sorted({depth for depth in depths.values() if depth is not None})
    groups: list[list[int]] = []
    for depth in known:
        if groups and depth - groups[-1][0] <= max(2, groups[-1][0] / 6):
            groups[-1].append(depth)
        else:
            groups.append([depth])
    titled = {
        f"{g[0]} to {g[-1]} layers" if len(g) > 1 else f"{g[0]} layers": [
            label for label, depth in depths.items() if depth in g
        ]
        for g in groups
    }
    unknown = [label for label, depth in depths.items() if depth is None]
    return titled | ({"": unknown} if unknown else {})
