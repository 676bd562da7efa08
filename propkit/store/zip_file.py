"""The zip file of `propkit.store.archive.export` as zarr reads it: one that is damaged is an OSError that names it."""

import errno
import zipfile
import zlib
from pathlib import Path
from typing import Any

from zarr.storage import ZipStore

_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)
"""What zipfile raises of such a file: none of these says which file it is."""


class ZipFileStore(ZipStore):
    """A zip file, opened for reading.

    Args:
        path: The file.

    Raises:
        ValueError: It is no whole zip file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, mode="r")
        try:
            self._sync_open()
        except _DAMAGE as error:
            raise ValueError(
                f"{path}: expected a run in a zip file, found one that cannot be read ({error}): it is cut off or "
                "something else; copy it again, or write it again with run.export(..., overwrite=True)"
            ) from None

    def _get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return super()._get(key, *args, **kwargs)
        except _DAMAGE as error:
            reason = f"{key} in this zip file is damaged ({error}); copy the file again"
            raise OSError(errno.EIO, reason, str(self.path)) from None
