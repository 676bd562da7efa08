"""Measured moments against the mean-field prediction, by depth (arXiv:1606.05340, 1611.01232, 1902.08129).

How to read this: each column is one run, each colour one moment of training: symbols are measured,
lines predicted for a network of infinite width with the same weights' variances. The top panel
shows q, the mean square of the pre-activations, the bottom one q^l/qᴸ, the mean square of the error
at each layer over that at the last. Where symbols lie on the lines the network behaves as a random
one does; training moves them apart, and so do zero padding on small maps, which is not counted, and
a loss whose gradient is aligned with the output, as a squared one is behind ReLU. The first layer's
q is taken from the measurement, and the theory starts from there. With batch normalisation between
the layers q depends on one layer only, and the errors grow by E φ'²/Var φ per layer, 1.47 for ReLU,
whatever the weights.

Layers are taken as a chain, in order of execution: skip connections are not in this theory. The
variance of the weights times the fan-in, sigma_w2, is that of each layer where the probe weight was
recorded, else 2. Biases are not recorded: sigma_b2 is 0 unless given. The activation function is
recognised by its module.

Options: steps (--steps), the iterations, by default the first; layers (--layers), a regular
expression for the names of the layers to take; activation, sigma_w2, sigma_b2, slope and
batch_norm (--set sigma_b2=0.05 and so on) say what is not recorded.

Needs: activation and error_moment; weight for the variances.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.lines import Line2D

from propkit import derived
from propkit.figures.curves import (
    drawable,
    legend,
    literal,
    log_axis,
    log_axis_around_one,
    note,
    whole_axis,
)
from propkit.figures.mean_field_prediction import theory_of
from propkit.figures.runs import AnyRun, FigureError, RunLike, gather, need
from propkit.figures.snapshots import at_steps, matching
from propkit.figures.style import Canvas, Figure, canvas, step_looks, styled

_LABELS = ("q, mean square of\nthe pre-activations", "$q^l / q^L$ of the error")


def prepare(
    run: RunLike,
    *,
    steps: Sequence[int] | None = None,
    layers: str | None = None,
    activation: str | None = None,
    sigma_w2: float | None = None,
    sigma_b2: float = 0.0,
    slope: float = 0.01,
    batch_norm: bool | None = None,
) -> xr.Dataset:
    """The numbers of one run.

    Args:
        run: The run.
        steps: Iterations to show; None: the first recorded one.
        layers: Regular expression for the whole names of the layers to take; None: the convolutions, or all with
            weights where there are not two of them.
        activation: Name as for `propkit.spectra.MeanField`; None: recognised.
        sigma_w2: Variance of the weights times the fan-in; None: as recorded for each layer, else 2.
        sigma_b2: Variance of the biases.
        slope: Of ``leaky_relu``.
        batch_norm: Whether normalisation follows each layer; None: whether the model has any.

    Returns:
        (step, site) with coordinate ``depth``: ``q`` and ``q_predicted``, ``error`` and ``error_predicted``; attribute
        ``theory``, what was predicted for.

    Raises:
        FigureError: The run lacks ``activation`` or ``error_moment``, or has no row of it; `steps` or `layers` select
            nothing; the activation function is not recognised; fewer than two layers are left.
        ValueError: An unknown activation or a negative variance.
    """
    measured = need(run, "activation", "mean_field")
    errors = need(run, "error_moment", "mean_field")
    chain = matching(errors, layers, "mean_field") if layers else derived.layers(errors)
    errors = errors.isel(site=chain)
    known = set(map(str, measured["site"].values))
    names = [str(s) for s in errors["site"].values if str(s) in known]
    if len(names) < 2:
        raise FigureError(
            f"mean_field needs two layers that both 'activation' and 'error_moment' have, found {len(names)}"
        )
    theory = theory_of(run, activation, sigma_b2, slope, batch_norm)
    recorded = np.intersect1d(measured["step"].values, errors["step"].values)
    if not recorded.size:
        raise FigureError("mean_field: 'activation' and 'error_moment' have no iteration in common")
    first = [int(recorded[0])] if steps is None else steps
    errors = at_steps(errors.sel(step=recorded), first, "mean_field").sel(site=names)
    q = measured["mean_square"].sel(step=errors["step"], site=names).transpose("step", "site")
    ratio = errors["output"] / errors["output"].isel(site=-1, drop=True)
    variances = _variances(run, names, errors["step"].values, sigma_w2)
    sizes = _sizes(errors)
    rows = [
        theory.predict(first_q, w, sizes)
        for first_q, w in zip(q.values[:, 0], variances, strict=True)
    ]
    shape = ("step", "site")
    return xr.Dataset(
        {
            "q": (shape, q.values),
            "error": (shape, ratio.values),
            "q_predicted": (shape, np.stack([lengths for lengths, _ in rows])),
            "error_predicted": (shape, np.stack([moments for _, moments in rows])),
        },
        {
            "step": errors["step"].values,
            "site": names,
            "depth": ("site", np.arange(1, len(names) + 1)),
        },
        {"theory": theory.description},
    )


def _variances(
    run: RunLike, names: Sequence[str], steps: np.ndarray, given: float | None
) -> np.ndarray:
    """σ_w² of each layer at each step, (steps, layers): mean squared norm of a filter."""
    constant = np.full((len(steps), len(names)), 2.0 if given is None else float(given))
    if given is not None or "weight" not in run or not run["weight"].sizes.get("step"):
        return constant
    weight = run["weight"]
    where = {str(s): i for i, s in enumerate(weight["site"].values)}
    owners = [n if n in where else n.partition("#")[0] for n in names]
    if any(owner not in where for owner in owners) or "fan_out" not in weight.coords:
        return constant
    weight = weight.isel(site=[where[owner] for owner in owners])
    norms = weight["norm"].sel(step=steps, method="nearest").values
    with np.errstate(over="ignore"):
        return np.asarray(norms**2 / np.maximum(weight["fan_out"].values, 1))


def _sizes(errors: xr.Dataset) -> np.ndarray:
    """Elements of each layer's output, which moments are means over; 1 where they are not recorded."""
    shapes = errors["output_shape"].values if "output_shape" in errors.coords else [""]
    numbers = [[int(n) for n in str(s).strip("()").split(",") if n.strip()] for s in shapes]
    if not all(numbers):
        return np.ones(errors.sizes["site"])
    return np.array([float(np.prod(n)) for n in numbers])


