"""Test error against the number of parameters (arXiv:1805.07477, Sec. 4.2).

How to read this: each small point is one run, each colour and marker one kind of network. Across is
its number of parameters, on a log axis, up the error on the test images after its last evaluation,
in per cent. Large points are the means over runs (seeds) of one size, their bars the standard
deviations, and lines join the sizes of one kind; the numbers beside them are depths. The further
down and to the left a line runs, the less it pays for its accuracy: the paper finds ProcResNets of
274 layers slightly better than residual networks of 1001.

best=True (--set best=True) takes the lowest error of each run in place of the last, as tables of
papers often do; it is too low by what the best of many noisy numbers gains.

Runs are of one kind where they have one model and differ in nothing but seed and depth; of those that
differ in more, as in their regulariser, none are averaged. Kinds of one run each bear the labels of the
runs. by (--set by=recipe.model) takes runs for one kind where that setting says the same of them,
whatever else differs.

Needs: log with accuracy and test_accuracy, which is not a probe: recorder.log(accuracy=a,
test_accuracy=b) in the training loop records them, and so does the sweep generalisation-gap.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullFormatter

from propkit.figures.curves import drawable, legend, log_axis, note
from propkit.figures.errors import error_curves, parameters_of
from propkit.figures.kinds import kinds_of
from propkit.figures.runs import AnyRun, FigureError, RunLike, configured, gather
from propkit.figures.style import Canvas, Figure, canvas, ink, line_look, statistical, styled


def prepare(
    runs: Mapping[str, RunLike], *, by: str | None = None, best: bool = False
) -> xr.Dataset:
    """The numbers of all runs.

    Args:
        runs: Label -> run.
        by: Setting that says which runs are of one kind; see `propkit.figures.kinds.kinds_of`.
        best: Take each run's lowest error, not its last one.

    Returns:
        Along ``run``: ``error``, in per cent, NaN where it is not finite; ``parameters``, their
        number; ``series``, its kind; ``depth``, NaN where the configuration has none.

    Raises:
        FigureError: A run has no ``log`` or no row of it, or neither accuracies nor errors in it, or
            does not say how many parameters its model has.
    """
    found: dict[str, list[float]] = {"error": [], "parameters": [], "depth": []}
    for label, run in runs.items():
        test = drawable(error_curves(run, "parameter_efficiency")["test"])
        test = np.append(np.nan, test[np.isfinite(test)])
        count, depth = parameters_of(run), configured(run, "depth")
        if not count > 0:
            raise FigureError(
                f"parameter_efficiency: run {label!r} does not say how many parameters its model "
                "has; propkit.attach(..., config={'parameters': N}) says it"
            )
        found["error"].append(float(np.fmin.reduce(test) if best else test[-1]))
        found["parameters"].append(count)
        found["depth"].append(float(depth) if isinstance(depth, int | float) else np.nan)
    series = list(kinds_of(runs, by).values())
    return xr.Dataset(
        {k: ("run", v) for k, v in found.items()},
        {"run": list(runs), "series": ("run", series)},
        {"label": f"{'lowest' if best else 'final'} test error (%)"},
    )


def draw(
    dataset: xr.Dataset,
    *,
    size: tuple[float, float] = (6.4, 4.4),
    dpi: float | None = None,
    into: Canvas | None = None,
) -> Figure:
    """The ink: points of runs, means and a line for each kind.

    Args:
        dataset: What `prepare` returned.
        size: Width and height in inches.
        dpi: Pixels per inch on screen.
        into: Part of a figure to draw on, in place of a new one.
    """
    with styled():
        figure = canvas(size, dpi, into)
        ax = figure.subplots()
        log_axis(ax, [dataset["parameters"].values], which="x")
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.xaxis.set_major_formatter(lambda x, _: _short(x))
        ax.xaxis.set_minor_formatter(NullFormatter())
        names = list(dict.fromkeys(dataset["series"].values.tolist()))
        lines = [
            _series(ax, dataset.isel(run=dataset["series"].values == name), i, name)
            for i, name in enumerate(names)
        ]
        if not np.isfinite(dataset["error"].values).any():
            note(ax, "no finite value")
        ax.set_xlabel("parameters")
        ax.set_ylabel(dataset.attrs["label"])
        legend(ax, lines)
    return figure


def _series(ax: Axes, runs: xr.Dataset, index: int, name: str) -> Line2D:
    look = line_look(index)
    frame = runs.reset_coords()[["parameters", "error"]].to_dataframe().dropna()
    if not frame.empty:
        shared = {"x": "parameters", "y": "error", "data": frame, "color": look["color"], "ax": ax}
        sns = statistical()
        if frame["parameters"].duplicated().any():
            sns.scatterplot(**shared, s=12, alpha=0.5, linewidth=0, zorder=2)
        bars = {"capsize": 2.0, "elinewidth": 1.1}
        marks = {"marker": look["marker"], "markersize": 6, "markeredgewidth": 0.0, "zorder": 3}
        sns.lineplot(
            **shared, **marks, linestyle=look["linestyle"], errorbar="sd", err_style="bars",
            err_kws=bars,
        )  # fmt: skip
        sizes = runs.to_dataframe().dropna().groupby("parameters")[["depth", "error"]].mean()
        for count, depth, error in sizes.reset_index().to_numpy().tolist():
            ax.annotate(
                f"{depth:.0f}",
                (count, error),
                (5, 5),
                textcoords="offset points",
                fontsize="small",
                color=ink("text"),
                path_effects=[withStroke(linewidth=3, foreground=ink("ground"))],  # over lines
                gid="depth",
            )
    return Line2D([], [], **look, markersize=6, markeredgewidth=0.0, label=name)


def _short(count: float) -> str:
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:g} {letter}"
    return f"{count:g}"


def parameter_efficiency(
    run: AnyRun | Sequence[AnyRun],
    *more: AnyRun,
    labels: Sequence[str] | str | None = None,
    by: str | None = None,
    best: bool = False,
    size: tuple[float, float] = (6.4, 4.4),
    dpi: float | None = None,
) -> Figure:
    """Test error against the number of parameters, a line per kind of network (arXiv:1805.07477).

    Args:
        run: A run, its path, a folder or pattern of runs, a study, or several of these.
        more: More runs to compare.
        labels: One label per run; else the runs' own.
        by: Setting that says which runs are of one kind and share a line, whatever else differs; None: those of
            one model that differ in nothing but seed and depth, see `propkit.figures.kinds.kinds_of`.
        best: Take each run's lowest error, not its last one.
        size: Width and height in inches.
        dpi: Pixels per inch on screen.

    Raises:
        FigureError: See `prepare`.
    """
    return draw(prepare(gather((run, *more), labels), by=by, best=best), size=size, dpi=dpi)
