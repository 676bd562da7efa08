"""What Jupyter shows of a run and of a recorder: HTML that is short, escaped and never an error.

Nothing here reads values, writes rows or waits for a device: a run of a million steps is shown as fast as one of ten.
"""

import html
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from propkit.schedules import name_of

if TYPE_CHECKING:
    from propkit.recording.recorder import Recorder
    from propkit.store.run import Run

MOST_ROWS = 60
"""Rows of a table that are shown."""

MOST_CHARACTERS = 300
"""Characters of a cell that are shown."""

_REMARKS = ("faults", "not_finite", "notes")
"""Attributes of a run that a reader has to see without asking."""


def run_html(run: "Run") -> str:
    """A run: its state, what its groups hold, what went wrong; the attributes unfold."""
    return _guarded(run, _run)


def recorder_html(recorder: "Recorder") -> str:
    """A recorder: what it measures, when and where, what waits to be written, what went wrong."""
    return _guarded(recorder, _recorder)


def _guarded(thing: Any, build: Callable[[Any], str]) -> str:
    try:
        return build(thing)
    except Exception as error:  # a notebook would print the whole traceback in place of the object
        text = f"propkit.{type(thing).__name__} (cannot be shown: {type(error).__name__}: {error})"
        return f"<pre>{_escaped(text)}</pre>"


def _run(run: "Run") -> str:
    attributes = run.attributes
    facts = [run.state, attributes.get("reason"), attributes.get("model"), run.name]
    rows = [
        (name, held.rows, held.sites, ", ".join(held.variables), held.last_step)
        for name, held in _first(run.contents.items())
    ]
    return "".join(
        (
            f"<div>{_headline('propkit.Run', run.label, facts)}",
            _table(("group", "steps", "sites", "variables", "last step"), rows, len(run.contents)),
            _remarks({key: attributes.get(key) for key in _REMARKS}),
            "<details><summary>attributes</summary>",
            _table((), list(_first(attributes.items())), len(attributes)),
            "</details></div>",
        )
    )


def _recorder(recorder: "Recorder") -> str:
    outbox, sites = recorder._outbox, recorder._layout._sites.values()
    observed = [p.name for site in sites for p in site.probes]
    rows = [
        (name, _when(schedule), observed.count(name), "off" if name in outbox.faults else "on")
        for name, schedule in _first(recorder._schedules.items())
    ]
    state = "detached" if recorder._detached else "recording"
    facts = [f"step {recorder.steps}", f"{len(outbox.rows)} rows not written yet"]
    cost = recorder._overhead.report()
    if cost["measured_steps"]:
        facts.append(f"{cost['share']:.1%} of the training's time ({cost['basis']})")
    return "".join(
        (
            f"<div>{_headline('propkit.Recorder', state, facts)}",
            _table(("probe", "measured at", "modules", ""), rows, len(recorder._schedules)),
            _remarks({"faults": outbox.faults, "notes": outbox._notes}),
            "<p><code>recorder.run</code> is the run so far.</p></div>",
        )
    )


def _when(schedule: Any) -> str:
    name = name_of(schedule)
    if isinstance(name, int):
        return "every step" if name == 1 else f"every {name} steps"
    return name


def _headline(kind: str, name: str, facts: Iterable[object]) -> str:
    told = ", ".join(_escaped(fact) for fact in facts if fact not in (None, ""))
    return f"<p><b>{kind}</b> <code>{_escaped(name)}</code>: {told}</p>"


def _table(titles: Sequence[str], rows: Sequence[Sequence[object]], total: int) -> str:
    head = "".join(f"<th>{title}</th>" for title in titles)
    head = f"<thead><tr>{head}</tr></thead>" if head else ""
    body = "".join(
        f'<tr><th style="text-align:left">{_escaped(first)}</th>'
        + "".join(map(_cell, rest))
        + "</tr>"
        for first, *rest in rows
    )
    more = f"<p>and {total - len(rows)} more</p>" if total > len(rows) else ""
    return f"<table>{head}<tbody>{body}</tbody></table>{more}"


def _cell(value: object) -> str:
    style = "" if value is None or isinstance(value, int) else ' style="text-align:left"'
    return f"<td{style}>{_escaped(value)}</td>"


def _remarks(found: Mapping[str, Any]) -> str:
    """Lists of what was left out or went wrong; nothing where there is nothing."""
    lists = []
    for title, held in found.items():
        if not held:
            continue
        if isinstance(held, Mapping):
            lines = [f"{key}: {value}" for key, value in _first(held.items())]
        elif isinstance(held, (list, tuple)):
            lines = list(_first(held))
        else:
            lines = [held]
        more = len(held) - len(lines) if isinstance(held, (Mapping, list, tuple)) else 0
        lines += [f"and {more} more"] if more > 0 else []
        items = "".join(f"<li>{_escaped(line)}</li>" for line in lines)
        lists.append(f"<p>{_escaped(title.replace('_', ' '))}</p><ul>{items}</ul>")
    return "".join(lists)


def _first(items: Iterable[Any]) -> Iterable[Any]:
    return itertools.islice(items, MOST_ROWS)


def _escaped(value: object) -> str:
    """Text of a cell, shortened, then escaped."""
    text = "" if value is None else str(value)
    if len(text) > MOST_CHARACTERS:
        text = f"{text[:MOST_CHARACTERS]}…"
    return html.escape(text)
