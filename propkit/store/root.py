"""The root of a store: which directory is a run, and its root metadata."""

import json
import os
from pathlib import Path
from typing import Any

from propkit.schema import SCHEMA_VERSION


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
        root = json.loads((path / "zarr.json").read_bytes())
    except (OSError, ValueError):
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
    try:
        root = json.loads(raw or b"")
        attributes = root["attributes"]
        version, writer = attributes["schema_version"], attributes["propkit_version"]
    except (ValueError, KeyError, TypeError):
        kind = "is a file, not the directory of a run" if path.is_file() else "is not a propkit run"
        raise ValueError(
            f"{path} {kind}{_neighbours(path)}; `propkit.attach(model, 'run.zarr')` records one"
        ) from None
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{path} was written by propkit {writer} in layout {version}; this propkit reads "
            f"layouts up to {SCHEMA_VERSION}: `pip install --upgrade propkit`"
        )
    if not root.get("consolidated_metadata"):
        raise ValueError(
            f"{path} has lost its consolidated metadata, something else has written to it; "
            f"`zarr.consolidate_metadata({str(path)!r})` restores it"
        )
    return dict(root)


def _neighbours(folder: Path) -> str:
    runs = (
        sorted(file.parent.name for file in folder.glob("*/zarr.json")) if folder.is_dir() else []
    )
    return f" (in {folder} there are {', '.join(runs[:5])})" if runs else ""
