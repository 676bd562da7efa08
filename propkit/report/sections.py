"""The parts of the page, as HTML. Everything that comes from a run is escaped here."""

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from propkit.diagnosis.render import number
from propkit.diagnosis.verdict import HEALTHY, Thresholds
from propkit.report.drawing import Drawing
from propkit.report.layer import Layer
from propkit.report.layers import COLUMNS, count_verdicts, verdict_of

_APART = {"config", "commit", "notes", "faults", "not_finite", "overhead", "sampling", "label"}
_APART |= {"state", "reason"}
_NAMES = {"git_commit": "git commit", "pid": "process"}
SIGNS = {"exploding": "▲", "dead": "✕", "vanishing": "▼", "singular": "◆", HEALTHY: "✓"}
"""A sign for each verdict, so that color is never alone."""

_MEANINGS = {
    "exploding": "its error or its output is not finite, or grows beyond the bounds below",
    "dead": "too many of its units are zero for the whole batch",
    "vanishing": "its error or its output falls below the bounds below",
    "singular": "all samples look alike to it",
    HEALTHY: "nothing of this was found",
}


def text(value: object) -> str:
    """Any value as text that HTML shows as it is.

    >>> text("<script>")
    '&lt;script&gt;'
    """
    return html.escape(str(value), quote=True)


def section(identifier: str, title: str, *parts: str) -> str:
    """A landmark with its heading of the second level."""
    body = "\n".join(p for p in parts if p)
    return (
        f'<section id="{identifier}" aria-labelledby="{identifier}-title">\n'
        f'<h2 id="{identifier}-title">{text(title)}</h2>\n{body}\n</section>'
    )


def badge(verdict: str) -> str:
    """A verdict or a state: a word with its sign."""
    sign = f'<span aria-hidden="true">{SIGNS[verdict]}</span> ' if verdict in SIGNS else ""
    return f'<span class="badge {text(verdict)}">{sign}{text(verdict)}</span>'


def verdicts(label: str, layers: Sequence[Layer], before: Sequence[Layer], prefix: str) -> str:
    """What is wrong with the layers of a run, in words and as a table.

    Args:
        label: Of the run.
        layers: As they are at the end.
        before: As they were at the first recorded step.
        prefix: Of ids.
    """
    judged = [layer for layer in layers if layer.findings is not None]
    if not judged:
        return (
            "<p>Nothing was judged: that takes a row of <code>error_moment</code> or "
            "<code>activation</code>.</p>"
        )
    counts = count_verdicts(judged)
    listed = "".join(f"<li>{badge(v)} {_layers(n)}: {_MEANINGS[v]}</li>" for v, n in counts.items())
    rows = [
        [str(layer.depth), layer.site, layer.type, layer.verdict, layer.evidence]
        for layer in judged
    ]
    return (
        f'<p class="verdict"><strong>At the last recorded step:</strong> {text(verdict_of(layers))}.</p>'
        f"<p><strong>At the first:</strong> {text(verdict_of(before))}.</p>"
        f'<ul class="plain">{listed}</ul>'
        + table(
            f"{prefix}-verdicts",
            f"Verdict on each layer of {label}, by depth, with its evidence",
            ["depth", "layer", "type", "verdict", "evidence"],
            rows,
            numeric={0},
            badges={3},
            long={4},
        )
    )


def thresholds_note(thresholds: Thresholds) -> str:
    """From where on a layer is called what."""
    items = "".join(
        f"<dt>{text(f.name.replace('_', ' '))}</dt><dd>{text(number(getattr(thresholds, f.name)))}</dd>"
        for f in fields(thresholds)
    )
    return (
        '<details><summary>Bounds of the verdicts</summary><dl class="facts">'
        f"{items}</dl><p>Moments are mean squares, relative to the last layer (errors) or the first (signals) "
        "whose output has as many dimensions; <code>propkit.diagnosis.verdict.Thresholds</code> says why these.</p>"
        "</details>"
    )


def values(label: str, layers: Sequence[Layer], prefix: str) -> str:
    """The table by depth of the last values."""
    if not layers:
        return "<p>No layer has a value yet.</p>"
    shown = [name for name in COLUMNS if any(name in layer.values for layer in layers)]
    rows = [
        [
            str(layer.depth),
            layer.site,
            layer.type,
            *(number(layer.values[n]) or "NaN" if n in layer.values else "" for n in shown),
        ]
        for layer in layers
    ]
    titles = ["depth", "layer", "type", *(COLUMNS[n].title for n in shown)]
    meanings = "".join(
        f"<dt>{text(COLUMNS[n].title)}</dt><dd>{text(COLUMNS[n].meaning)}</dd>" for n in shown
    )
    return (
        table(
            f"{prefix}-values",
            f"Last values of each layer of {label}, by depth; empty where nothing was measured",
            titles,
            rows,
            numeric={0, *range(3, len(titles))},
        )
        + f'<dl class="facts">{meanings}</dl>'
    )


