"""One page: the other figures that can be drawn from what was recorded, small.

How to read this: each part of the page is one of the other figures, under its name; ``python -m
propkit.figures NAME --help`` says how to read it. The line at the bottom names the figures that
cannot be drawn, because what they need was not recorded.

Of several runs the parts are those that lay runs over each other, at the last iteration of each,
and one legend at the bottom names them: a run has the same colour and marker in all parts. Layers
are at relative depths, from 0 to 1, where the runs have different numbers of them.

Options: steps (--steps), the iterations of the parts that have snapshots; of several runs, one.

Needs: any one of the groups that the other figures need.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any

from matplotlib.lines import Line2D

from propkit.figures.curves import columns_below, legend_below
from propkit.figures.runs import AnyRun, FigureError, RunLike, gather
from propkit.figures.style import Canvas, Figure, ink, line_look, new_figure, styled

PARTS = (
    "learning_curves",
    "fig2",
    "fig3",
    "fig4",
    "surface",
    "activations",
    "conditioning",
    "norm_ratios",
    "isometry",
    "bn_spectra",
    "spectra",
    "mean_field",
    "fig6",
    "activation_images",
)
"""The figures on the page of one run, in this order."""

COMPARED = (
    "learning_curves",
    "fig2",
    "fig3",
    "fig4",
    "activations",
    "conditioning",
    "norm_ratios",
    "isometry",
    "bn_spectra",
)
"""The figures on the page of several: those that lay runs over each other."""

_WIDTH, _HEIGHT = 6.6, 4.6
_PER_ROW = 3


_END = 2**62
"""An iteration after the last one of any run."""


def prepare(
    run: RunLike, *, steps: Sequence[int] | None = None, names: Sequence[str] = PARTS
) -> tuple[dict[str, Any], dict[str, str]]:
    """The numbers of each part.

    Args:
        run: The run.
        steps: Iterations of the parts that have snapshots.
        names: The figures to prepare.

    Returns:
        Figure -> what its ``prepare`` returned, for those that the run has what it takes for; and
        figure -> why not, for the others.
    """
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for name in names:
        function: Callable[..., Any] = import_module(f"propkit.figures.{name}").prepare
        options = {"steps": steps} if "steps" in inspect.signature(function).parameters else {}
        try:
            found[name] = function(run, **options)
        except ValueError as error:  # FigureError is one
            missing[name] = str(error)
    return found, missing


def draw(
    parts: Mapping[str, Mapping[str, Any]],
    missing: Iterable[str],
    title: str,
    *,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> Figure:
    """The ink: a grid of figures.

    Args:
        parts: Figure -> label -> its numbers, of the same runs for each.
        missing: Figures that are not drawn.
        title: Above the page.
        size: Width and height in inches; None: as many parts need.
        dpi: Pixels per inch on screen.
    """
    labels = list(next(iter(parts.values())))
    columns = min(len(parts), _PER_ROW)
    rows = -(-len(parts) // columns)
    width = _WIDTH * columns
    shared = len(labels) > 1
    below = 0.2 * -(-len(labels) // columns_below(labels, width)) + 0.2 if shared else 0.0
    with styled():
        figure = new_figure(size or (width, _HEIGHT * rows + 0.7 + below), dpi)
        grid = figure.subfigures(rows, columns, squeeze=False, wspace=0.03, hspace=0.04)
        for cell, (name, numbers) in zip(grid.flat, parts.items(), strict=False):
            options = {"relative_depth": True} if shared and _differ(name, numbers) else {}
            function = import_module(f"propkit.figures.{name}").draw
            if shared and "named" in inspect.signature(function).parameters:
                options["named"] = False
            function(numbers, into=cell, **options)
            cell.suptitle(name, fontsize="medium", fontweight="bold")
            if shared:
                _without_legends(cell)
        figure.suptitle(title, fontsize="large", parse_math=False)
        missing = list(missing)
        text = f"not recorded, so not drawn: {', '.join(missing)}" if missing else ""
        if shared:
            looks = [line_look(i) | {"markersize": 4, "label": n} for i, n in enumerate(labels)]
            legend = legend_below(figure, [Line2D([], [], **look) for look in looks])
            # Where a label of the page would hide it.
            legend.get_title().set(text=text, fontsize="small", color=ink("text"))
        elif text:
            figure.supxlabel(text, gid="missing", fontsize="small", color=ink("text"))
    return figure


def _differ(name: str, numbers: Mapping[str, Any]) -> bool:
    """Whether a figure by depth shows networks of different depths; fig4 has a panel per run otherwise."""
    depths = [tuple(d["depth"].values) for d in numbers.values() if "depth" in d.coords]
    return len(depths) > 0 and (name == "fig4" or len(set(depths)) > 1)


def _without_legends(cell: Canvas) -> None:
    """Take out the legends of a part that name the runs: the page has one for all of them."""
    for legend in [*cell.legends, *(ax.get_legend() for ax in cell.axes)]:
        if legend is not None and legend.get_gid() != "kinds":
            legend.remove()


def overview(
    run: AnyRun | Sequence[AnyRun],
    *more: AnyRun,
    labels: Sequence[str] | str | None = None,
    steps: Sequence[int] | None = None,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> Figure:
    """All figures that can be drawn from a run, or those that compare several, on one page.

    Args:
        run: A run, its path, or several of them.
        more: More runs to compare.
        labels: One label per run; else the runs' own.
        steps: Iterations of the parts that have snapshots; of several runs one, by default the last of each.
        size: Width and height in inches; None: as many parts need.
        dpi: Pixels per inch on screen.

    Raises:
        FigureError: Nothing can be drawn, or several iterations of several runs are asked for.
    """
    runs = gather((run, *more), labels)
    several = len(runs) > 1
    if steps is not None and not len(steps):
        raise FigureError("overview: steps is empty; name at least one iteration, or leave it out")
    if several and steps is not None and len(steps) > 1:
        raise FigureError(
            f"overview compares {len(runs)} runs at one iteration, found steps={list(steps)}"
        )
    steps = [_END] if several and steps is None else steps
    names = COMPARED if several else PARTS
    found = {k: prepare(r, steps=steps, names=names) for k, r in runs.items()}
    # A part of all runs or none, so that colours mean the same everywhere.
    missing = {name: why for _, lacking in found.values() for name, why in lacking.items()}
    parts = {n: {k: there[n] for k, (there, _) in found.items()} for n in names if n not in missing}
    if not parts:
        first = next(iter(missing.values()))
        runs_ = "these runs" if several else "this run"
        raise FigureError(f"overview: nothing can be drawn from {runs_}; {first}")
    label, one = next(iter(runs.items()))
    title = f"{len(runs)} runs" if several else f"{label} ({one.state})"
    lacking = [name for name in names if name in missing]
    return draw(parts, lacking, title, size=size, dpi=dpi)
