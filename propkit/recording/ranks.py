"""The processes of a data-parallel training: each measures its share of the batch, rank 0 combines and writes."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch.distributed as dist

from propkit.hooks.taps import Key
from propkit.recording.budget import Decision
from propkit.recording.rows import Values

_PATIENCE = datetime.timedelta(minutes=10)


class Shares(NamedTuple):
    """What one rank measured: its slots' keys, and its values by step; its faults, and since which step."""

    keys: Sequence[Key]
    values: Sequence[Values]
    faults: Mapping[str, str] = {}
    since: Mapping[str, int] = {}


class Ranks:
    """A process group of its own for the recorder, on the host (gloo), so that it never meets the training's traffic.

    Making it is a collective operation, like every flush: all ranks attach, and all detach.

    Attributes:
        rank: Number of this process.
        size: How many there are.
        agreed: What rank 0 decided on the budget when the last flush was made.
    """

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.agreed: Decision | None = None
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)

    @staticmethod
    def find() -> "Ranks | None":
        """The ranks of the default process group; None in a training by one process."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            return Ranks()
        return None

    @property
    def writes(self) -> bool:
        """Whether this process writes the run."""
        return self.rank == 0

    def told(self, said: Any = None) -> Any:
        """What rank 0 says, on every rank: a collective operation."""
        message = [said]
        dist.broadcast_object_list(message, src=0, group=self._group)
        return message[0]

    def agree(self, decision: Decision | None) -> None:
        """Keep what rank 0 decided on the budget in `agreed`, on every rank: a collective operation."""
        self.agreed = self.told(decision)

    def part(self) -> None:
        """Wait for all ranks, so that none closes its connections while another still reads."""
        dist.barrier(group=self._group)

    def gather(self, shares: Shares) -> list[Shares]:
        """The shares of all ranks, in the order of the ranks; empty on those that do not write.

        Raises:
            RuntimeError: A rank is gone.
        """
        everyone: list[Any] | None = [None] * self.size if self.writes else None
        dist.gather_object(shares, everyone, dst=0, group=self._group)
        return everyone or []


def join(everyone: Sequence[Shares], keys: Sequence[Key]) -> list[Values]:
    """Values of all ranks by step, in the slots of `keys`; keys that are not among these are left out.

    So are those of a probe since it failed on one rank: they are not of the whole batch.
    """
    slots = {key: slot for slot, key in enumerate(keys)}
    since: dict[str, int] = {}
    for shares in everyone:
        for probe, step in shares.since.items():
            since[probe] = min(step, since.get(probe, step))
    parts: dict[int, list[Values]] = {}
    for shares in everyone:
        here = np.array([slots.get(key, -1) for key in shares.keys], dtype=np.int64)
        until = np.array([since.get(key.probe, np.inf) for key in shares.keys])
        for values in shares.values:
            known = (here[values.slots] >= 0) & (values.step < until[values.slots])
            parts.setdefault(values.step, []).append(
                Values(
                    values.step,
                    here[values.slots][known],
                    values.values[known],
                    values.weights[known],
                    tuple(
                        s._replace(slot=int(here[s.slot]))
                        for s in values.spectra
                        if here[s.slot] >= 0 and values.step < until[s.slot]
                    ),
                )
            )
    return [
        Values(
            step,
            np.concatenate([p.slots for p in of_step]),
            np.concatenate([p.values for p in of_step]),
            np.concatenate([p.weights for p in of_step]),
            tuple(s for p in of_step for s in p.spectra),
        )
        for step, of_step in sorted(parts.items())
    ]
