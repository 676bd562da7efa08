"""The layers of a run: their last (or first) values by depth, and what these say about each layer."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import xarray as xr

from propkit.diagnosis.judging import judge_layers, quotient, relative_to_last
from propkit.diagnosis.verdict import VERDICTS, Thresholds, overall
from propkit.report.layer import Layer
from propkit.schema import SITE, STEP
from propkit.store.whole import damages

When = Literal["first", "last"]

RECENT = 64
"""Rows that are searched for a layer's last value: a layer need not run in every step."""


class Column(NamedTuple):
    """A quantity of the table: where it is recorded, a short title and what it is."""

    group: str
    variable: str
    title: str
    meaning: str


COLUMNS = {
    "activation_moment": Column("activation", "mean_square", "q out", "mean square of the output"),
    "error_moment": Column(
        "error_moment", "output", "q error", "mean square of the error at the output"
    ),
    "error_ratio": Column("", "", "to last", "error moment relative to the last layer"),
    "gradient_norm_ratio": Column(
        "", "", "out/in", "norm of the gradient at the output, relative to the input"
    ),
    "dead": Column("activation", "dead", "dead", "share of dead units"),
    "condition_number": Column(
        "representation", "condition_number", "cond", "condition number of the representation"
    ),
    "effective_rank": Column(
        "representation", "effective_rank", "rank", "effective rank of the representation"
    ),
    "mean_cosine": Column(
        "representation",
        "mean_cosine",
        "cosine",
        "mean cosine of the samples' representations",
    ),
    "weight_norm": Column("weight", "norm", "|W|", "Frobenius norm of the weight"),
    "update_ratio": Column(
        "weight", "update_ratio", "update", "norm of the weight's change relative to the weight"
    ),
    "correlation": Column(
        "filter_correlation", "correlation", "filters", "mean cosine between filters"
    ),
}
"""Quantities of the table, in its order."""

_GRADIENT = {
    end: Column("gradient_norm", end, "", f"norm of the gradient at the {end}")
    for end in ("output", "input")
}
_NEEDED_TO_JUDGE = (
    *("activation_moment", "error_moment", "dead", "effective_rank", "mean_cosine", "weight_norm"),
)


class RunLike(Protocol):
    """What is used of a `propkit.Run`."""

    @property
    def path(self) -> str | os.PathLike[str] | None:
        """Where the run is stored, None in memory."""

    @property
    def attributes(self) -> Mapping[str, object]:
        """The root's attributes."""

    def __contains__(self, group: object, /) -> bool:
        """Whether the run has that group."""

    def __getitem__(self, group: str, /) -> xr.Dataset:
        """The dataset of a group."""


def read_layers(
    run: RunLike,
    when: When = "last",
    thresholds: Thresholds | None = None,
    *,
    only_verdicts: bool = False,
) -> list[Layer]:
    """All layers in the order of execution, with their values and verdicts.

    A layer's last value is that of the last row, or, where it did not run in that step, of a row among the last 64.
    A value that is missing in the last row counts as not finite if the run says that the probe met such values
    (attribute ``not_finite``): a run does not tell NaN from nothing.

    Args:
        run: The run.
        when: Whether its first or its last recorded values are taken.
        thresholds: What the verdicts are made by; None: the defaults.
        only_verdicts: Read no more than the verdicts need.

    Returns:
        One per site; empty before the first row.
    """
    wanted = {n: c for n, c in COLUMNS.items() if c.group}
    if only_verdicts:
        wanted = {n: wanted[n] for n in _NEEDED_TO_JUDGE}
    else:
        wanted |= _GRADIENT
    layers: dict[str, Layer] = {}
    columns: dict[str, dict[str, float]] = {}
    damaged = damages(run)  # of which the figures' messages say
    groups = dict.fromkeys(c.group for c in wanted.values())
    for group in (g for g in groups if g in run and g not in damaged):
        columns |= _read(
            run, group, {n: c for n, c in wanted.items() if c.group == group}, when, layers
        )
    layers = dict(sorted(layers.items(), key=lambda item: item[1].depth))
    columns["error_ratio"] = relative_to_last(columns.get("error_moment", {}), layers)
    columns["gradient_norm_ratio"] = quotient(columns.get("output", {}), columns.get("input", {}))
    for name in COLUMNS:
        for site, value in columns.get(name, {}).items():
            layers[site].values[name] = value
    for site, findings in judge_layers(columns, layers, thresholds or Thresholds()).items():
        layers[site].findings = findings
    return list(layers.values())


def verdict_of(layers: Sequence[Layer]) -> str:
    """One line for the whole network.

    >>> verdict_of([])
    'nothing was judged'
    """
    judged = [layer for layer in layers if layer.findings is not None]
    return overall([layer.site for layer in judged], [layer.findings or [] for layer in judged])


def count_verdicts(layers: Iterable[Layer]) -> dict[str, int]:
    """Verdict -> number of layers of which it is the most severe one; those that occur, the most severe first."""
    found = [layer.verdict for layer in layers]
    return {v: found.count(v) for v in VERDICTS if v in found}


def _read(
    run: RunLike,
    group: str,
    wanted: Mapping[str, Column],
    when: When,
    layers: dict[str, Layer],
) -> dict[str, dict[str, float]]:
    """Column -> site -> value; sites that are not among `layers` are added."""
    dataset = run[group]
    here = {n: c.variable for n, c in wanted.items() if c.variable in dataset}
    here = {n: v for n, v in here.items() if dataset[v].dims == (STEP, SITE)}
    if not here or not dataset.sizes.get(STEP) or not dataset.sizes.get(SITE):
        return {}
    rows = slice(0, 1) if when == "first" else slice(-RECENT, None)
    part = dataset[list(dict.fromkeys(here.values()))].isel(step=rows).load()
    sites = [str(s) for s in part[SITE].values]
    about = [
        part[c].values.tolist() if c in part.coords else [""] * len(sites)
        for c in ("type", "output_shape")
    ]
    depths = part["depth"].values.tolist() if "depth" in part.coords else range(1, len(sites) + 1)
    for site, depth, kind, shape in zip(sites, depths, *about, strict=True):
        known = layers.get(site)
        if known is None or not known.output_shape:
            layers[site] = Layer(site, int(depth), str(kind), str(shape))
    flagged = run.attributes.get("not_finite")
    spoilt = isinstance(flagged, Mapping) and group in flagged
    return {
        name: {
            s: v
            for s, v in zip(sites, _last(part[variable].values, spoilt), strict=True)
            if not math.isnan(v) or spoilt
        }
        for name, variable in here.items()
    }


def _last(values: npt.NDArray[np.floating], spoilt: bool) -> list[float]:
    """(T, S): the last value of each site that is not NaN; the last row if NaN may be a value."""
    if spoilt:
        return [float(v) for v in values[-1]]
    there = ~np.isnan(values[::-1])
    newest = there.argmax(0)
    return [float(v) for v in values[::-1][newest, np.arange(values.shape[1])]]
