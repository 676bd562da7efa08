"""Runs whose root metadata were damaged: put together again from the arrays, as far as their rows are whole.

The root ``zarr.json`` says how long all arrays are. Where it is missing, cut off, or has lost its consolidated metadata
(a copy that was interrupted, another program that wrote to the store), the arrays' own ``zarr.json`` still say what
they are, and the chunks what was written: a row is taken if its step was written and follows the one before, and if
all variables of the group have the chunk that it lies in.
"""

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from propkit.schema import STEP
from propkit.store.attributes import birth, stamp
from propkit.store.files import replace_file
from propkit.store.hold import claim, release
from propkit.store.migrations import check_layout
from propkit.store.packing import grows, is_live
from propkit.store.root import local, run_attributes

REASON = "its root metadata were damaged, and put together again from its arrays by propkit repair"


@dataclass(frozen=True)
class Repair:
    """What was done.

    Attributes:
        path: The run.
        rows: Group -> rows that were recovered.
        notes: What was damaged, and what could not be had again. Empty: nothing was to be done.
    """

    path: Path
    rows: Mapping[str, int]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        if not self.notes:
            return f"{self.path}: nothing to repair"
        held = ", ".join(f"{name} ({rows} rows)" for name, rows in self.rows.items())
        return "\n".join([f"{self.path}: recovered {held or 'no rows'}", *self.notes])


def repair(path: str | os.PathLike[str]) -> Repair:
    """Restore the root metadata of a run from its arrays; what is whole is left as it is.

    Args:
        path: The store's directory.

    Raises:
        BlockingIOError: The run is being written.
        FileNotFoundError: There is nothing at that path.
        ValueError: There is neither a run nor a group of one, or a newer propkit wrote it.
    """
    place = local(path).resolve()
    if not place.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no run", str(place))
    names = sorted(file.parents[1].name for file in place.glob(f"*/{STEP}/zarr.json"))
    attributes = run_attributes(place)
    if attributes is None and not names:
        raise ValueError(f"{place} holds neither a run nor a group of one: nothing can be repaired")
    if attributes is not None:
        check_layout(attributes, str(place))
    hold, _ = claim(place, takeover=False)
    try:
        return _repair(place, names, attributes)
    finally:
        release(hold)


def _repair(place: Path, names: list[str], attributes: dict[str, Any] | None) -> Repair:
    root = _json(place / "zarr.json")
    if attributes is not None and root.get("consolidated_metadata"):
        return Repair(place, {}, ())
    notes = []
    if attributes is None:
        notes.append(
            "the root metadata were lost, and with them what the run said of itself (configuration, seed, model): "
            "its state is set to 'failed'"
        )
        begun: dict[str, Any] = birth({"pid": 0, "state": "failed", "reason": REASON})
        attributes = begun
    else:
        notes.append("the consolidated metadata were lost")
    nodes: dict[str, Any] = {}
    rows: dict[str, int] = {}
    last: dict[str, int | None] = {}
    trusted = (attributes.get("commit") or {}).get("rows", {})
    for name in names:
        found, missing = _group(place, name)
        notes += missing
        if f"{name}/{STEP}" not in found:
            continue
        steps = _whole_rows(place, name, found, trusted.get(name))
        for key, node in found.items():
            if grows(node) and len(steps) and is_live(node) and not any((place / key).glob("c.*")):
                notes.append(f"{key}: it has no chunks, so its values are NaN")
        rows[name], last[name] = len(steps), int(steps[-1]) if len(steps) else None
        for node in found.values():
            if grows(node):
                node["shape"][0] = len(steps)
        nodes |= found
    seq = int((attributes.get("commit") or {}).get("seq", 0)) + 1
    kept = [*attributes.get("notes", []), *(f"repaired: {note}" for note in notes)]
    root = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {**attributes, "notes": kept, "commit": stamp(seq, last, rows, rows)},
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": nodes},
    }
    replace_file(place, place / "zarr.json", json.dumps(root, allow_nan=False))
    for key, node in nodes.items():
        if grows(node):
            replace_file(place, place / key / "zarr.json", json.dumps(node))
    return Repair(place, rows, tuple(notes))


