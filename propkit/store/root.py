"""The root of a store: which directory is a run, and its root metadata."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from propkit.notices import say
from propkit.schema import STEP
from propkit.store.migrations import check_layout, migrated
from propkit.store.sync import restarted_since


def local(path: str | os.PathLike[str]) -> Path:
    """The absolute path of a run.

    Raises:
        ValueError: It is a URL.
    """
    if "://" in os.fspath(path):
        raise ValueError(
            f"expected a path on this machine, found the URL {os.fspath(path)}: copy the run here"
        )
    return Path(path).expanduser().absolute()


def run_attributes(path: Path) -> dict[str, Any] | None:
    """Root attributes of the run at a path, of whatever version; None if there is no run."""
    try:
        return attributes_in((path / "zarr.json").read_bytes())
    except OSError:
        return None


def attributes_in(raw: bytes) -> dict[str, Any] | None:
    """Root attributes in the bytes of a root ``zarr.json``; None if it is not that of a run."""
    try:
        root = json.loads(raw)
    except ValueError:
        return None
    attributes = root.get("attributes") if isinstance(root, dict) else None
    known = isinstance(attributes, dict) and {"schema_version", "propkit_version"} <= set(
        attributes
    )
    return attributes if known else None


def read_root(path: Path) -> dict[str, Any]:
    """The root metadata of a run, read once: all lengths in it belong to one commit."""
    try:
        raw = (path / "zarr.json").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raw = None
    if not path.exists():
        raise FileNotFoundError(
            f"no run at {path}{_neighbours(path.parent)}; "
            f"`propkit.attach(model, {path.name!r})` records one"
        )
    damaged = any(path.glob("*/step/zarr.json"))
    what = "is a file, not the directory of a run" if path.is_file() else "is not a propkit run"
    if damaged:
        what = "has lost its root metadata"
    root = parse_root(raw, str(path), f"{what}{_neighbours(path)}", repair=damaged)
    attributes = root["attributes"]
    return _trusted(path, root) if restarted_since(attributes) else root


def parse_root(
    raw: bytes | None, name: str, otherwise: str = "is not a propkit run", repair: bool = False
) -> dict[str, Any]:
    """The root metadata in the bytes of a root ``zarr.json``.

    Args:
        raw: The bytes; None if there are none.
        name: How messages call the run.
        otherwise: What the place is if it is no run.
        repair: Whether there is something to repair it from.

    Returns:
        The metadata, those of an older layout as `propkit.store.migrations` brings them to that of today.

    Raises:
        ValueError: It is no run, or of a newer layout, or has lost its consolidated metadata.
    """
    way_out = (
        f"`python -m propkit repair {name}` restores it"
        if repair
        else "`propkit.attach(model, 'run.zarr')` records one"
    )
    try:
        root = json.loads(raw or b"")
        attributes = root["attributes"]
        _ = attributes["schema_version"], attributes["propkit_version"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{name} {otherwise}; {way_out}") from None
    check_layout(attributes, name)
    if not root.get("consolidated_metadata"):
        raise ValueError(
            f"{name} has lost its consolidated metadata, something else has written to it; "
            f"`python -m propkit repair {name}` restores it"
        )
    return migrated(root)


def _trusted(path: Path, root: dict[str, Any]) -> dict[str, Any]:
    """The root of a run that was being written when the machine was restarted: only rows known to be on the disk."""
    nodes = root["consolidated_metadata"]["metadata"]
    commit = root["attributes"]["commit"]
    lost = {}
    for name in [key.removesuffix(f"/{STEP}") for key in nodes if key.endswith(f"/{STEP}")]:
        step = nodes[f"{name}/{STEP}"]
        rows, durable = step["shape"][0], commit.get("durable_rows", {}).get(name, 0)
        if durable >= rows:
            continue
        lost[name] = rows - durable
        for key, node in nodes.items():
            if key.startswith(f"{name}/") and node.get("dimension_names", [""])[0] == STEP:
                node["shape"][0] = durable
        commit["last_step"].pop(name, None)
        if durable:
            (period,) = step["chunk_grid"]["configuration"]["chunk_shape"]
            chunk, row = divmod(durable - 1, period)
            steps = np.fromfile(path / name / STEP / f"c.{chunk}", "<i8", 1, offset=8 * row)
            commit["last_step"][name] = int(steps[0])
    if lost:
        listed = ", ".join(f"{n} of {name}" for name, n in lost.items())
        note = (
            f"the machine was restarted while the run was being written: its last rows ({listed}) were not known to "
            "be on the disk and are left out"
        )
        root["attributes"]["notes"] = [*root["attributes"].get("notes", []), note]
        if (path, commit["seq"]) not in _said:
            _said.add((path, commit["seq"]))
            say(f"{path}: {note}")
    return root


_said: set[tuple[Path, int]] = set()


def _neighbours(folder: Path) -> str:
    runs = (
        sorted(file.parent.name for file in folder.glob("*/zarr.json")) if folder.is_dir() else []
    )
    return f" (in {folder} there are {', '.join(runs[:5])})" if runs else ""
