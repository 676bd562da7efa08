"""The writer's job for one flush, done in the background: combine, append, commit."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from propkit.curves import CurveRows
from propkit.layout import Plan
from propkit.rows import Floats, Row, combine, to_host
from propkit.schema import LOG, Group

if TYPE_CHECKING:
    from propkit.writer import Writer


def write_flush(
    writer: "Writer",
    groups: Sequence[Group],
    plan: Plan,
    rows: Sequence[Row],
    curves: CurveRows,
    ready: Sequence[torch.cuda.Event],
    attributes: Mapping[str, object],
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
    """
    for event in ready:
        event.synchronize()
    for group in groups:
        writer.define(group)
    if rows:
        _append(writer, plan, rows, to_host([v for row in rows for v in row.vectors]))
    if curves.steps:
        writer.append(LOG, np.array(curves.steps, dtype=np.int64), curves.columns())
    writer.update(**attributes)
    writer.commit()


def _append(writer: "Writer", plan: Plan, rows: Sequence[Row], vectors: Sequence[Floats]) -> None:
    parts = iter(vectors)
    combined = np.full((len(rows), len(plan.reductions)), np.nan)
    present: dict[str, list[int]] = {group: [] for group in plan.groups}
    for i, row in enumerate(rows):
        values = np.concatenate([next(parts) for _ in row.vectors])
        combined[i] = combine(row.slots, values, row.weights, plan.reductions)
        targets = (plan.targets[slot] for slot in row.slots)
        for group in {target[0] for target in targets if target is not None}:
            present[group].append(i)
    steps = np.array([row.step for row in rows], dtype=np.int64)
    for group, table in plan.tables(combined).items():
        keep = present[group]  # a probe with a schedule of its own has no row in the other steps
        if keep:
            columns = {name: values[keep] for name, values in table.items()}
            writer.append(group, steps[keep], columns)
