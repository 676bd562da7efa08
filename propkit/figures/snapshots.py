"""The recorded steps that a figure with snapshots shows, and the layers that it is asked to show."""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xarray as xr

from propkit.figures.runs import FigureError

PAPER_STEPS = (200, 2000, 20000, 30000)
"""The iterations of Fig. 4 of arXiv:1703.01827."""


def snapshot_steps(
    recorded: npt.NDArray[np.int64], steps: Sequence[int] | None = None
) -> npt.NDArray[np.int64]:
    """The recorded steps to show: those nearest to the ones wanted, ascending, each once.

    Args:
        recorded: All recorded steps, ascending, at least one.
        steps: The steps wanted. None: the paper's, or four log-spaced ones if the run ends before
            the last of them.

    >>> snapshot_steps(np.arange(0, 64001, 50))
    array([  200,  2000, 20000, 30000])
    >>> snapshot_steps(np.arange(0, 801, 10))
    array([ 10,  40, 190, 800])
    >>> snapshot_steps(np.arange(0, 801, 10), [0, 204, 206])
    array([  0, 200, 210])
    """
    if steps is None:
        last = int(recorded[-1])
        started = recorded[recorded > 0]
        if last >= PAPER_STEPS[-1] or not started.size:
            steps = PAPER_STEPS
        else:  # as many decades as in the paper
            first = max(int(started[0]), last * PAPER_STEPS[0] / PAPER_STEPS[-1])
            steps = np.geomspace(first, last, len(PAPER_STEPS)).tolist()
    nearest = [int(np.abs(recorded - step).argmin()) for step in steps]
    shown: npt.NDArray[np.int64] = recorded[np.unique(nearest)]
    return shown


def at_steps(dataset: xr.Dataset, steps: Sequence[int] | None, figure: str) -> xr.Dataset:
    """The rows to show, see `snapshot_steps`.

    Raises:
        FigureError: `steps` is empty.
    """
    if steps is not None and not len(steps):
        raise FigureError(f"{figure}: steps is empty; name at least one iteration, or leave it out")
    return dataset.sel(step=snapshot_steps(dataset["step"].values, steps))


def at_layers(dataset: xr.Dataset, layers: str | None, figure: str) -> xr.Dataset:
    """The sites whose whole names a regular expression matches; all if it is None.

    Raises:
        FigureError: It matches none, or is no regular expression.
    """
    return dataset if layers is None else dataset.isel(site=matching(dataset, layers, figure))


def matching(dataset: xr.Dataset, layers: str, figure: str) -> list[int]:
    """Positions of these sites."""
    names = [str(name) for name in dataset["site"].values]
    try:
        found = [i for i, name in enumerate(names) if re.fullmatch(layers, name)]
    except re.error as error:
        raise FigureError(
            f"{figure}: layers={layers!r} is no regular expression: {error}"
        ) from error
    if not found:
        shown = ", ".join(names if len(names) <= 8 else [*names[:4], "...", *names[-3:]])
        raise FigureError(
            f"{figure}: layers={layers!r} matches the whole name of no layer; there are {shown}"
        )
    return found


def nonlinear(dataset: xr.Dataset) -> xr.Dataset:
    """The nonlinearities among the sites, which have no weights; all sites where there is none."""
    if "fan_out" not in dataset.coords:
        return dataset
    found = np.flatnonzero(dataset["fan_out"].values == 0)
    return dataset.isel(site=found) if found.size else dataset


def with_depth(array: xr.DataArray) -> xr.DataArray:
    """The array with a coordinate ``depth``, counted from 1 where it was not recorded."""
    if "depth" in array.coords:
        return array
    return array.assign_coords(depth=("site", np.arange(1, array.sizes["site"] + 1)))
