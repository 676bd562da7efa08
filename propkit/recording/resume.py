"""Continuing a run: whether the model and the probes are those of the run, and what the next segment says of itself."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from propkit.probe import Probe
from propkit.schema import LOG, SITE, Group, Variable
from propkit.sites import Site, fans, type_name
from propkit.store.attributes import to_json

if TYPE_CHECKING:
    from propkit.store.resume import Left

Call = tuple[str, int]
"""A site and the number of its call."""

_SHOWN = 5
_PROVENANCE = (
    "command",
    "propkit_version",
    "torch_version",
    "python_version",
    "host",
    "pid",
    "device",
    "git_commit",
    "sampling",
)


class Start(NamedTuple):
    """Where a recording begins, and what the run holds by then.

    Attributes:
        step: Its first step.
        groups: Groups of probes that have columns.
        curves: Names of the training curves.
        not_finite: Probe -> where its first value that is not finite was met.
        faults: Probe -> why it was switched off in an earlier part of the run.
    """

    step: int = 0
    groups: tuple[Group, ...] = ()
    curves: tuple[str, ...] = ()
    not_finite: Mapping[str, str] = {}
    faults: dict[str, str] = {}  # noqa: RUF012 - never changed


BEGINNING = Start()


def start_of(run: "Left", attributes: Mapping[str, Any]) -> Start:
    """Where a recording that continues `run` begins, `attributes` being what `continuing` gave."""
    groups = {name: stored.group for name, stored in run.groups.items()}
    log = groups.pop(LOG, None)
    return Start(
        attributes["steps"],
        tuple(groups.values()),
        tuple(v.name for v in log.variables) if log else (),
        attributes["not_finite"],
        dict(run.attributes.get("faults") or {}),
    )


def segment(attributes: Mapping[str, Any], first_step: int) -> dict[str, Any]:
    """What a part of a run that one process recorded says of itself, for the root attribute ``segments``.

    Args:
        attributes: Root attributes as of a run that begins.
        first_step: Step at which the part begins.
    """
    return {
        "first_step": first_step,
        "time": attributes["created"],
        **{name: attributes[name] for name in _PROVENANCE if name in attributes},
    }


def continuing(run: "Left", attributes: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Root attributes to set when a run goes on, and its new notes at the end of ``notes``.

    What the run says of how it began (configuration, seed, label, versions) stays.

    Args:
        run: The run.
        attributes: Root attributes as of a run that begins here and now.
        step: Where it goes on.
    """
    old = run.attributes
    notes = list(run.notes)
    if step > run.steps:
        notes.append(
            f"steps {run.steps} to {step - 1} are missing: their rows were not committed when the process ended; "
            "call recorder.flush() before saving a checkpoint"
        )
    dropped = max((int((g.steps >= step).sum()) for g in run.groups.values()), default=0)
    if dropped:
        notes.append(f"{dropped} rows of steps from {step} on were dropped")
    new, was = to_json(attributes["config"]), old.get("config") or {}
    part = segment(attributes, step)
    if new and new != was:
        part["config"] = new
        if changed := sorted(_changed(was, new)):
            notes.append(f"the configuration differs from the run's first one in {_some(changed)}")
    notes = [f"resumed at step {step}: {note}" for note in notes]
    first = old.get("not_finite") or {}
    return {
        "segments": [*old.get("segments", []), part],
        "state": "running",
        "reason": "",
        "steps": step,
        "notes": [*old.get("notes", []), *notes],
        "not_finite": {probe: text for probe, text in first.items() if _step_of(text) < step},
        **{name: attributes[name] for name in ("host", "pid", "sampling")},
        **({"label": attributes["label"]} if attributes["label"] else {}),
    }


def _changed(was: Mapping[str, Any], new: Mapping[str, Any], within: str = "") -> Iterable[str]:
    """Paths of the settings that differ; a number of ``steps`` that has grown is what resuming is for."""
    for key in {**was, **new}:
        old, now = was.get(key), new.get(key)
        grown = isinstance(old, int) and isinstance(now, int) and now > old
        if isinstance(old, Mapping) and isinstance(now, Mapping):
            yield from _changed(old, now, f"{within}{key}.")
        elif old != now and not (key == "steps" and grown):
            yield within + key


