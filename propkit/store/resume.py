"""Taking up a run that was left: what it holds, and cutting it back to where it goes on."""

import errno
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from propkit.schema import SITE, SITE_INDEX, STEP, Group, Variable
from propkit.store.arrays import GrowingArray, replace_file
from propkit.store.compact import expand
from propkit.store.hold import claim, release
from propkit.store.packing import grows, is_live
from propkit.store.root import local, read_root
from propkit.store.sync import restarted_since
from propkit.store.table import TEXT, Steps


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
    def steps(self) -> int:
        """The step at which the recording stopped: all steps before it are in the run, as far as they were measured."""
        last = max((int(g.steps[-1]) for g in self.groups.values() if len(g.steps)), default=-1)
        known = self.attributes.get("steps")
        return last + 1 if known is None or self.restarted else max(int(known), last + 1)

    def let_go(self) -> None:
        """Leave the run as it is."""
        release(self.hold)


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


def _read_group(path: Path, name: str, nodes: dict[str, Any]) -> StoredGroup:
    own = {key: node for key, node in nodes.items() if key.partition("/")[0] == name}
    arrays: dict[str, GrowingArray] = {}
    variables: list[Variable] = []
    fixed: dict[str, str] = {}
    coords: dict[str, Any] = {}
    axes: dict[str, Any] = {}
    for key, node in own.items():
        short = key.removeprefix(f"{name}/")
        dims = node.get("dimension_names", [""])
        if node["node_type"] == "group":
            fixed[key] = json.dumps(node)
        elif dims[0] == STEP:
            arrays[short] = _growing(path / key, node)
            if short != STEP:
                variables.append(_variable(short, node))
        else:
            fixed[key] = json.dumps(node)
            if short == SITE_INDEX:
                axes[dims[0]] = None
            elif dims[0] == SITE:
                coords[short] = _read(path, key)
            else:
                axes[short] = _read(path, key)
    attributes = dict(own[name]["attributes"])
    attributes.pop("coordinates", None)
    dims = {
        v.name: set(own[f"{name}/{v.name}"]["dimension_names"]) - {STEP, SITE} for v in variables
    }
    variables = [replace(v, dim=next(iter(dims[v.name]), "")) for v in variables]
    # The order in which `Group` has them: the names first, the sizes where they were.
    order = sorted(coords, key=lambda c: c != SITE)
    group = Group(name, tuple(variables), {c: coords[c] for c in order}, attributes, axes)
    rows = own[f"{name}/{STEP}"]["shape"][0]
    steps, stale = _steps(arrays[STEP], rows)
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
        dtype=node["data_type"],
    )


def _read(path: Path, key: str) -> Any:
    import zarr

    # The array as the root has it: its own metadata may be of a growth that was never committed.
    array: Any = zarr.open_group(path, mode="r", use_consolidated=True)[key]
    values = np.asarray(array[...])
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
