"""Runs of older layouts: their root metadata brought to the layout of today, one version after the other.

A run of an older layout is read by what this makes of its root, in memory: nothing is written by reading. Whoever
writes the run next (`propkit.attach` with ``resume=True``, `Run.compact`, `Run.export`) writes the new root, as always
by one rename, so that the run is in the old layout or in the new one at any moment.

To raise `SCHEMA_VERSION` from N to N + 1: give `MIGRATIONS` an entry N, and keep a run of layout N for the tests
(tests/frozen_runs.py makes it). A migration may change the attributes, and of the arrays all that is no matter of how
their chunks are kept: those stay where and as they are.
"""

from collections.abc import Callable
from typing import Any

from propkit.schema import SCHEMA_VERSION

Root = dict[str, Any]

MIGRATIONS: dict[int, Callable[[Root], Root]] = {}
"""Layout -> what makes of a root of that layout one of the next; it may change what it is given."""


def check_layout(attributes: Root, name: str) -> None:
    """Refuse a run of a layout that this propkit does not know.

    Args:
        attributes: Its root attributes.
        name: How messages call it.

    Raises:
        ValueError: It does not; the message says what to install.
    """
    version = attributes["schema_version"]
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(
            f"{name} says that it is in layout {version!r}: expected an integer from 1 on; something else has "
            "written to it, restore it from a copy"
        )
    if version > SCHEMA_VERSION:
        writer = attributes.get("migrated_by", attributes["propkit_version"])
        raise ValueError(
            f"{name} was written by propkit {writer}, in layout {version}; this propkit reads layouts up to "
            f"{SCHEMA_VERSION}: `pip install 'propkit>={writer}'`"
        )


def migrated(root: Root) -> Root:
    """A root of the layout of today, of one that `check_layout` let pass.

    Returns:
        It, or of an older layout its migration; then the root attribute ``migrated_by`` says which propkit made it.
    """
    from propkit import __version__

    first: int = root["attributes"]["schema_version"]
    for version in range(first, SCHEMA_VERSION):
        root = MIGRATIONS[version](root)
        new = {"schema_version": version + 1, "migrated_by": __version__}
        root["attributes"] = {**root["attributes"], **new}
    return root
