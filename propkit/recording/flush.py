"""The writer's job for one flush, done in the background: combine, append, commit."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from propkit.recording.curves import CurveRows
from propkit.recording.health import Health
from propkit.recording.layout import Plan
from propkit.recording.ranks import Ranks, Shares, join
from propkit.recording.rows import Row, Values, combine, rows_to_host
from propkit.schema import LOG, Group

if TYPE_CHECKING:
    from propkit.store.writer import Writer


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
    """
    for event in ready:
        event.synchronize()
    values = rows_to_host(rows)
    if ranks is not None:
        everyone = ranks.gather(Shares(plan.keys, values))
        if not ranks.writes:
            return
        values = join(everyone, plan.keys)
    for group in groups:
        writer.define(group)
    health.look(plan.keys, values)
    if values:
        _append(writer, plan, values)
    if curves.steps:
        writer.append(LOG, np.array(curves.steps, dtype=np.int64), curves.columns())
    writer.update(**attributes, not_finite=dict(health.first))
    writer.commit()


def _append(writer: "Writer", plan: Plan, rows: Sequence[Values]) -> None:
    combined = np.full((len(rows), len(plan.reductions)), np.nan)
    present: dict[str, list[int]] = {group: [] for group in plan.groups}
    for i, row in enumerate(rows):
        combined[i] = combine(row.slots, row.values, row.weights, plan.reductions)
        targets = (plan.targets[slot] for slot in row.slots)
        for group in {target[0] for target in targets if target is not None}:
            present[group].append(i)
    steps = np.array([row.step for row in rows], dtype=np.int64)
    for group, table in plan.tables(combined).items():
        keep = present[group]  # a probe with a schedule of its own has no row in the other steps
        if keep:
            columns = {name: values[keep] for name, values in table.items()}
            writer.append(group, steps[keep], columns)
