"""Singular values of the Jacobians of blocks, against isometry (arXiv:1312.6120, arXiv:1711.04735).

How to read this: each line is one moment of training, each column one run, and where every run
shows one iteration only (--steps N in a shell) each line is one run. The top panel shows what each
block does to the length of a random vector: the root mean square of the singular values of its
input-output Jacobian, on a log axis; the pale band reaches up to the largest, and down to the
smallest where that is known. At 1 with no band the block is an isometry: all errors keep their
length. The bottom panel shows the spread of the squared singular values relative to their mean: 0
for an isometry, 1 and more for most blocks; products of many blocks widen it. A network that is
dynamically isometric has both everywhere. The single point on the right is the whole network,
where the probe has measured it.

Options: steps (--steps), the iterations; layers (--layers), a regular expression for the names of
the blocks to take; relative_depth=True (--set relative_depth=True), to compare networks of
different depths on one axis from 0 to 1, each at its last iteration.

Needs: jacobian_spectrum.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import xarray as xr

from propkit.figures.by_depth import Panel, compare, draw_by_depth
from propkit.figures.runs import AnyRun, RunLike, need
from propkit.figures.snapshots import at_layers, at_steps
from propkit.figures.style import Figure

_PANELS = (
    Panel(
        "rms",
        "singular values of the\nblock's Jacobian",
        log=True,
        one=True,
        low="smallest",
        high="largest",
    ),
    Panel("spread", r"spread of $\sigma^2$"),
)


_NETWORK = "(model)"


def prepare(
    run: RunLike, *, steps: Sequence[int] | None = None, layers: str | None = None
) -> xr.Dataset:
    """The numbers of one run.

    Args:
        run: The run.
        steps: Iterations to show, see `propkit.figures.snapshots.snapshot_steps`.
        layers: Regular expression for the whole names of the blocks to take.

    Returns:
        ``rms``, ``largest``, ``smallest`` (NaN where it was not resolved) and ``spread`` (step, site), with coordinate
        ``depth``, the block's number among those observed; the whole network comes last, after a site of NaN that
        keeps it apart, and the attribute ``apart`` counts the two.

    Raises:
        FigureError: The run has no ``jacobian_spectrum``, or no row of it; `steps` or `layers` select nothing.
    """
    dataset = at_steps(need(run, "jacobian_spectrum", "isometry"), steps, "isometry")
    dataset = dataset.assign_coords(depth=("site", np.arange(1, dataset.sizes["site"] + 1)))
    dataset = at_layers(dataset, layers, "isometry")
    rms = dataset["mean_square"] ** 0.5
    least = dataset["smallest"] if "smallest" in dataset else xr.full_like(rms, np.nan)
    found = {"rms": rms, "largest": dataset["largest"], "smallest": least}
    return _apart(xr.Dataset(found | {"spread": dataset["spread"]}).compute())


def _apart(dataset: xr.Dataset) -> xr.Dataset:
    """A gap between the blocks and the whole network, whose Jacobian is the product of theirs."""
    if dataset.sizes["site"] < 2 or str(dataset["site"].values[-1]) != _NETWORK:
        return dataset
    gap = (dataset.isel(site=[-1]) * np.nan).assign_coords(site=["gap"])
    network = dataset.isel(site=[-1]).assign_coords(depth=dataset["depth"][-1:] + 1)
    whole = xr.concat([dataset.isel(site=slice(-1)), gap, network], "site")
    return whole.assign_attrs(apart=2)


draw = partial(draw_by_depth, panels=_PANELS, x_label="block")
"""The ink, see `propkit.figures.by_depth.draw_by_depth`."""


def isometry(
    run: AnyRun | Sequence[AnyRun],
    *more: AnyRun,
    labels: Sequence[str] | str | None = None,
    steps: Sequence[int] | None = None,
    layers: str | None = None,
    relative_depth: bool = False,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> Figure:
    """Singular values of the blocks' Jacobians and their spread, by depth.

    Arguments and errors are those of `propkit.figures.by_depth.compare`.
    """
    return compare(
        prepare,
        draw,
        (run, *more),
        labels=labels,
        steps=steps,
        layers=layers,
        relative_depth=relative_depth,
        size=size,
        dpi=dpi,
    )
