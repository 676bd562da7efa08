"""Taking up a run that was left in an object store, or at any URL."""

import errno
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from propkit.schema import STATES, STEP, Group
from propkit.store.hold import alive, in_doubt, writer_of
from propkit.store.objects import Objects
from propkit.store.packing import array_of, grows
from propkit.store.place import named
from propkit.store.resume import group_of, next_step, nodes_of
from propkit.store.root import parse_root
from propkit.store.table import Steps


@dataclass(frozen=True)
class StoredObjects:
    """A group of such a run.

    Attributes:
        group: Its description.
        steps: Steps of its rows, shape (R,).
        nodes: Metadata of the group and its arrays.
    """

    group: Group
    steps: Steps
    nodes: Mapping[str, Any]

    def tail(self, objects: Objects, key: str, rows: int) -> npt.NDArray[np.generic]:
        """Of an array's first `rows` rows those in the last row of chunks, if it is not full."""
        node = self.nodes[key]
        start = rows - rows % int(node["chunk_grid"]["configuration"]["chunk_shape"][0])
        if start == rows:
            return np.empty((0, *node["shape"][1:]), node["data_type"])
        with named(objects.name):
            return np.asarray(array_of(objects.store, key, node)[start:rows])


@dataclass(frozen=True)
class LeftObjects:
    """A run to be continued by `ObjectWriter.resume`; whoever puts the root first holds it from then on.

    Attributes:
        objects: The store.
        attributes: Its root attributes.
        groups: Its groups.
        notes: Remarks on how it was left.
    """

    objects: Objects
    attributes: dict[str, Any]
    groups: dict[str, StoredObjects]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """How messages call it."""
        return self.objects.name

    @property
    def steps(self) -> int:
        """The step at which the recording stopped: all steps before it are in the run, as far as they were measured."""
        return next_step(self.attributes, self.groups.values())

    def let_go(self) -> None:
        """Leave the run as it is: nothing holds it yet."""


def take_up_objects(target: Any, takeover: bool = False) -> LeftObjects:
    """Read what has to be known of a run that is to be continued; nothing of it is changed yet.

    Args:
        target: A URL, or a store of zarr's or obstore's.
        takeover: Take it even from a writer that may be alive; it is refused from then on, see `Objects`.

    Raises:
        BlockingIOError: Someone else writes it, or may do so.
        FileNotFoundError: There is no run.
        ImportError, TypeError, ValueError: As `propkit.open`; or its chunks are too large to be put again and again.
        OSError: The store cannot be reached, or the run is damaged.
    """
    objects = Objects.at(target)
    raw = objects.take_root()
    if raw is None:
        reason = "no run is there; resume=True without step= begins one"
        raise FileNotFoundError(errno.ENOENT, reason, objects.name)
    root = parse_root(raw, objects.name)
    attributes, nodes = root["attributes"], root["consolidated_metadata"]["metadata"]
    remark = _abandoned(attributes, takeover, objects.name)
    if any(grows(n) and n["codecs"][0]["name"] == "sharding_indexed" for n in nodes.values()):
        raise ValueError(
            f"{objects.name} is a compact copy of a long run, which cannot grow where it is: copy its objects into a "
            "directory of this machine and continue it there"
        )
    names = [key.removesuffix(f"/{STEP}") for key in nodes if key.endswith(f"/{STEP}")]
    groups = {name: _read_group(objects, name, nodes) for name in names}
    notes = (f"taken over from {remark}",) if remark else ()
    return LeftObjects(objects, attributes, groups, notes)


def _abandoned(attributes: Mapping[str, Any], takeover: bool, name: str) -> str:
    """A remark on a writer that did not close the run; empty if it did."""
    if attributes.get("state") != STATES[0]:
        return ""
    who = writer_of(attributes)
    here = attributes.get("host") == socket.gethostname()
    if not takeover and (not here or alive(int(attributes.get("pid", 0)))):
        raise in_doubt(who, "which is alive" if here else "of which nothing is known here", name)
    return f"{who}: it ended without closing the run"


def _read_group(objects: Objects, name: str, nodes: Mapping[str, Any]) -> StoredObjects:
    with named(objects.name):
        group = group_of(objects.store, name, nodes)
        step = f"{name}/{STEP}"
        steps = np.asarray(array_of(objects.store, step, nodes[step])[...]).astype(np.int64)
    if (np.diff(steps) <= 0).any():
        reason = f"the steps of its {len(steps)} rows of {name} are damaged; record a new run"
        raise OSError(errno.EIO, reason, objects.name)
    return StoredObjects(group, steps, nodes_of(name, nodes))
