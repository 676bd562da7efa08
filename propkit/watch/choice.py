"""What is shown of a run: a group and one of its variables that has a value by layer."""

from typing import TYPE_CHECKING

from propkit.schema import LOG, SITE, STEP

if TYPE_CHECKING:
    from propkit.store.run import Run

PREFERRED = (
    ("error_moment", "output"),
    ("gradient_norm", "output"),
    ("activation", "mean_square"),
)
"""What is shown unless something is asked for: the first of these that was recorded, else anything by layer."""


class NothingToShowError(ValueError):
    """The run does not have, or not yet, what is to be shown; the message says what it has."""


def choose(run: "Run", probe: str | None, variable: str | None) -> tuple[str, str]:
    """Group and variable of the strip.

    Raises:
        NothingToShowError: There is none by that name.
    """
    if variable is not None and probe is None:
        probe = PREFERRED[0][0]
    by_layer = {name: _by_layer(run, name) for name in run if name != LOG}
    if probe is None:
        there = [(g, v) for g, v in PREFERRED if v in by_layer.get(g, ())]
        there += [(g, v) for g, names in by_layer.items() for v in names]
        if not there:
            raise NothingToShowError("no probe has been recorded yet")
        return there[0]
    if not by_layer.get(probe):
        have = ", ".join(n for n, names in by_layer.items() if names) or "none yet"
        raise NothingToShowError(f"the run has no values by layer of {probe!r}; it has {have}")
    if variable is None:
        preferred = dict(PREFERRED).get(probe)
        return probe, preferred if preferred in by_layer[probe] else by_layer[probe][0]
    if variable not in by_layer[probe]:
        raise NothingToShowError(
            f"{probe!r} has no variable {variable!r} by layer; it has {', '.join(by_layer[probe])}"
        )
    return probe, variable


def _by_layer(run: "Run", group: str) -> tuple[str, ...]:
    held = run.contents[group]
    if held.sites is None:
        return ()
    if not held.axes:
        return held.variables
    dataset = run[group]  # some variables have a dimension of their own
    return tuple(v for v in held.variables if dataset[v].dims == (STEP, SITE))
