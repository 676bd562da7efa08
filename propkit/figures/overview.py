"""One page per run: all other figures that can be drawn from what was recorded, small.

How to read this: each part of the page is one of the other figures, under its name; ``python -m
propkit.figures NAME --help`` says how to read it. The line at the bottom names the figures that
cannot be drawn, because what they need was not recorded.

Options: steps (--steps), the iterations of the parts that have snapshots.

Needs: any one of the groups that the other figures need.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from propkit.figures.runs import AnyRun, FigureError, RunLike, gather
from propkit.figures.style import Figure, ink, new_figure, styled

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
)
"""The figures on the page, in this order."""

_WIDTH, _HEIGHT = 6.6, 4.6
_PER_ROW = 3


def prepare(
    run: RunLike, *, steps: Sequence[int] | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The numbers of each part.

    Args:
        run: The run.
        steps: Iterations of the parts that have snapshots.

    Returns:
        Figure -> what its ``prepare`` returned, for those that the run has what it takes for; and
        figure -> why not, for the others.
    """
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for name in PARTS:
        function: Callable[..., Any] = import_module(f"propkit.figures.{name}").prepare
        options = {"steps": steps} if "steps" in inspect.signature(function).parameters else {}
        try:
            found[name] = function(run, **options)
        except ValueError as error:  # FigureError is one
            missing[name] = str(error)
    return found, missing


def draw(
    parts: Mapping[str, Any],
    missing: Mapping[str, str],
    label: str,
    title: str,
    *,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> Figure:
    """The ink: a grid of figures.

    Args:
        parts: Figure -> its numbers.
        missing: Figures that are not drawn.
        label: Of the run.
        title: Above the page.
        size: Width and height in inches; None: as many parts need.
        dpi: Pixels per inch on screen.
    """
    columns = min(len(parts), _PER_ROW)
    rows = -(-len(parts) // columns)
    with styled():
        figure = new_figure(size or (_WIDTH * columns, _HEIGHT * rows + 0.7), dpi)
        grid = figure.subfigures(rows, columns, squeeze=False, wspace=0.03, hspace=0.04)
        for cell, (name, numbers) in zip(grid.flat, parts.items(), strict=False):
            import_module(f"propkit.figures.{name}").draw({label: numbers}, into=cell)
            cell.suptitle(name, fontsize="medium", fontweight="bold")
        figure.suptitle(title, fontsize="large", parse_math=False)
        if missing:
            text = f"not recorded, so not drawn: {', '.join(missing)}"
            figure.supxlabel(text, fontsize="small", color=ink("text"), gid="missing")
    return figure


def overview(
    run: AnyRun | Sequence[AnyRun],
    *more: AnyRun,
    labels: Sequence[str] | str | None = None,
    steps: Sequence[int] | None = None,
    size: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> Figure:
    """All figures that can be drawn from a run, on one page.

    Args:
        run: A run, or its path.
        more: No more than one run fits on the page.
        labels: A label for the run; else its own.
        steps: Iterations of the parts that have snapshots.
        size: Width and height in inches; None: as many parts need.
        dpi: Pixels per inch on screen.

    Raises:
        FigureError: Nothing can be drawn, or several runs were given.
    """
    runs = gather((run, *more), labels)
    if len(runs) > 1:
        raise FigureError(
            f"overview is a page for one run, found {len(runs)}; the other figures compare runs"
        )
    ((label, one),) = runs.items()
    if steps is not None and not len(steps):
        raise FigureError("overview: steps is empty; name at least one iteration, or leave it out")
    parts, missing = prepare(one, steps=steps)
    if not parts:
        first = next(iter(missing.values()))
        raise FigureError(f"overview: nothing can be drawn from this run; {first}")
    return draw(parts, missing, label, f"{label} ({one.state})", size=size, dpi=dpi)