def declared(probes: Iterable[Probe], sites: Iterable[Site]) -> dict[str, Any]:
    """Root attributes by which a run is recognised when it is to be continued."""
    return {
        "functions": {p.name: [m.function.__name__ for m in p.measurements] for p in probes},
        "sites": [s.name for s in sites],
    }


def check_same(run: "Left", probes: Sequence[Probe], sites: Sequence[Site]) -> None:
    """Refuse to continue a run with other sites, probes or variables.

    Raises:
        ValueError: They differ; the message says which.
    """
    found = list(_differences(run, probes, sites))
    if found:
        raise ValueError(
            f"{run.name} cannot be continued, for what is attached differs from what it holds: {'; '.join(found)}. "
            "Attach as before, or choose another name"
        )


def _differences(run: "Left", probes: Sequence[Probe], sites: Sequence[Site]) -> Iterable[str]:
    now, was = declared(probes, sites), run.attributes
    groups = {name: stored.group for name, stored in run.groups.items() if name != LOG}
    functions = was.get("functions") or {name: now["functions"].get(name) for name in groups}
    yield from _unlike("probe", functions, now["functions"])
    yield from _unlike("site", was.get("sites", now["sites"]), now["sites"])
    for p in probes:
        if p.name in functions:
            yield from _unlike(
                f"function of {p.name}", functions[p.name] or [], now["functions"][p.name]
            )
        if p.name in groups:
            yield from _unlike_group(groups[p.name], p, {s.name: s for s in sites})


def _unlike(what: str, was: Iterable[str], now: Iterable[str]) -> Iterable[str]:
    gone, new = [n for n in was if n not in set(now)], [n for n in now if n not in set(was)]
    if gone:
        yield f"{what} {_some(gone)} of the run is missing now"
    if new:
        yield f"{what} {_some(new)} is not in the run"


def _unlike_group(group: Group, p: Probe, sites: Mapping[str, Site]) -> Iterable[str]:
    for v in group.variables:
        if not any(_may_give(p, i, v) for i in range(len(p.measurements))):
            yield (
                f"variable {p.name}/{v.name} was along {v.dim or 'no dimension of its own'}, in {v.units}, {v.dtype}, "
                f"combined by {v.reduce}, and is not so now"
            )
    for dim, values in group.axes.items():
        new = p.axes.get(dim)
        if dim in p.axes and (values is None) != (new is None):
            yield f"dimension {dim} of {p.name} has become {'fixed' if values is None else 'ragged'}"
        elif values is not None and new is not None and values.tolist() != list(new):
            yield f"dimension {dim} of {p.name} has other coordinates"
    for i, name in enumerate(group.coords[SITE].tolist()):
        site = sites.get(call_of(name, sites)[0])
        if site is None or p not in site.probes:
            if site is not None:
                yield f"site {name} is not observed by {p.name} now"
            continue
        then = tuple(group.coords[c][i].item() for c in ("type", "fan_in", "fan_out"))
        here = (type_name(site.module), *fans(site.module))
        if then != here:
            yield (
                f"site {name} was a {then[0]} of {then[1]} to {then[2]}, and is a {here[0]} of {here[1]} to {here[2]}"
            )


def _may_give(p: Probe, index: int, v: Variable) -> bool:
    """Whether a probe's function may give a variable as it is described."""
    m = p.measurements[index]
    units, reduce, _ = m.describe(v.name)
    dtype = m.dtype_of(v.name)
    return (units, reduce, m.dims.get(v.name, ""), dtype) == (v.units, v.reduce, v.dim, v.dtype)


def call_of(name: str, sites: Mapping[str, object]) -> Call:
    """Site and number of the call of a name along ``site``."""
    site, _, number = name.rpartition("#")
    return (name, 0) if name in sites or not number.isdigit() else (site, int(number))


def _some(names: Sequence[str]) -> str:
    shown = [repr(n) for n in names[:_SHOWN]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _step_of(text: str) -> int:
    """The step that a remark on a value begins with."""
    number = text.removeprefix("step ").partition(",")[0]
    return int(number) if number.isdigit() else -1