def figure(drawing: Drawing, command: str) -> str:
    """One figure with its guide, its numbers and the command that redraws it."""
    name, (width, height) = drawing.name, drawing.size
    head = f"figure-{name}"
    alternative = " ".join([drawing.title, *drawing.numbers])
    parts = [
        f'<article id="{text(head)}" aria-labelledby="{text(head)}-title">'
        f'<h3 id="{text(head)}-title"><code>{text(name)}</code> {text(drawing.title)}</h3>',
        "<figure>",
        *(
            f'<div class="{mode}" style="max-width:{width}px" tabindex="0" role="group" '
            f'aria-label="{text(name)}, drawn">'
            f"{_image(markup, alternative, width, height)}</div>"
            for mode, markup in (("light", drawing.light), ("dark", drawing.dark))
        ),
    ]
    if drawing.numbers:
        lines = "".join(f"<li>{text(n)}</li>" for n in drawing.numbers)
        parts.append(f"<figcaption><h4>In numbers</h4><ul>{lines}</ul></figcaption>")
    parts.append('</figure><div class="guide">')
    parts += [f"<p>{text(p)}</p>" for p in drawing.guide]
    parts += [
        f"<p>Not in it: {text(label)}, because {text(why)}</p>"
        for label, why in drawing.left_out.items()
    ]
    parts.append(f"<p>Draw it again: <kbd>{text(command)}</kbd></p></div></article>")
    return "\n".join(parts)


def not_drawn(missing: Mapping[str, str]) -> str:
    """The figures that there are not, with the reason."""
    if not missing:
        return ""
    items = "".join(
        f"<dt><code>{text(n)}</code></dt><dd>{text(w)}</dd>" for n, w in missing.items()
    )
    return f'<h3 id="not-drawn">Not drawn</h3><dl class="facts">{items}</dl>'


def recorded(label: str, attributes: Mapping[str, Any], place: str, prefix: str) -> str:
    """Where the numbers come from: command, versions, configuration, sampling, cost, remarks."""
    facts = [("place", place), *_facts(attributes)]
    parts = [
        table(
            f"{prefix}-facts", f"How {label} was made", ["what", "value"], [list(f) for f in facts]
        )
    ]
    config = list(_flat(attributes.get("config") or {}))
    if config:
        caption = f"Configuration of {label}"
        parts.append(
            table(
                f"{prefix}-config", caption, ["key", "value"], [list(f) for f in config], long={1}
            )
        )
    for key, title in (
        ("faults", "Probes that were switched off"),
        ("not_finite", "Values that were not finite, where they were met first"),
        ("notes", "Notes"),
    ):
        remarks = attributes.get(key)
        if not remarks:
            continue
        pairs = remarks.items() if isinstance(remarks, Mapping) else (("", n) for n in remarks)
        items = "".join(
            f"<li>{f'<code>{text(n)}</code> ' if n else ''}{text(r)}</li>" for n, r in pairs
        )
        parts.append(f"<p>{title}:</p><ul>{items}</ul>")
    return "\n".join(parts)


def table(
    identifier: str,
    caption: str,
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numeric: set[int] | frozenset[int] = frozenset(),
    badges: set[int] | frozenset[int] = frozenset(),
    long: set[int] | frozenset[int] = frozenset(),
) -> str:
    """A table that scrolls on its own, also by keyboard; the cell that names a row is its header."""
    name = min(1, len(titles) - 1) if "layer" in titles else 0
    head = "".join(
        f'<th scope="col"{_number_class(i in numeric)}>{text(t)}</th>' for i, t in enumerate(titles)
    )
    body = []
    for row in rows:
        cells = []
        for i, cell in enumerate(row):
            shown = badge(cell) if i in badges else text(cell)
            tag, scope = ("th", ' scope="row"') if i == name else ("td", "")
            kind = ' class="text"' if i in long else _number_class(i in numeric)
            cells.append(f"<{tag}{scope}{kind}>{shown}</{tag}>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-labelledby="{text(identifier)}">'
        f'<table><caption id="{text(identifier)}">{text(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>\n" + "\n".join(body) + "\n</tbody></table></div>"
    )


def _image(markup: str, alternative: str, width: int, height: int) -> str:
    if markup.startswith("<svg"):
        return markup.replace("<svg", f'<svg role="img" aria-label="{text(alternative)}"', 1)
    return f'<img src="{markup}" alt="{text(alternative)}" width="{width}" height="{height}">'


def _number_class(numeric: bool) -> str:
    return ' class="n"' if numeric else ""


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count:,} layers"


def _facts(attributes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in attributes.items():
        if key not in _APART and value not in (None, "", {}, []):
            yield _NAMES.get(key, key.replace("_", " ")), _plain(value)
    if written := (attributes.get("commit") or {}).get("time"):
        yield "last written", str(written)
    cost = attributes.get("overhead")
    if isinstance(cost, Mapping) and "seconds" in cost:
        yield (
            "overhead of recording",
            f"{1e3 * cost['seconds']:.3g} ms per measured step, {cost.get('share', 0):.2%} of the training's time "
            f"({cost.get('basis', '')}; {cost.get('measured_steps', 0):,} measured steps, "
            f"{cost.get('other_steps', 0):,} others)",
        )
    for name, every in (attributes.get("sampling") or {}).items():
        often = "every step" if every == 1 else f"every {every} steps"
        yield f"sampling of {name}", often if isinstance(every, int) else str(every)


def _flat(config: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Keys with dots for nested dictionaries."""
    if isinstance(config, Mapping) and config:
        for key, value in config.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, _plain(config)


def _plain(value: object) -> str:
    return json.dumps(value, default=str) if isinstance(value, dict | list) else str(value)
