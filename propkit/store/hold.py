"""One writer per store: creating a store under its name, replacing one, and holding it."""

import contextlib
import errno
import os
import shutil
from pathlib import Path

from propkit.store.root import run_attributes


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
        way_out = "choose another name, or replace it with overwrite=True"
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
        who = run_attributes(store) or {}
        reason = (
            f"the run is being written by process {who.get('pid')} on {who.get('host')} "
            f"since {who.get('created')}; wait until it has ended, or choose another name"
        )
        raise BlockingIOError(errno.EWOULDBLOCK, reason, str(store)) from error
    except OSError:
        pass  # a file system without locks: the rename that creates a store still has one winner
    return descriptor


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
        return os.path.samestat(os.fstat(hold), path.stat())
    except FileNotFoundError:
        return False