def _group(place: Path, name: str) -> tuple[dict[str, Any], list[str]]:
    """Path -> metadata of a group and its arrays, and what is damaged."""
    own = _json(place / name / "zarr.json")
    notes = []
    if own.get("node_type") != "group":
        notes.append(f"{name}: its attributes were lost")
        own = {"attributes": {}, "zarr_format": 3, "node_type": "group"}
        replace_file(place, place / name / "zarr.json", json.dumps(own))
    inline = {"kind": "inline", "must_understand": False, "metadata": {}}
    found: dict[str, Any] = {name: {**own, "consolidated_metadata": inline}}
    for folder in sorted(f for f in (place / name).iterdir() if f.is_dir()):
        node = _json(folder / "zarr.json")
        if node.get("node_type") == "array":
            found[f"{name}/{folder.name}"] = node
        else:
            notes.append(f"{name}/{folder.name}: what it is was lost, so it is left out")
    return found, notes


def _whole_rows(place: Path, name: str, found: Mapping[str, Any], most: int | None) -> Any:
    """Steps of the rows that are whole.

    Args:
        place: The store.
        name: The group.
        found: Its metadata.
        most: Rows that were committed, if that is known.
    """
    step = found[f"{name}/{STEP}"]
    arrays = {k: n for k, n in found.items() if grows(n)}
    if not is_live(step):
        steps = _read(place / name / STEP, step)
        return steps[: min(n["shape"][0] for n in arrays.values())]
    (period,) = step["chunk_grid"]["configuration"]["chunk_shape"]
    parts: list[npt.NDArray[np.int64]] = []
    while (file := place / name / STEP / f"c.{len(parts)}").exists():
        part = np.zeros(period, np.int64)
        there = np.fromfile(file, "<i8")[:period]
        part[: len(there)] = there
        parts.append(part)
    steps = np.concatenate([np.empty(0, np.int64), *parts])
    # Rows that were never written have step 0, as the first row may: the steps increase as far as they are real.
    stops = np.flatnonzero(np.diff(steps) <= 0)
    rows = int(stops[0]) + 1 if len(stops) else len(steps)
    if most is not None:
        rows = min(rows, most)
    for key, node in arrays.items():
        rows = min(rows, _covered(place / key, node, rows))
    if rows == 1 and steps[0] == 0 and step["shape"][0] == 0 and most is None:
        rows = int(_any_value(place, arrays))
    return steps[:rows]


def _covered(folder: Path, node: Mapping[str, Any], most: int) -> int:
    """Rows up to the first chunk that has no file of its full length; those of `most` before a variable began count."""
    chunk = node["chunk_grid"]["configuration"]["chunk_shape"]
    size = int(np.prod(chunk)) * np.dtype(node["data_type"]).itemsize
    first = ".".join(["", *("0" for _ in chunk[1:])])
    count, end = 0, -(-most // int(chunk[0]))
    while count < end and not (folder / f"c.{count}{first}").exists():
        count += 1  # a variable that came late is NaN before
    while (file := folder / f"c.{count}{first}").exists() and file.stat().st_size >= size:
        count += 1
    return count * int(chunk[0])


def _any_value(place: Path, arrays: Mapping[str, Any]) -> bool:
    """Whether the first row has a value: its step 0 is also what is read where nothing was written."""
    for key, node in arrays.items():
        if key.endswith(f"/{STEP}"):
            continue
        chunk = node["chunk_grid"]["configuration"]["chunk_shape"]
        file = place / key / ".".join(["c", *("0" for _ in chunk)])
        dtype = np.dtype(node["data_type"]).newbyteorder("<")
        if np.fromfile(file, dtype, int(np.prod(chunk[1:], dtype=int))).any():
            return True
    return False


def _read(folder: Path, node: Mapping[str, Any]) -> Any:
    import zarr

    array: Any = zarr.open_array(folder, mode="r")
    return array[: node["shape"][0]]


def _json(file: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
