"""Size of the activations by depth (Oyedotun, Shabayek, Aouada & Ottersten, ICPR 2020).

How to read this: each line is one moment of training, each column one run, and where every run
shows one iteration only (--steps N in a shell) each line is one run. The top panel shows the mean
absolute activation of each layer over that of the largest layer: a network that keeps its signal
has a level line, one that loses it falls to zero within a few layers, one that amplifies it rises
towards the right. The bottom panel shows the same unnormalised on a log axis, where a constant
factor per layer is a straight line and its slope the factor. Both are of the outputs of the
nonlinearities, or of all layers where there is no nonlinearity of torch.nn. A gap is a value that
is zero or not finite; a triangle at the top one that is infinite.

Options: steps (--steps), the iterations; layers (--layers), a regular expression for the names of
the layers to take; relative_depth=True (--set relative_depth=True), to compare networks of
different depths on one axis from 0 to 1, each at its last iteration.

Needs: activation.
"""

from collections.abc import Sequence
from functools import partial

import xarray as xr

from propkit import derived
from propkit.figures.by_depth import Panel, compare, draw_by_depth
from propkit.figures.runs import AnyRun, RunLike, need
from propkit.figures.snapshots import at_layers, at_steps, nonlinear, with_depth
from propkit.figures.style import Figure

_PANELS = (
    Panel("normalized", "mean |activation|,\nto the largest layer", limits=(-0.04, 1.08)),
    Panel("mean_abs", "mean |activation|", log=True),
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
        ``mean_abs`` (step, site) and ``normalized``, see `propkit.derived.normalized_mean_activation`, with
        coordinate ``depth``.

    Raises:
        FigureError: The run has no ``activation``, or no row of it; `steps` or `layers` select nothing.
    """
    dataset = at_steps(need(run, "activation", "activations"), steps, "activations")
    dataset = at_layers(dataset, layers, "activations") if layers else nonlinear(dataset)
    normalized = derived.normalized_mean_activation(dataset, include_parametric=True)
    mean = with_depth(dataset["mean_abs"])
    return xr.Dataset({"mean_abs": mean, "normalized": normalized.variable}).compute()


draw = partial(draw_by_depth, panels=_PANELS, x_label="layer index")
"""The ink, see `propkit.figures.by_depth.draw_by_depth`."""


def activations(
    run: AnyRun | Sequence[AnyRun],
    *more: AnyRun,
    labels: Sequence[str] | str | None = None,
    steps: Sequence[int] | None = None,
    layers: str | None = None,
    relative_depth: bool = False,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> Figure:
    """Mean absolute activation against layer index, normalised and on a log axis (Oyedotun et al., ICPR 2020).

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
