"""One look at a run: what is shown of it, read at a cost that does not grow with its length."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from propkit.report.layer import Layer
from propkit.report.layers import count_verdicts, read_layers, verdict_of
from propkit.schema import LOG, SITE, STEP
from propkit.store.whole import damages
from propkit.watch.choice import choose
from propkit.watch.strip import RAMP, Floats, Scale, line, pooled

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from propkit.store.run import Run

COLORS = {
    "exploding": "red",
    "dead": "magenta",
    "vanishing": "yellow",
    "singular": "blue",
    "healthy": "green",
    "running": "blue",
    "complete": "green",
    "interrupted": "yellow",
}
_NAME_WIDTH = 28
_VALUE_WIDTH = 10


@dataclass(frozen=True)
class Frame:
    """What is shown of a run.

    Attributes:
        label: Of the run.
        state: As `Run.state`.
        reason: Why it ended.
        step: The last one recorded, None before the first.
        total: Steps that the run is to have, as far as its configuration says.
        written: When it was last written to.
        shown: Group and variable of the strip.
        sites: (S,) layers.
        steps: (T,) steps of the strip.
        values: (T, S).
        spoilt: Whether the run says of that group that it met values that are not finite.
        layers: All layers with their verdicts.
        curves: The last logged values.
        remarks: Faults, and what is damaged.
    """

    label: str
    state: str
    reason: str
    step: int | None
    total: int | None
    written: datetime.datetime | None
    shown: tuple[str, str]
    sites: list[str]
    steps: list[int]
    values: Floats
    spoilt: bool
    layers: list[Layer]
    curves: dict[str, float]
    remarks: list[str]


def read_frame(
    run: "Run", columns: int, probe: str | None = None, variable: str | None = None
) -> Frame:
    """Read the last rows of a run.

    Args:
        run: As of now.
        columns: Recorded steps that the strip shows.
        probe: Group to show; None: see `propkit.watch.choice.PREFERRED`.
        variable: Variable of that group; None: its first.

    Raises:
        NothingToShowError: There is no such group or variable.
        ValueError: Arrays of that group are missing.
    """
    shown = choose(run, probe, variable)
    damaged = damages(run)
    if shown[0] in damaged:
        raise ValueError(damaged[shown[0]])
    dataset = run[shown[0]]
    part = dataset[[shown[1]]].isel({STEP: slice(-columns, None)}).load()
    steps = [c.last_step for c in run.contents.values() if c.last_step is not None]
    attributes = run.attributes
    faults = attributes.get("faults") or {}
    flagged = attributes.get("not_finite") or {}
    return Frame(
        run.label,
        run.state,
        str(attributes.get("reason") or ""),
        max(steps, default=None),
        total_steps(attributes),
        _time((attributes.get("commit") or {}).get("time")),
        shown,
        [str(s) for s in part[SITE].values],
        part[STEP].values.tolist(),
        part[shown[1]].values.astype(np.float64),
        shown[0] in flagged,
        read_layers(run, only_verdicts=True),
        _curves(run),
        [*(f"{name}: {why}" for name, why in faults.items()), *damaged.values()],
    )


def total_steps(attributes: Mapping[str, Any]) -> int | None:
    """How many steps the configuration says that there are to be: ``steps``, its own or its recipe's."""
    config = attributes.get("config") or {}
    recipe = config.get("recipe")
    for known in (config, recipe if isinstance(recipe, Mapping) else {}):
        steps = known.get("steps")
        if isinstance(steps, int) and steps > 0:
            return steps
    return None


