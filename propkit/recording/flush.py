"""The writer's job for one flush, done in the background: combine, append, commit."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from propkit.recording.curves import CurveRows
from propkit.recording.faults import Faults
from propkit.recording.health import Health
from propkit.recording.plan import Plan, fitting
from propkit.recording.ranks import Ranks, Shares, join
from propkit.recording.rows import (
    AnyFloats,
    Row,
    Values,
    combine,
    combine_spectra,
    rows_to_host,
)
from propkit.schema import LOG, Group
from propkit.store.pauses import pause

if TYPE_CHECKING:
    from propkit.store.protocol import Writer

_AT_ONCE = 1 << 13
"""Values that are combined at once: the training waits for the interpreter's lock meanwhile."""


def write_flush(
    writer: "Writer",
    groups: Sequence[Group],
    plan: Plan,
    rows: Sequence[Row],
    curves: CurveRows,
    ready: Sequence[torch.cuda.Event],
    attributes: Mapping[str, object],
    ranks: Ranks | None,
    health: Health,
    faults: Faults,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Write what one flush brought and commit it.

    Args:
        writer: Where to.
        groups: Groups that are new or have grown.
        plan: Where each slot goes.
        rows: Steps that were measured.
        curves: Rows of the training curves.
        ready: Events after which the values are complete on their devices.
        attributes: Root attributes to set.
        ranks: The processes that measured shares of the batch; None: this one measured it all.
        health: Looks at the values.
        faults: Those of this process.
        after: What all ranks do when the values are gathered.
    """
    for event in ready:
        event.synchronize()
    pause()
    values = rows_to_host(rows)
    if ranks is not None:
        everyone = ranks.gather(Shares(plan.keys, values, dict(faults), dict(faults.since)))
        after()
        if not ranks.writes:
            return
        health.hear([shares.faults for shares in everyone])
        values = join(everyone, plan.keys)
    for group in groups:
        writer.define(group)
        pause()
    health.look(plan.keys, values)
    if values:
        for slot, length in append_rows(writer, plan, values):
            health.unequal(plan.keys[slot], plan.length(slot), length)
    if curves.steps:
        writer.append(LOG, np.array(curves.steps, dtype=np.int64), curves.columns())
    pause()
    writer.update(**attributes, not_finite=dict(health.first))
    pause()
    writer.commit()


def append_rows(writer: "Writer", plan: Plan, rows: Sequence[Values]) -> list[tuple[int, int]]:
    """Combine the values of each row and append them to the groups that have some.

    Returns:
        Slot and length of the spectra that do not fit their columns, as another rank's may, and were left out.
    """
    size = len(plan.reductions)
    combined, there = np.empty((len(rows), size)), np.zeros((len(rows), size), bool)
    at_once = max(1, _AT_ONCE // max(1, size))
    for start in range(0, len(rows), at_once):
        part = rows[start : start + at_once]
        combined[start : start + at_once] = combine(part, plan.reductions)
        pause()
    spectra: list[dict[int, AnyFloats]] = []
    unequal: list[tuple[int, int]] = []
    for i, row in enumerate(rows):
        there[i, row.slots] = True
        fit, unfit = fitting(plan, row.spectra)
        unequal += [(s.slot, len(s.values)) for s in unfit]
        spectra.append(combine_spectra(fit, plan.reductions))
        there[i, list(spectra[-1])] = True
        pause()
    steps = np.array([row.step for row in rows], dtype=np.int64)
    for group, slots in plan.slots.items():
        keep = np.flatnonzero(there[:, list(slots)].any(1))
        if len(keep):  # a probe with a schedule of its own has no row in the other steps
            table = plan.table(group, combined[keep], [spectra[i] for i in keep])
            writer.append(group, steps[keep], table)
            pause()
    return unequal
