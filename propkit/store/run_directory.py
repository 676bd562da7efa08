"""The directory of a run as zarr reads it: it tells values that are missing from files that have moved."""

import errno
import json
import os
from math import prod
from pathlib import Path

import numpy as np
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from propkit.store.packing import grows, is_live


class CompactedError(RuntimeError):
    """The run was compacted since the dataset was opened: its chunks lie elsewhere."""


class RunDirectory(LocalStore):
    """A local store that refuses to take chunks for missing which were compacted meanwhile.

    To zarr a chunk that is not there is full of NaN.
    """

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self._lengths: dict[str, int] = {}

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """What is under a key.

        Raises:
            CompactedError: It is a chunk of the layout that the run had before.
            OSError: It is a chunk of the live layout, and not as long as it must be.
        """
        found = await super().get(key, prototype, byte_range)
        if found is None and not key.endswith("zarr.json"):
            self._check(key)
        if found is not None and "/c." in key:
            self._check_length(key, len(found))
        return found

    def read_into(self, buffer: memoryview, key: str, offset: int, size: int) -> bool:
        """Fill a buffer from a chunk of the live layout.

        Args:
            buffer: What to fill.
            key: The chunk.
            offset: Where in the chunk to begin, in bytes.
            size: Length that the chunk must have, in bytes.

        Returns:
            Whether there is such a chunk; one that is not there means NaN.

        Raises:
            CompactedError, OSError: As `get`.
        """
        try:
            descriptor = os.open(f"{self.root}/{key}", os.O_RDONLY)
        except FileNotFoundError:
            self._check(key)
            return False
        try:
            length = os.fstat(descriptor).st_size
            if length != size:
                raise self._damaged(key, size, length)
            while buffer:  # a signal may come between
                count = os.preadv(descriptor, [buffer], offset)
                if not count:
                    raise self._damaged(key, size, offset)
                buffer, offset = buffer[count:], offset + count
        finally:
            os.close(descriptor)
        return True

    def _check_length(self, key: str, length: int) -> None:
        array = key.rpartition("/")[0]
        if array not in self._lengths:
            node = json.loads(Path(self.root, array, "zarr.json").read_bytes())
            if grows(node) and not is_live(node):  # compacted just now: the old chunks stay a while
                return
            chunk = prod(node["chunk_grid"]["configuration"]["chunk_shape"])
            self._lengths[array] = (
                chunk * np.dtype(node["data_type"]).itemsize if grows(node) else -1
            )
        expected = self._lengths[array]
        if expected not in (-1, length):
            raise self._damaged(key, expected, length)

    def _damaged(self, key: str, expected: int, found: int) -> OSError:
        reason = (
            f"this chunk of the run {self.root} is damaged: expected {expected} bytes, found {found}; restore it "
            "from a copy, or delete it and read its rows as NaN"
        )
        return OSError(errno.EIO, reason, str(Path(self.root, key)))

    def _check(self, key: str) -> None:
        """Refuse a chunk that may have been deleted: its layout is neither that of the array nor of the root."""
        array, slash, _ = key.rpartition("/c/")
        if not slash:
            array = key.rpartition("/")[0]
        live = not slash
        try:
            node = json.loads(Path(self.root, array, "zarr.json").read_bytes())
            if not grows(node) or is_live(node) == live:
                return
            root = json.loads(Path(self.root, "zarr.json").read_bytes())
            now = root["consolidated_metadata"]["metadata"][array]
        except (OSError, ValueError, KeyError):
            return
        # While a run is being rewritten the two differ, and nothing has been deleted yet.
        if is_live(now) != live:
            raise CompactedError(
                f"{self.root} was compacted since the dataset with {array} was opened, or is written again: "
                "open it anew, run.refresh() does so"
            )
