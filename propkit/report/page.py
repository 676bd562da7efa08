"""The page: one HTML file that needs nothing else, about one run or several."""

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from propkit import __version__
from propkit.diagnosis.verdict import Thresholds
from propkit.report import sections
from propkit.report.drawing import Drawing, draw_all
from propkit.report.layer import Layer
from propkit.report.layers import read_layers
from propkit.report.sections import badge, section, text

if TYPE_CHECKING:
    from propkit.store.run import Run

CURVES = "learning_curves"
"""The figure that stands in a section of its own."""

SUFFIXES = (".html", ".htm")


def page(
    runs: Mapping[str, "Run"],
    *,
    figures: Sequence[str] | None = None,
    thresholds: Thresholds | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> str:
    """The whole page as text; nothing in it refers to anything outside.

    Args:
        runs: Label -> run. Several are compared in the figures and have tables of their own.
        figures: Names of the figures; None: all that the runs allow.
        thresholds: What the verdicts are made by.
        progress: Is told what is being done.

    Raises:
        ValueError: There is no run.
    """
    if not runs:
        raise ValueError("a report needs at least one run")
    thresholds = thresholds or Thresholds()
    progress("reading the layers")
    layers = {label: read_layers(run, "last", thresholds) for label, run in runs.items()}
    before = {label: read_layers(run, "first", thresholds) for label, run in runs.items()}
    drawings, missing = draw_all(runs, figures, progress)
    title = f"Signal propagation: {', '.join(runs)}"
    parts = [
        _verdicts(runs, layers, before, thresholds),
        _figures("curves", "Training curves", [d for d in drawings if d.name == CURVES], runs),
        _figures("figures", "Figures", [d for d in drawings if d.name != CURVES], runs, missing),
        section(
            "values",
            "Last values by depth",
            *_each(runs, lambda label, i: sections.values(label, layers[label], f"run{i}")),
        ),
        section(
            "record",
            "How this was recorded",
            *_each(
                runs,
                lambda label, i: sections.recorded(
                    label, runs[label].attributes, runs[label].name, f"run{i}"
                ),
            ),
        ),
    ]
    return _document(
        title, _header(title, runs), _contents(drawings, bool(missing)), "\n".join(parts)
    )


def write_page(
    output: str | os.PathLike[str],
    runs: Mapping[str, "Run"],
    *,
    figures: Sequence[str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write the page to a file, all of it or nothing; see `page`.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The name does not end in ``.html``.
    """
    path = check_output(output)
    content = page(runs, figures=figures, progress=progress)
    # Written beside it and moved there: who reads the page meanwhile sees the old one, whole.
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        half.write_text(content, encoding="utf-8")
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)
    return path


def check_output(output: str | os.PathLike[str]) -> Path:
    """The path of a page to write.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The name does not end in ``.html``, or is that of a folder.
    """
    path = Path(output)
    if path.suffix.lower() not in SUFFIXES or path.is_dir():
        raise ValueError(f"cannot write {str(path)!r}: expected the name of an .html file")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}"
        )
    return path


def redraw_command(drawing: Drawing, runs: Mapping[str, "Run"]) -> str:
    """The command line that draws a figure of the page again."""
    shown = {label: runs[label] for label in drawing.labels}
    if not all(run.path for run in shown.values()) and not all(
        "://" in r.name for r in shown.values()
    ):
        return f"propkit.figures.find({drawing.name!r})(run)"
    words = ["python", "-m", "propkit.figures", drawing.name, *(r.name for r in shown.values())]
    if len(shown) > 1:
        words += ["--label", *shown]
    return shlex.join([*words, "-o", f"{drawing.name}.png"])


def _each(runs: Mapping[str, "Run"], part: Callable[[str, int], str]) -> list[str]:
    """A part for each run, under the run's name where there are several."""
    return [
        (f"<h3>{text(label)}</h3>" if len(runs) > 1 else "") + part(label, i)
        for i, label in enumerate(runs, start=1)
    ]


def _header(title: str, runs: Mapping[str, "Run"]) -> str:
    lines = []
    for label, run in runs.items():
        reason = f": {text(run.attributes['reason'])}" if run.attributes.get("reason") else ""
        steps = [c.last_step for c in run.contents.values() if c.last_step is not None]
        last = f"up to step {max(steps):,}" if steps else "nothing recorded yet"
        summary = run.attributes.get("model_summary") or run.attributes.get("model") or ""
        more = (
            " The run is still being written; write the page again to see more."
            if run.state == "running"
            else ""
        )
        lines.append(
            f"<p><strong>{text(label)}</strong> {badge(run.state or 'unknown')}{reason}, {last}."
            f"{more}{f' {text(summary)}.' if summary else ''}</p>"
        )
    return f"<header><h1>{text(title)}</h1>{''.join(lines)}</header>"


def _verdicts(
    runs: Mapping[str, "Run"],
    layers: Mapping[str, list[Layer]],
    before: Mapping[str, list[Layer]],
    thresholds: Thresholds,
) -> str:
    each = _each(
        runs, lambda label, i: sections.verdicts(label, layers[label], before[label], f"run{i}")
    )
    return section("verdicts", "Verdicts", *each, sections.thresholds_note(thresholds))


def _figures(
    identifier: str,
    title: str,
    drawings: Sequence[Drawing],
    runs: Mapping[str, "Run"],
    missing: Mapping[str, str] | None = None,
) -> str:
    parts = [sections.figure(d, redraw_command(d, runs)) for d in drawings]
    return section(
        identifier,
        title,
        *(parts or ["<p>None can be drawn.</p>"]),
        sections.not_drawn(missing or {}),
    )


def _contents(drawings: Sequence[Drawing], missing: bool) -> str:
    inner = "".join(
        f'<li><a href="#figure-{text(d.name)}">{text(d.name)}</a></li>'
        for d in drawings
        if d.name != CURVES
    )
    inner += '<li><a href="#not-drawn">not drawn</a></li>' if missing else ""
    figures = f"<ul>{inner}</ul>" if inner else ""
    return (
        '<nav aria-label="Contents"><ul>'
        '<li><a href="#verdicts">Verdicts</a></li><li><a href="#curves">Training curves</a></li>'
        f'<li><a href="#figures">Figures</a>{figures}</li>'
        '<li><a href="#values">Last values by depth</a></li>'
        '<li><a href="#record">How this was recorded</a></li></ul></nav>'
    )


def _document(title: str, header: str, nav: str, main: str) -> str:
    style = files("propkit.report").joinpath("page.css").read_text(encoding="utf-8")
    # The policy keeps the page from loading anything, whatever a name in it might say.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="propkit {__version__}">
<title>{text(title)}</title>
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the verdicts</a>
{header}
{nav}
<main id="main" tabindex="-1">
{main}
</main>
<footer><p>Written by propkit {__version__}.</p></footer>
</body>
</html>
"""