def draw(
    datasets: Mapping[str, xr.Dataset],
    *,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
    into: Canvas | None = None,
) -> Figure:
    """The ink: lengths above, errors below, a column per dataset.

    Args:
        datasets: Label -> what `prepare` returned.
        size: Width and height in inches; None: as many panels need.
        dpi: Pixels per inch on screen.
        into: Part of a figure to draw on, in place of a new one.
    """
    columns = len(datasets)
    with styled():
        figure = canvas(size or (1.8 + 3.9 * max(columns, 1.2), 6.0), dpi, into)
        axes = figure.subplots(2, columns, sharex=True, sharey="row", squeeze=False)
        for row, name, label in zip(axes, ("q", "error"), _LABELS, strict=True):
            every = [d[v].values for d in datasets.values() for v in (name, f"{name}_predicted")]
            for ax, (run, dataset) in zip(row, datasets.items(), strict=True):
                (log_axis if name == "q" else log_axis_around_one)(ax, every)
                handles: list[Line2D] = []
                for i, look in enumerate(step_looks(dataset.sizes["step"])):
                    x, color = dataset["depth"], look["color"]
                    predicted = drawable(dataset[f"{name}_predicted"][i], log=True)
                    ax.plot(x, predicted, color=color, linewidth=1.4, gid="predicted")
                    step = int(dataset["step"].values[i])
                    marks: dict[str, Any] = {
                        "marker": look["marker"],
                        "markersize": 4,
                        "linestyle": "none",
                    }
                    handles += ax.plot(
                        x,
                        drawable(dataset[name][i], log=True),
                        color=color,
                        label=f"iteration {step:,}",
                        gid="measured",
                        **marks,
                    )
                if not np.isfinite(drawable(dataset[name], log=True)).any():
                    note(ax, "no value on a log axis")
                whole_axis(ax, (d["depth"] for d in datasets.values()))
                if name == "q":
                    literal(ax.set_title(run))
                    text = f"theory: {dataset.attrs['theory']}"
                    theory = Line2D([], [], color=handles[0].get_color(), label=text)
                    legend(ax, [*handles, theory])
                else:
                    ax.set_xlabel("layer index")
            row[0].set_ylabel(label)
        figure.align_ylabels()
    return figure


def mean_field(
    run: AnyRun | Sequence[AnyRun],
    *more: AnyRun,
    labels: Sequence[str] | str | None = None,
    steps: Sequence[int] | None = None,
    layers: str | None = None,
    activation: str | None = None,
    sigma_w2: float | None = None,
    sigma_b2: float = 0.0,
    slope: float = 0.01,
    batch_norm: bool | None = None,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> Figure:
    """Lengths and errors by depth, measured and predicted by mean-field theory.

    Args:
        run: A run, its path, or several of them.
        more: More runs to compare.
        labels: One label per run; else the runs' own.
        steps: Iterations to show; None: the first recorded one.
        layers: Regular expression for the whole names of the layers to take.
        activation: Name of the activation function; None: recognised.
        sigma_w2: Variance of the weights times the fan-in; None: as recorded.
        sigma_b2: Variance of the biases.
        slope: Of ``leaky_relu``.
        batch_norm: Whether normalisation follows each layer; None: recognised.
        size: Width and height in inches; None: as many panels need.
        dpi: Pixels per inch on screen.

    Raises:
        FigureError: See `prepare`.
        ValueError: An unknown activation or a negative variance.
    """
    runs = gather((run, *more), labels)
    known: dict[str, Any] = {"activation": activation, "sigma_w2": sigma_w2, "sigma_b2": sigma_b2}
    known |= {"slope": slope, "batch_norm": batch_norm}
    datasets = {k: prepare(r, steps=steps, layers=layers, **known) for k, r in runs.items()}
    return draw(datasets, size=size, dpi=dpi)
