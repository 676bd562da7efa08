"""Whether a run's directory still holds the arrays that its root metadata name: to zarr one that is gone is empty."""

import os
from pathlib import Path
from typing import Protocol

from propkit.store.root import read_root

_NAMED = 3
"""How many arrays a message names."""


class HasPath(Protocol):
    """What is used of a `propkit.Run`."""

    @property
    def path(self) -> str | os.PathLike[str] | None:
        """Its directory or zip file, if it has one."""


def damage(run: HasPath, group: str) -> str:
    """What is wrong with a group of a run, for a message; empty if all of its arrays are there."""
    return damages(run).get(group, "")


def damages(run: HasPath) -> dict[str, str]:
    """What is wrong with a run: group -> message, of those that lack arrays.

    Only directories are looked at: single files do not get lost from anything else.
    """
    if run.path is None or not (path := Path(run.path)).is_dir():
        return {}
    gone: dict[str, list[str]] = {}
    for key in sorted(read_root(path)["consolidated_metadata"]["metadata"]):
        group, _, array = key.partition("/")
        if array and not (path / key / "zarr.json").exists():
            gone.setdefault(group, []).append(key)
    return {group: _message(path, keys) for group, keys in gone.items()}


def _message(path: Path, gone: list[str]) -> str:
    more = f" and {len(gone) - _NAMED} more" if len(gone) > _NAMED else ""
    return (
        f"{path} is damaged: {', '.join(gone[:_NAMED])}{more} {'are' if len(gone) > 1 else 'is'} missing, which the "
        "root metadata name; restore the folder from a copy of the run"
    )
