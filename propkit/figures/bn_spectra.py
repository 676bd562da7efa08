"""Spectrum of the Jacobians of normalisation layers, by depth (arXiv:1703.01827, Sec. 3.1).

How to read this: each line is one moment of training, each column one run, and where every run
shows one iteration only (--steps N in a shell) each line is one run. The Jacobian of batch
normalisation has, in each channel, the eigenvalue rho = gamma / sigma for all directions but two,
which it cancels, exactly or nearly. The top panel shows the mean of abs(rho) over the channels of
each layer, on a log axis, and as a pale band its smallest and largest: at 1 errors pass unchanged,
above they are amplified, and a wide band treats channels differently. The bottom panel shows how
far J J^T is from a multiple of the identity, which the paper takes it for: 0 where all channels
have one rho, and never quite, for the two directions in each channel that are lost. Group, layer
and RMS normalisation are shown likewise.

Options: steps (--steps), the iterations; layers (--layers), a regular expression for the names of
the layers to take; relative_depth=True (--set relative_depth=True), to compare networks of
different depths on one axis from 0 to 1, each at its last iteration.

Needs: bn_jacobian.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import xarray as xr

from propkit.figures.by_depth import Panel, compare, draw_by_depth
from propkit.figures.runs import AnyRun, RunLike, need
from propkit.figures.snapshots import at_steps, matching
from propkit.figures.style import Figure

_PANELS = (
    Panel(
        "rho_mean", r"$|\rho| = |\gamma|/\sigma$", log=True, one=True, low="rho_min", high="rho_max"
    ),
    Panel("deviation", "deviation of $JJ^T$\nfrom a multiple of $I$", log=True),
)


def prepare(
    run: RunLike, *, steps: Sequence[int] | None = None, layers: str | None = None
) -> xr.Dataset:
    """The numbers of one run.

    Args:
        run: The run.
        steps: Iterations to show, see `propkit.figures.snapshots.snapshot_steps`.
        layers: Regular expression for the whole names of the layers to take.

    Returns:
        ``rho_mean``, ``rho_min``, ``rho_max`` and ``deviation`` (step, site), with coordinate ``depth``, the number of
        the layer among the normalisation layers.

    Raises:
        FigureError: The run has no ``bn_jacobian``, or no row of it; `steps` or `layers` select nothing.
    """
    dataset = at_steps(need(run, "bn_jacobian", "bn_spectra"), steps, "bn_spectra")
    number = np.arange(1, dataset.sizes["site"] + 1)
    names = [name for panel in _PANELS for name in panel.names]
    found = xr.Dataset({k: dataset[k].reset_coords(drop=True) for k in names})
    found = found.assign_coords(depth=("site", number))
    if layers:
        found = found.isel(site=matching(dataset, layers, "bn_spectra"))
    return found.compute()


draw = partial(draw_by_depth, panels=_PANELS, x_label="normalisation layer")
"""The ink, see `propkit.figures.by_depth.draw_by_depth`."""


def bn_spectra(
    run: AnyRun | Sequence[AnyRun],
    *more: AnyRun,
    labels: Sequence[str] | str | None = None,
    steps: Sequence[int] | None = None,
    layers: str | None = None,
    relative_depth: bool = False,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> Figure:
    """abs(rho) of normalisation layers and the deviation of J J^T from rho^2 I, by depth (arXiv:1703.01827).

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
