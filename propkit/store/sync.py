"""What survives a power failure: flushing a store to the disk, and noticing that the machine was restarted."""

import functools
import os
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")


@functools.cache
def boot_id() -> str:
    """Identifies the time since the machine was started; empty where the system does not tell (macOS)."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""


def sync_since(store: Path, mark: int) -> None:
    """Flush to the disk what was written into the store since `mark`.

    Args:
        store: Its directory.
        mark: Modification time, in ns, of a file that was written before: the file system's own clock.

    Raises:
        OSError: The disk did not take it.
    """
    for folder, _, files in os.walk(store):
        for path in (*(os.path.join(folder, file) for file in files), folder):  # noqa: PTH118 - many files
            if os.stat(path).st_mtime_ns >= mark:  # noqa: PTH116 - no Path per chunk
                sync_path(path)


def sync_path(path: str | os.PathLike[str]) -> None:
    """Flush one file, or the names in one folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def restarted_since(attributes: dict[str, object]) -> bool:
    """Whether the machine was restarted while the run was being written here: its last rows may be lost.

    Args:
        attributes: Root attributes of the run.
    """
    import socket

    commit = attributes.get("commit")
    before = commit.get("boot_id") if isinstance(commit, dict) else None
    running = (
        attributes.get("state") == "running" and attributes.get("host") == socket.gethostname()
    )
    return bool(running and before and before != (boot_id() or before))
