"""How much room a run takes, on the disk or at a URL."""

import os
from pathlib import Path
from typing import Any

from propkit.store.place import named, synchronous
from propkit.store.run import Run


def on_disk(path: Path) -> tuple[int, int]:
    """Bytes that the files take, which is less than their length where they have holes; number of files."""
    size = files = 0
    inside = (
        os.path.join(folder, name)  # noqa: PTH118 - a Path per file is slow
        for folder, _, names in os.walk(path)
        for name in names
    )
    for file in [path] if path.is_file() else inside:
        try:
            status = os.stat(file)  # noqa: PTH116
        except FileNotFoundError:  # of a run that is being written
            continue
        files += 1
        size += getattr(status, "st_blocks", -(-status.st_size // 512)) * 512
    return size, files


def in_store(run: Run) -> tuple[int, int] | tuple[None, None]:
    """Bytes and number of the objects of a run at a URL; None where they are not listed with their sizes."""
    from zarr.storage import FsspecStore, ObjectStore

    store: Any = run.store()
    sizes: list[int] = []
    with named(run.name):
        if isinstance(store, ObjectStore):
            sizes = [int(o["size"]) for several in store.store.list() for o in several]
        elif isinstance(store, FsspecStore):
            try:
                found = synchronous(store.fs._find(store.path, detail=True))
            except NotImplementedError:
                return None, None
            sizes = [int(o.get("size") or 0) for o in found.values()]
    return (sum(sizes), len(sizes)) if sizes else (None, None)


def readable(size: int) -> str:
    """A size in the unit that suits it.

    >>> readable(512), readable(13_300_000)
    ('512 B', '13.3 MB')
    """
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"
