"""``python -m propkit info``: what is in a run, in the terminal or as JSON."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from propkit.footprint import in_store, on_disk, readable
from propkit.redaction import redacted_command, redacted_settings
from propkit.schema import SITE
from propkit.store.collection import find_runs, place_of
from propkit.store.run import Run
from propkit.store.whole import damages

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

SITES_SHOWN = 12
"""Sites that are printed unless all are asked for: two thirds from the beginning, one from the end."""

_COLUMNS = ("depth", "type", "input_shape", "output_shape")
_PLAIN_WIDTH = 120
"""Columns of the output where it goes to a file or a pipe."""
_COLORS = {"running": "blue", "complete": "green", "interrupted": "yellow"}
_APART = {
    "state",
    "reason",
    "label",
    "commit",
    "config",
    "sampling",
    "notes",
    "faults",
    "not_finite",
}
_FIRST = ("created", "command", "git_commit", "model_summary", "model", "seed", "device", "host")


def summary(run: Run) -> dict[str, Any]:
    """What is known of a run, all JSON-able, without reading its values.

    Returns:
        ``label``, ``state``, ``path`` (or the URL), ``bytes_on_disk`` and ``files`` (at a URL, of its objects; None in
        memory and where they cannot be counted), ``groups``: name -> ``sizes``, ``last_step`` and ``variables`` (name
        -> ``dims``, ``dtype``, ``units``, ``long_name``, ``reference``); ``sites``: a list of ``site``, its coordinates
        and the ``groups`` that have it, in the order of execution; ``damaged``: group -> which of its arrays are
        missing (its sites are left out); ``attributes``: the run's root attributes, without secrets.

    Raises:
        OSError: The run is at a URL that cannot be reached.
    """
    groups: dict[str, Any] = {}
    sites: dict[str, dict[str, Any]] = {}
    damaged = damages(run)
    for name, held in run.contents.items():
        dataset = run[name]
        groups[name] = {
            "sizes": dict(held.sizes),
            "last_step": held.last_step,
            "variables": {
                str(v): {
                    "dims": [str(d) for d in a.dims],
                    "dtype": str(a.dtype),
                    **{k: a.attrs.get(k, "") for k in ("units", "long_name", "reference")},
                }
                for v, a in dataset.data_vars.items()
            },
        }
        if name in damaged or SITE not in dataset.coords:
            continue
        columns = {c: dataset[c].values.tolist() for c in _COLUMNS if c in dataset.coords}
        for i, site in enumerate(dataset[SITE].values.tolist()):
            known = sites.setdefault(site, {"site": site, "groups": []})
            known["groups"].append(name)
            known.update({c: values[i] for c, values in columns.items() if values[i] != ""})
    place = place_of(run)
    size, files = on_disk(run.path) if run.path else in_store(run) if place else (None, None)
    attributes = {**run.attributes, "config": redacted_settings(run.attributes.get("config") or {})}
    if command := attributes.get("command"):  # of a run that an older propkit recorded
        attributes["command"] = redacted_command(str(command).split(" "))
    return {
        "label": run.label,
        "state": run.state,
        "path": place or None,
        "bytes_on_disk": size,
        "files": files,
        "groups": groups,
        "sites": _in_order(sites, run.attributes.get("sites") or []),
        "damaged": damaged,
        "attributes": attributes,
    }


def _in_order(sites: Mapping[str, dict[str, Any]], executed: Sequence[str]) -> list[dict[str, Any]]:
    """Sites in the order in which the run says that they ran; those that it does not name, by depth behind it."""
    place = {site: i for i, site in enumerate(executed)}
    by_depth = sorted(sites.values(), key=lambda s: s.get("depth", 0))
    last = 0
    for known in by_depth:
        last = place.setdefault(known["site"], last)
    return sorted(by_depth, key=lambda s: place[s["site"]])


def print_info(
    paths: Sequence[str | os.PathLike[str]],
    *,
    as_json: bool = False,
    all_sites: bool = False,
    out: TextIO | None = None,
) -> list[str]:
    """Print runs; those that cannot be read do not keep the others from being printed.

    Args:
        paths: Of the runs; URLs, patterns and folders of runs too, as in `propkit.open_study`.
        as_json: One JSON array of `summary` instead of text.
        all_sites: Do not shorten the table of the sites.
        out: Where to; the standard output if None.

    Returns:
        What is wrong with the paths that are no runs, and with runs that are damaged, a line each.
    """
    from rich.console import Console

    console = Console(file=out, highlight=False)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    errors, found = [], []
    for path in paths:
        try:
            runs, remarks = find_runs(path)
        except (ImportError, OSError, ValueError) as error:
            errors.append(str(error))
            continue
        errors += remarks
        for run in runs:
            try:
                found.append(summary(run))
            except OSError as error:
                errors.append(str(error))
            else:
                errors += found[-1]["damaged"].values()
    if as_json:
        print(json.dumps(found, indent=2, default=str), file=console.file)
        return errors
    for i, known in enumerate(found):
        if i:
            console.print()
        _print(console, known, all_sites)
    return errors


def _print(console: "Console", run: Mapping[str, Any], all_sites: bool) -> None:
    from rich.text import Text

    attributes, sites = run["attributes"], run["sites"]
    state = Text(run["state"], style=_COLORS.get(run["state"], "red"))
    head = Text.assemble((_clean(run["label"]), "bold"), "  ", state)
    if attributes.get("reason"):
        head.append(f": {_clean(attributes['reason'])}")
    console.print(head)
    console.print(_facts(_lines(run)))
    console.print(_heading(f"{len(run['groups'])} groups" if run["groups"] else "no groups yet"))
    for name, group in run["groups"].items():
        dims = ", ".join(f"{dim}: {size}" for dim, size in group["sizes"].items())
        last = "no rows yet" if group["last_step"] is None else f"last step {group['last_step']}"
        every = attributes.get("sampling", {}).get(name)
        when = f"; {_schedule(every)}" if every is not None else ""
        broken = ("  damaged", "red") if name in run["damaged"] else ""
        bold = (_clean(name), "bold")
        console.print(Text.assemble("  ", bold, f"  ({dims}) {last}{when}", broken))
        rows = [
            [v, f"({', '.join(a['dims'])})", a["dtype"], f"[{a['units']}]", a["long_name"]]
            for v, a in group["variables"].items()
        ]
        console.print(_table(rows, indent=4))
    if sites:
        console.print(_heading(f"{len(sites)} sites"))
        console.print(_sites_table(sites, len(run["groups"]), all_sites))
    for title in ("faults", "not_finite", "notes"):
        if remarks := attributes.get(title):
            pairs = remarks.items() if isinstance(remarks, Mapping) else (("", n) for n in remarks)
            console.print(_heading(title.replace("_", " "), "red" if title == "faults" else ""))
            console.print(_facts([(f"  {name}".rstrip(), text) for name, text in pairs]))


def _lines(run: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """What is said of the whole run."""
    attributes = run["attributes"]
    if run["path"]:
        there = "://" in run["path"]
        yield "URL" if there else "path", run["path"]
        if run["files"] is not None:
            size, what = readable(run["bytes_on_disk"]), "objects" if there else "files"
            yield "stored" if there else "on disk", f"{size} in {run['files']} {what}"
    steps = [g["last_step"] for g in run["groups"].values() if g["last_step"] is not None]
    if steps:
        yield "last step", max(steps)
    rest = [key for key in attributes if key not in _APART and key not in _FIRST]
    summed_up = {"model"} if attributes.get("model_summary") else set()
    for key in [*_FIRST, *rest]:
        if attributes.get(key) not in (None, "") and key not in summed_up:
            yield key.replace("_", " "), attributes[key]
    written = attributes.get("commit", {}).get("time")
    if written:
        yield "last written", written
    config = attributes.get("config") or {}
    for key, value in config.items():
        yield f"config.{key}", json.dumps(value) if isinstance(value, dict | list) else value


def _sites_table(
    sites: Sequence[Mapping[str, Any]], groups: int, all_sites: bool
) -> "RenderableType":
    rows = []
    for s in sites:
        own = "all groups" if len(s["groups"]) == groups else ", ".join(s["groups"])
        shapes = (str(s.get(c, "")) for c in _COLUMNS[1:])
        rows.append([s["site"], str(s.get("depth", "")), *shapes, own])
    if len(rows) > SITES_SHOWN and not all_sites:
        first = 2 * SITES_SHOWN // 3
        left_out = len(rows) - SITES_SHOWN
        dots = [f"... {left_out} more: --sites shows all", *[""] * 5]
        rows = [*rows[:first], dots, *rows[first - SITES_SHOWN :]]
    return _table(rows, ["site", "depth", "type", "input", "output", "recorded in"])


def _table(
    rows: Sequence[Sequence[object]], titles: Sequence[str] = (), indent: int = 2
) -> "RenderableType":
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=bool(titles), pad_edge=False, padding=(0, 2, 0, 0))
    columns = titles or [""] * max(map(len, rows), default=0)
    for title in columns:
        table.add_column(title, overflow="fold", justify="right" if title == "depth" else "left")
    for row in rows:
        table.add_row(*(Text(_clean(cell)) for cell in row))
    return Padding(table, (0, 0, 0, indent), expand=False)


def _facts(pairs: Iterator[tuple[str, object]] | Sequence[tuple[str, object]]) -> "RenderableType":
    return _table(list(pairs))


def _heading(text: str, color: str = "") -> "RenderableType":
    from rich.text import Text

    return Text(text, style=f"bold {color}".strip())


def _schedule(every: object) -> str:
    """How often a probe measured, in words.

    >>> _schedule(1), _schedule(50), _schedule("log_spaced(10)")
    ('every step', 'every 50 steps', 'steps: log_spaced(10)')
    """
    if isinstance(every, int):
        return "every step" if every == 1 else f"every {every} steps"
    return f"steps: {_clean(every)}"


def _clean(value: object) -> str:
    """Text that cannot steer the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value))
