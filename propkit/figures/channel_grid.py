"""Layers by their numbers of channels: what the grid of `propkit.figures.procrustes_grid` is made of."""

import numpy as np
import xarray as xr

from propkit import derived
from propkit.figures.runs import FigureError


def averaged(dataset: xr.Dataset, end: int | None, window: int | None) -> np.ndarray:
    """Geometric mean over some rows of each block's ratio of gradient norms, output to input.

    Args:
        dataset: The group ``gradient_norm`` of a run.
        end: The iteration where the mean ends, the nearest recorded one being taken; None: the last.
        window: Recorded iterations that it runs over; None: a tenth of all.

    Returns:
        (site,), of the ratios that are finite and positive; NaN where none is.
    """
    recorded = dataset["step"].values
    last = len(recorded) if end is None else int(np.abs(recorded - end).argmin()) + 1
    rows = window or max(1, len(recorded) // 10)
    some = dataset.isel(step=slice(max(last - rows, 0), last))
    ratio = derived.gradient_norm_ratio(some, direction="upper").transpose("step", "site").values
    known = np.isfinite(ratio) & (ratio > 0)
    logs = np.log(np.where(known, ratio, 1.0)).sum(0) / np.maximum(known.sum(0), 1)
    return np.where(known.any(0), np.exp(logs), np.nan)


def channels(dataset: xr.Dataset, label: str) -> list[tuple[int, int]]:
    """Channels at the input and at the output of each block.

    Raises:
        FigureError: The shapes were not recorded, or have no channels.
    """
    if not {"input_shape", "output_shape"} <= set(dataset.coords):
        raise FigureError(f"procrustes_grid: run {label!r} has no shapes of its blocks")
    ends = []
    for received, returned in zip(
        dataset["input_shape"].values, dataset["output_shape"].values, strict=True
    ):
        shapes = [
            [int(n) for n in str(s).strip("()").split(",") if n.strip().isdigit()]
            for s in (received, returned)
        ]
        if min(map(len, shapes)) < 2:
            raise FigureError(
                f"procrustes_grid: run {label!r} has a block from {received or '?'} to "
                f"{returned or '?'}: expected shapes (samples, channels, ...)"
            )
        ends.append((shapes[0][1], shapes[1][1]))
    return ends


def cells(samples: xr.Dataset) -> xr.Dataset:
    """Statistics of samples with the same channels.

    Args:
        samples: ``ratio`` along ``sample``, with coordinates ``projected``, ``c_in`` and ``c_out``.

    Returns:
        Along ``grid``, ``row`` and ``column``, the distinct values of these: ``mean``, geometric;
        ``spread``, the standard deviation of the logarithm; ``count`` of finite and ``failed`` of
        other samples.
    """
    axes = {k: np.unique(samples[k].values) for k in ("projected", "c_in", "c_out")}
    shape = tuple(map(len, axes.values()))
    numbers = [np.searchsorted(axis, samples[k].values) for k, axis in axes.items()]
    cell = np.ravel_multi_index(numbers, shape)
    known = np.isfinite(samples["ratio"].values)
    logs, size = np.log(samples["ratio"].values[known]), int(np.prod(shape))
    count = np.bincount(cell[known], minlength=size)
    failed = np.bincount(cell[~known], minlength=size)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(cell[known], logs, size) / count
        squares = np.bincount(cell[known], (logs - mean[cell[known]]) ** 2, size)
        spread = np.sqrt(squares / np.where(count > 1, count - 1, np.nan))
    found = {"mean": np.exp(mean), "spread": spread, "count": count, "failed": failed}
    return xr.Dataset(
        {k: (("grid", "row", "column"), v.reshape(shape)) for k, v in found.items()},
        {
            "grid": axes["projected"],
            "row": axes["c_in"],
            "column": axes["c_out"],
        },
    )
