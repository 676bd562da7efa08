"""Taking up a run that was left: what it holds, and cutting it back to where it goes on."""

import errno
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from propkit.schema import SITE, SITE_INDEX, STEP, Group, Variable
from propkit.store.arrays import GrowingArray
from propkit.store.compact import expand
from propkit.store.files import replace_file
from propkit.store.hold import claim, release
from propkit.store.packing import array_of, grows, is_live
from propkit.store.root import local, read_root
from propkit.store.sync import restarted_since
from propkit.store.table import TEXT, Steps

if TYPE_CHECKING:
    from zarr.abc.store import Store


@dataclass(frozen=True)
class StoredGroup:
    """A group of a store, as its writer left it.

    Attributes:
        group: Its description.
        steps: Steps of its rows, shape (R,).
        fixed: Path -> metadata of the group and its coordinates.
        arrays: Variable -> array that grows.
        stale: Rows that were written after the last commit; no reader ever saw them.
    """

    group: Group
    steps: Steps
    fixed: dict[str, str]
    arrays: dict[str, GrowingArray]
    stale: int


@dataclass(frozen=True)
class LeftRun:
    """A run that is held, to be continued by `ZarrWriter.resume` or let go.

    Attributes:
        path: The store's directory.
        hold: The hold on it.
        attributes: Its root attributes.
        groups: Its groups.
        restarted: Whether the machine was restarted while it was being written.
        notes: Remarks on how it was left.
    """

    path: Path
    hold: int
    attributes: dict[str, Any]
    groups: dict[str, StoredGroup]
    restarted: bool
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """How messages call it."""
        return str(self.path)

    @property
    def steps(self) -> int:
        """The step at which the recording stopped: all steps before it are in the run, as far as they were measured."""
        return next_step({} if self.restarted else self.attributes, self.groups.values())

    def let_go(self) -> None:
        """Leave the run as it is."""
        release(self.hold)


class LeftGroup(Protocol):
    """What has to be known of a group, wherever it is, before it is continued."""

    @property
    def group(self) -> Group:
        """Its description."""

    @property
    def steps(self) -> Steps:
        """Steps of its rows, shape (R,)."""


class Left(Protocol):
    """What has to be known of a run, wherever it is, before it is continued."""

    @property
    def name(self) -> str:
        """How messages call it."""

    @property
    def attributes(self) -> dict[str, Any]:
        """Its root attributes."""

    @property
    def groups(self) -> Mapping[str, LeftGroup]:
        """Its groups."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on how it was left."""

    @property
    def steps(self) -> int:
        """The step at which the recording stopped."""

    def let_go(self) -> None:
        """Leave the run as it is."""


def next_step(attributes: Mapping[str, Any], groups: Iterable[LeftGroup]) -> int:
    """The step after all that a run holds, and after all that it knows to have been completed."""
    last = max((int(g.steps[-1]) for g in groups if len(g.steps)), default=-1)
    return max(int(attributes.get("steps") or 0), last + 1)


def take_up(path: str | os.PathLike[str], takeover: bool = False) -> LeftRun:
    """Hold a run that is to be continued; nothing of it is changed yet.

    Args:
        path: The store's directory.
        takeover: Take it even from a writer of which nothing is known here; see `hold.claim`.

    Raises:
        FileNotFoundError: There is nothing at that path.
        BlockingIOError: Someone else writes it, or may do so.
        ValueError: It is no run, or one of a newer layout.
        OSError: It is damaged, or what was compacted cannot be unpacked.
    """
    target = local(path).resolve()
    root = read_root(target)  # first of all: a directory that is no run is not touched
    if not all(map(is_live, filter(grows, root["consolidated_metadata"]["metadata"].values()))):
        expand(target)
    descriptor, remark = claim(target, takeover)
    try:
        root = read_root(target)
        attributes = dict(root["attributes"])
        nodes = root["consolidated_metadata"]["metadata"]
        names = [key.removesuffix(f"/{STEP}") for key in nodes if key.endswith(f"/{STEP}")]
        groups = {name: _read_group(target, name, nodes) for name in names}
        restarted = restarted_since(attributes)
    except BaseException:
        release(descriptor)
        raise
    notes = [f"taken over from {remark}"] if remark else []
    stale = max((g.stale for g in groups.values()), default=0)
    if restarted:  # any part of what was being written may have got lost, the steps too
        groups = {n: replace(g, stale=g.arrays[STEP].period) for n, g in groups.items()}
    elif stale:
        notes.append(f"{stale} rows of a flush that was not committed were dropped")
    return LeftRun(target, descriptor, attributes, groups, restarted, tuple(notes))