def render(
    frame: Frame, width: int, height: int, rate: float | None = None, footer: str = ""
) -> "RenderableType":
    """The frame for the terminal, no larger than that.

    Args:
        frame: What to show.
        width: Columns of the terminal.
        height: Its lines.
        rate: Steps per second.
        footer: A last line.
    """
    from rich.console import Group
    from rich.text import Text

    state = (frame.state, f"bold {COLORS.get(frame.state, 'red')}")
    head = Text.assemble((_clean(frame.label), "bold"), "  ", state)
    if frame.reason:
        head.append(f": {_clean(frame.reason)}")
    lines = [head, Text(_progress(frame, rate))]
    if frame.curves:
        lines.append(Text("  ".join(f"{_clean(k)} {v:.4g}" for k, v in frame.curves.items())))
    tail = [_verdicts(frame.layers)]
    tail += [Text(f"fault: {_clean(r)}", "red") for r in frame.remarks]
    if footer:
        tail.append(Text(footer, "dim"))
    room = max(4, height - len(lines) - len(tail) - 4)
    lines += [Text(""), *_strip(frame, width, room), Text(""), *tail]
    for one in lines:
        one.no_wrap = True
        one.overflow = "ellipsis"
    return Group(*lines)


def _strip(frame: Frame, width: int, rows: int) -> list["Text"]:
    from rich.text import Text

    columns = strip_columns(width)
    values, names = pooled(frame.values[-columns:], frame.sites, rows)
    scale = Scale.of(values)
    characters = scale.characters(values, frame.spoilt)
    title = ".".join(frame.shown)
    if not len(values):
        return [Text(f"{title}: no row yet")]
    first, last = frame.steps[-len(values)], frame.steps[-1]
    found = [
        Text.assemble(
            (title, "bold"),
            f", steps {first:,} to {last:,}   {scale.low:.2g} ",
            line(RAMP),
            f" {scale.high:.2g}{', log scale' if scale.log else ''}",
        )
    ]
    for i, name in enumerate(names):
        found.append(
            Text.assemble(
                f"{_shortened(name):>{_NAME_WIDTH}} ",
                line(characters[:, i].tolist()),
                f" {values[-1, i]:{_VALUE_WIDTH - 1}.2g}",
            )
        )
    return found


def strip_columns(width: int) -> int:
    """Steps that there is room for beside the names and the last values."""
    return max(8, width - _NAME_WIDTH - _VALUE_WIDTH - 2)


def _verdicts(layers: Sequence[Layer]) -> "Text":
    from rich.text import Text

    worst = next(iter(count_verdicts(layers)), "")
    return Text(_clean(verdict_of(layers)), COLORS.get(worst, ""))


def _progress(frame: Frame, rate: float | None) -> str:
    if frame.step is None:
        return "no step recorded yet"
    parts = [f"step {frame.step:,}"]
    left = None
    if frame.total:
        done = min(1.0, (frame.step + 1) / frame.total)
        parts[0] += f" of {frame.total:,} ({done:.0%})"
        left = max(0, frame.total - frame.step - 1)
    if rate:
        parts.append(f"{rate:.3g} steps/s")
        if left:
            parts.append(f"{duration(left / rate)} to go")
    if frame.written and frame.state == "running":
        ago = (datetime.datetime.now(datetime.UTC) - frame.written).total_seconds()
        parts.append(f"last written {duration(max(0.0, ago))} ago")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds in the units that people use.

    >>> duration(4.2), duration(200), duration(9000)
    ('4 s', '3 min', '2 h 30 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60:,} h {minutes % 60} min"


def _curves(run: "Run") -> dict[str, float]:
    if LOG not in run or not run.contents[LOG].rows:
        return {}
    last = run[LOG].isel({STEP: slice(-1, None)}).load()
    return {str(name): float(v.values[0]) for name, v in last.data_vars.items()}


def _time(text: object) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(str(text))
    except ValueError:
        return None


def _shortened(name: str) -> str:
    """The end of a long name, where layers differ."""
    name = _clean(name)
    return name if len(name) <= _NAME_WIDTH else f"…{name[1 - _NAME_WIDTH :]}"


def _clean(value: object) -> str:
    """Text that cannot steer the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value))
