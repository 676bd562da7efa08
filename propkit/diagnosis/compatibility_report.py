"""`Compatibility`: the report of `propkit.compatibility`, as a table and as a list of problems."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from propkit.diagnosis.render import Sheet

if TYPE_CHECKING:
    import xarray as xr
    from rich.console import RenderableType

YES, PARTLY, NO = "yes", "partly", "no"
"""Whether a probe applies at a site: with all of its variables; with those of its first function; without them."""


@dataclass(frozen=True)
class Problem:
    """Something that will not be recorded.

    Attributes:
        site: The module.
        probes: The probes that record nothing there.
        reason: Why.
    """

    site: str
    probes: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class SiteReport:
    """What is known of one site.

    Attributes:
        site: Qualified name of the module.
        type: Its class.
        depth: Number of parametric layers that ran before its first call was over; 0 if it never ran.
        calls: Number of its calls in one forward pass.
        probes: Probe -> ``"yes"``, ``"partly"`` (what it is named for, but not all of its variables) or ``"no"``; of
            the probes that select the site.
        reasons: Probe -> why not, or why partly.
        remarks: What is special about it, and handled.
        missing: Probe -> the variables that it lacks, where it applies partly.
    """

    site: str
    type: str
    depth: int
    calls: int
    probes: dict[str, str]
    reasons: dict[str, str]
    remarks: tuple[str, ...]
    missing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Compatibility:
    """Which probes apply where; made by `propkit.compatibility`.

    Attributes:
        model: The model's class.
        sites: One report per site, in the order of execution; those that never ran at the end.
        remarks: What is to be said of the model as a whole.
    """

    def __init__(
        self, model: str, probes: Sequence[str], sites: Sequence[SiteReport], remarks: Sequence[str]
    ) -> None:
        self.model = model
        self.sites = tuple(sites)
        self.remarks = tuple(remarks)
        self._probes = tuple(probes)

    @functools.cached_property
    def problems(self) -> tuple[Problem, ...]:
        """What will not be recorded, site by site; empty if nothing is missing."""
        found = []
        for site in self.sites:
            by_reason: dict[str, list[str]] = {}
            for name, status in site.probes.items():
                if status == NO:
                    by_reason.setdefault(site.reasons[name], []).append(name)
            found += [Problem(site.site, tuple(names), why) for why, names in by_reason.items()]
        return tuple(found)

    @functools.cached_property
    def table(self) -> "xr.Dataset":
        """``applies`` and ``reason``, dims (site, probe): yes, partly, no; empty where a probe selects no such site."""
        import xarray as xr

        def cells(attribute: str) -> Any:
            rows = [[getattr(s, attribute).get(p, "") for p in self._probes] for s in self.sites]
            return np.array(rows, dtype=np.str_).reshape(len(self.sites), len(self._probes))

        return xr.Dataset(
            {
                "applies": (("site", "probe"), cells("probes")),
                "reason": (("site", "probe"), cells("reasons")),
            },
            {
                "site": np.array([s.site for s in self.sites], dtype=np.str_),
                "probe": np.array(self._probes, dtype=np.str_),
                "type": ("site", np.array([s.type for s in self.sites], dtype=np.str_)),
                "depth": ("site", np.array([s.depth for s in self.sites], dtype=np.int64)),
                "calls": ("site", np.array([s.calls for s in self.sites], dtype=np.int64)),
            },
        )

    def print(self) -> None:
        """Print the whole table to the terminal."""
        from rich.console import Console

        Console().print(self)

    def __rich__(self) -> "RenderableType":
        return self._sheet().rich()

    def __repr__(self) -> str:
        return self._sheet().text()

    def _repr_html_(self) -> str:
        return self._sheet().html()

    def _sheet(self) -> Sheet:
        sites = {p.site for p in self.problems}
        verdict = (
            f"{len(sites)} of {len(self.sites)} sites have problems" if sites else "no problem"
        )
        peculiar = any(s.remarks for s in self.sites)
        return Sheet(
            f"{self.model}: {len(self._probes)} probes, {len(self.sites)} sites, {verdict}",
            ["depth", "site", "type", "calls", *self._probes, *(["remarks"] if peculiar else [])],
            [
                [str(s.depth), s.site, s.type, str(s.calls)]
                + [s.probes.get(p, "") for p in self._probes]
                + (["; ".join(s.remarks)] if peculiar else [])
                for s in self.sites
            ],
            ["red" if s.site in sites else "" for s in self.sites],
            [
                True,
                False,
                False,
                True,
                *(False for _ in self._probes),
                *([False] if peculiar else []),
            ],
            [*self._problem_lines(), *self._partly_lines(), *self.remarks],
            ranks=[0, 0, 3, 4, *(1 for _ in self._probes), *([2] if peculiar else [])],
            colored=1,
            elsewhere=".table (remarks: .sites)" if peculiar else ".table",
        )

    def _problem_lines(self) -> Iterator[str]:
        """Problems of many sites in one line each."""
        sites: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for problem in self.problems:
            sites.setdefault((problem.reason, problem.probes), []).append(problem.site)
        for (reason, names), where in sites.items():
            yield f"{_some(where)}: no {', '.join(names)}: {reason}"

    def _partly_lines(self) -> Iterator[str]:
        """What "partly" means: which variables are missing where, and why."""
        sites: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for site in self.sites:
            by_reason: dict[str, list[str]] = {}
            for probe, variables in site.missing.items():
                lacking = by_reason.setdefault(site.reasons[probe], [])
                lacking += [f"{probe}.{variable}" for variable in variables]
            for reason, names in by_reason.items():
                sites.setdefault((reason, tuple(names)), []).append(site.site)
        for (reason, names_), where in sites.items():
            yield f"partly: {_some(where)} without {', '.join(names_)}: {reason}"


def _some(sites: Sequence[str]) -> str:
    return ", ".join(sites[:4]) + (f" and {len(sites) - 4} more" if sites[4:] else "")
