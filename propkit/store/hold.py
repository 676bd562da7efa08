"""One writer per store: creating a store under its name, replacing one, and holding it."""

import contextlib
import errno
import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from propkit.schema import STATES
from propkit.store.root import run_attributes
from propkit.store.sync import restarted_since


def check_free(target: Path, overwrite: bool) -> None:
    """Refuse a path that a new run may not take.

    Raises:
        FileExistsError: Something is there, and it is no run or must not be overwritten.
    """
    if not os.path.lexists(target):
        return
    attributes = run_attributes(target)
    if attributes is None:
        what, way_out = "is not a propkit run, and nothing else is replaced", "choose another name"
    elif overwrite:
        return
    else:
        what = f"holds a run ({attributes.get('state')}, begun {attributes.get('created')})"
        way_out = (
            "choose another name, continue it with resume=True, or replace it with overwrite=True"
        )
    reason = f"the path exists and {what}; {way_out}"
    raise FileExistsError(errno.EEXIST, reason, str(target))


def put_in_place(fresh: Path, target: Path) -> None:
    """Rename `fresh` to `target`; a run that is there gives way unless it is being written."""
    if not os.path.lexists(target):
        return _rename(fresh, target)
    hold = take(target)
    try:
        if not is_at(hold, target):
            raise FileExistsError(errno.EEXIST, "another run has just been created", str(target))
        old = fresh.with_suffix(".old")
        target.rename(old)
        try:
            _rename(fresh, target)
        except OSError:
            old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        release(hold)
    return None


def _rename(fresh: Path, target: Path) -> None:
    try:
        fresh.rename(target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        reason = "another run has just been created"
        raise FileExistsError(errno.EEXIST, reason, str(target)) from error


def take(store: Path) -> int:
    """Hold a store as its one writer; the hold ends with the process.

    Raises:
        BlockingIOError: Someone else holds it; the message says who.
    """
    import fcntl

    descriptor = os.open(store, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        reason = (
            f"the run is being written by {writer_of(run_attributes(store) or {})}; wait until it "
            "has ended, or choose another name"
        )
        raise BlockingIOError(errno.EWOULDBLOCK, reason, str(store)) from error
    except OSError:
        pass  # a file system without locks: the rename that creates a store still has one winner
    return descriptor


def claim(store: Path, takeover: bool) -> tuple[int, str]:
    """Hold a run to continue it, from a writer that closed it or is gone.

    Args:
        store: The run.
        takeover: Take it even from a writer of which nothing is known: on another machine, or on a file system
            without locks.

    Returns:
        The hold, and a remark on a writer that did not close the run (empty if it did).

    Raises:
        BlockingIOError: Someone else holds it, or may do so; the message says who.
    """
    descriptor = take(store)
    try:
        attributes = run_attributes(store) or {}
        if attributes.get("state") != STATES[0]:
            return descriptor, ""
        who = writer_of(attributes)
        if attributes.get("host") != socket.gethostname():
            gone, why = takeover, "of which nothing is known here"
        elif restarted_since(attributes):
            return descriptor, f"{who}: it ended when the machine was restarted"
        else:
            gone = takeover or _locks_work(store) or not alive(int(attributes.get("pid", 0)))
            why = "which is alive, on a file system without locks"
        if not gone:
            raise in_doubt(who, why, str(store))
    except BaseException:
        release(descriptor)
        raise
    return descriptor, f"{who}: it ended without closing the run"


def in_doubt(who: str, why: str, name: str) -> BlockingIOError:
    """The error of a run that may be being written."""
    reason = (
        f"the run may be being written by {who}, {why}; if that process has ended, take the run over "
        "with takeover=True"
    )
    return BlockingIOError(errno.EWOULDBLOCK, reason, name)


def writer_of(attributes: Mapping[str, Any]) -> str:
    """Who writes a run, or did so last."""
    segments = attributes.get("segments") or [{}]
    since = segments[-1].get("time") or attributes.get("created")
    return f"process {attributes.get('pid')} on {attributes.get('host')} since {since}"


def _locks_work(store: Path) -> bool:
    """Whether the hold that this process has just taken keeps others out."""
    import fcntl

    other = os.open(store, os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(other)
    return False


def alive(pid: int) -> bool:
    """Whether a process of this machine runs; True if that cannot be known."""
    if os.name != "posix" or pid <= 0:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def release(hold: int) -> None:
    """Let a store go."""
    import fcntl

    # Closing is not enough: worker processes that were forked meanwhile share the hold.
    with contextlib.suppress(OSError):
        fcntl.flock(hold, fcntl.LOCK_UN)
    os.close(hold)


def is_at(hold: int, path: Path) -> bool:
    """Whether the directory that is held is (still) the one at that path."""
    try:
        return os.path.samestat(os.fstat(hold), os.stat(path))  # noqa: PTH116 - at each commit
    except FileNotFoundError:
        return False
