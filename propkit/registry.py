"""Probes by name: the file of that name in `propkit.probes`, else an entry point of group ``propkit.probes``."""

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from importlib.metadata import entry_points

from propkit import probes as in_tree
from propkit.probe import Probe

DEFAULT_PROBES = ("error_moment", "gradient_norm", "activation", "filter_correlation", "weight")
"""What `propkit.attach` records unless told otherwise: cheap enough for every run."""


def probe_names() -> list[str]:
    """Names of all probes that can be used here, in-tree ones first."""
    ours = _in_tree()
    return ours + sorted({e.name for e in entry_points(group="propkit.probes")} - set(ours))


def _in_tree() -> list[str]:
    return [m.name for m in pkgutil.iter_modules(in_tree.__path__) if not m.name.startswith("_")]


def find_probe(probe: str | Probe) -> Probe:
    """The probe of that name; a `Probe` is returned as it is.

    Raises:
        ValueError: No probe has that name; the message lists those there are.
        TypeError: `probe` is neither a name nor a `Probe`, or an entry point gives no `Probe`.
    """
    if isinstance(probe, Probe):
        return probe
    if not isinstance(probe, str):
        raise TypeError(
            f"expected a probe's name or a function decorated with @propkit.probe, found {probe!r}"
        )
    if probe in _in_tree():
        found = getattr(importlib.import_module(f"{in_tree.__name__}.{probe}"), probe)
    else:
        entry = next(iter(entry_points(group="propkit.probes", name=probe)), None)
        if entry is None:
            names = probe_names()
            close = difflib.get_close_matches(probe, names, 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"unknown probe {probe!r}.{hint} There are: {', '.join(names)}")
        found = entry.load()
    if not isinstance(found, Probe):
        raise TypeError(f"probe {probe!r} is a {type(found).__name__}, not made by @propkit.probe")
    return found


def find_probes(probes: Iterable[str | Probe] | str | Probe | None) -> list[Probe]:
    """The probes named, or the default ones for None.

    Raises:
        ValueError: An unknown name, or two probes of one name.
    """
    if probes is None:
        probes = DEFAULT_PROBES
    if isinstance(probes, (str, Probe)):
        probes = [probes]
    found = [find_probe(p) for p in probes]
    names = [p.name for p in found]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(f"probe {twice[0]!r} is given twice; each names one group of the run")
    return found