def cut(store: Path, stored: StoredGroup, rows: int) -> None:
    """Remove what lies beyond the first `rows` rows; the root must say so already.

    A process that is killed meanwhile leaves files that no reader looks at, and the next one that continues the run
    removes them: the steps, by which they are known, go last.
    """
    beyond = len(stored.steps) + stored.stale
    arrays = [a for name, a in stored.arrays.items() if name != STEP]
    for array in (*arrays, stored.arrays[STEP]):
        replace_file(store, array.folder / "zarr.json", array.text(rows))
        array.cut(rows, beyond)


def group_of(store: "Store", name: str, nodes: Mapping[str, Any]) -> Group:
    """The description of a group that is in a store, of whose metadata the root has `nodes`."""
    variables: list[Variable] = []
    coords: dict[str, Any] = {}
    axes: dict[str, Any] = {}
    for key, node in nodes_of(name, nodes).items():
        short = key.removeprefix(f"{name}/")
        if node["node_type"] == "group" or short == STEP:
            continue
        dims = node["dimension_names"]
        if grows(node):
            variables.append(_variable(short, node))
        elif short == SITE_INDEX:
            axes[dims[0]] = None
        elif dims[0] == SITE:
            coords[short] = _read(store, key, node)
        else:
            axes[short] = _read(store, key, node)
    attributes = dict(nodes[name]["attributes"])
    attributes.pop("coordinates", None)
    # The order in which `Group` has them: the names first, the sizes where they were.
    order = sorted(coords, key=lambda c: c != SITE)
    return Group(name, tuple(variables), {c: coords[c] for c in order}, attributes, axes)


def nodes_of(name: str, nodes: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a group and its arrays."""
    return {key: node for key, node in nodes.items() if key.partition("/")[0] == name}


def _read_group(path: Path, name: str, nodes: dict[str, Any]) -> StoredGroup:
    from zarr.storage import LocalStore

    own = nodes_of(name, nodes)
    fixed = {key: json.dumps(node) for key, node in own.items() if not grows(node)}
    arrays = {
        key.removeprefix(f"{name}/"): _growing(path / key, node)
        for key, node in own.items()
        if grows(node)
    }
    steps, stale = _steps(arrays[STEP], own[f"{name}/{STEP}"]["shape"][0])
    group = group_of(LocalStore(path, read_only=True), name, nodes)
    return StoredGroup(group, steps, fixed, arrays, stale)


def _growing(folder: Path, node: dict[str, Any]) -> GrowingArray:
    metadata = {key: value for key, value in node.items() if key != "shape"}
    period, *inner = node["chunk_grid"]["configuration"]["chunk_shape"]
    dtype = np.dtype(node["data_type"]).newbyteorder("<").str
    row = tuple(node["shape"][1:])
    columns = inner[0] if inner else 1
    return GrowingArray(folder, dtype, row, period, columns, json.dumps(metadata)[1:])


def _variable(name: str, node: dict[str, Any]) -> Variable:
    kept = {k: str(v) for k, v in node["attributes"].items()}
    return Variable(
        name,
        kept.get("units", "1"),
        kept.get("long_name", ""),
        kept.get("reference", ""),
        kept.get("reduce", "mean"),
        next((dim for dim in node["dimension_names"] if dim not in (STEP, SITE)), ""),
        node["data_type"],
    )


def _read(store: "Store", key: str, node: dict[str, Any]) -> Any:
    # The array as the root has it: its own metadata may be of a growth that was never committed.
    values = np.asarray(array_of(store, key, node)[...])
    return np.array(values.tolist(), np.str_) if values.dtype.kind in TEXT else values


def _steps(array: GrowingArray, rows: int) -> tuple[Steps, int]:
    """Steps of the rows committed, and how many more were written."""
    parts = []
    for chunk in range(rows // array.period + 1):
        file = array.folder / f"c.{chunk}"
        if file.exists():
            parts.append(np.fromfile(file, array.dtype)[: array.period].astype(np.int64))
    steps = np.concatenate([np.empty(0, np.int64), *parts])
    if len(steps) < rows or (np.diff(steps[:rows]) <= 0).any():
        reason = f"the steps of its {rows} rows are damaged; copy what is left of the run and record a new one"
        raise OSError(errno.EIO, reason, str(array.folder))
    written = np.flatnonzero(steps[rows:])
    return steps[:rows], int(written[-1]) + 1 if len(written) else 0
