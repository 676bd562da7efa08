"""Putting objects into a store elsewhere: many at once, and the root last, which only one writer may put."""

import asyncio
import errno
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from propkit.store.place import get, named, redacted, store_at, store_of, synchronous

if TYPE_CHECKING:
    from zarr.abc.store import Store

ROOT = "zarr.json"


class Objects:
    """Objects under keys, in a store of zarr's.

    On S3, Google and Azure (through obstore) the root is put under a condition: a second run is never created where
    one is, and a writer whose run was replaced is refused. Through fsspec the first holds where the file system has a
    mode ``"create"`` (S3, memory); other stores are only looked at before.

    Args:
        store: The store, writable.
        name: How messages call it.
    """

    def __init__(self, store: "Store", name: str) -> None:
        self.store = store
        self.name = name
        self._tag: dict[str, str] | None = None
        self._tried: bytes = b""

    @classmethod
    def at(cls, target: Any) -> "Objects":
        """Those at a URL, or in a store of zarr's or obstore's.

        Raises:
            ImportError, TypeError, ValueError: As `place.find_place`.
        """
        if isinstance(target, str):
            return cls(store_at(target, read_only=False), redacted(target))
        return cls(store_of(target), f"a {type(target).__name__}")

    def put(self, objects: Mapping[str, bytes]) -> None:
        """Put objects, side by side; returns when all are there.

        Raises:
            OSError: Some are not.
        """
        from zarr.core.buffer import default_buffer_prototype

        buffer = default_buffer_prototype().buffer

        async def all_of_them() -> None:
            puts = [self.store.set(k, buffer.from_bytes(data)) for k, data in objects.items()]
            await asyncio.gather(*puts)

        with named(self.name):
            synchronous(all_of_them())

    def make_room(self, overwrite: bool) -> None:
        """Refuse a place where something is, or take a run away.

        Raises:
            FileExistsError: Something is there, and it is no run or must not be overwritten.
        """
        raw = get(self.store, ROOT, self.name)
        if raw is None:
            return
        try:
            attributes = json.loads(raw)["attributes"]
            known = {"schema_version", "propkit_version"} <= set(attributes)
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            what = "is no propkit run, and nothing else is replaced; choose another name"
            raise FileExistsError(errno.EEXIST, f"what is there {what}", self.name)
        if not overwrite:
            raise self._taken()
        with named(self.name):
            # The root first: nobody opens a run that is being deleted.
            synchronous(self.store.delete(ROOT))
            synchronous(self.store.delete_dir(""))

    def create_root(self, data: bytes) -> None:
        """Put the root metadata where there is none yet.

        Raises:
            FileExistsError: Another run has been created.
            OSError: It could not be written.
        """
        from zarr.storage import FsspecStore, ObjectStore

        if isinstance(self.store, ObjectStore):
            self._put_if(data, "create")
            return
        if isinstance(self.store, FsspecStore):
            self._create_by_fsspec(self.store, data)
            return
        if get(self.store, ROOT, self.name) is not None:
            raise self._taken()
        self.put({ROOT: data})

    def replace_root(self, data: bytes) -> None:
        """Put the root metadata in place of those that were put last.

        Raises:
            FileNotFoundError: Somebody else has put others, or removed them.
            OSError: It could not be written.
        """
        from zarr.storage import ObjectStore

        if isinstance(self.store, ObjectStore):
            self._put_if(data, self._tag)
        else:
            self.put({ROOT: data})

    def _put_if(self, data: bytes, condition: Any) -> None:
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotFoundError, PreconditionError

        store: Any = self.store
        try:
            with named(self.name):
                try:
                    put = obstore.put(store.store, ROOT, data, mode=condition or "overwrite")
                except NotImplementedError:  # a store without conditions
                    put = obstore.put(store.store, ROOT, data)
        except OSError as error:
            if not isinstance(
                error.__cause__, AlreadyExistsError | NotFoundError | PreconditionError
            ):
                self._tried = data
                raise
            # Ours, if an answer to an earlier try was lost on the way.
            found = get(self.store, ROOT, self.name)
            if found is not None and found == self._tried:
                meta = obstore.head(store.store, ROOT)
                self._remember(meta["e_tag"])
                if found != data:
                    self._put_if(data, self._tag)
                return
            if condition == "create":
                raise self._taken() from error
            reason = "the run was replaced or deleted by someone else while it was being written"
            raise FileNotFoundError(errno.ENOENT, reason, self.name) from error
        self._tried = data
        self._remember(put["e_tag"])

    def _remember(self, tag: str | None) -> None:
        self._tag = {"e_tag": tag} if tag else None

    def _create_by_fsspec(self, store: Any, data: bytes) -> None:
        path = f"{store.path}/{ROOT}"

        async def create() -> None:
            await store.fs._pipe_file(path, data, mode="create")

        try:
            if get(self.store, ROOT, self.name) is not None:
                raise self._taken()
            synchronous(create())
        except (TypeError, NotImplementedError):  # a file system without such a mode
            self.put({ROOT: data})
        except FileExistsError as error:
            raise self._taken() from error

    def _taken(self) -> FileExistsError:
        reason = "a run is there; choose another name, or replace it with overwrite=True"
        return FileExistsError(errno.EEXIST, reason, self.name)
