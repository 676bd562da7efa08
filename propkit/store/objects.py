"""Putting objects into a store elsewhere: many at once, and the root last, which only one writer may put."""

import asyncio
import errno
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from propkit.redaction import redacted
from propkit.store.place import get, named, store_at, store_of, synchronous
from propkit.store.root import attributes_in

if TYPE_CHECKING:
    from zarr.abc.store import Store

ROOT = "zarr.json"

_TRIES = 5
"""How often to put an object that others put at the same time."""


class Objects:
    """Objects under keys, in a store of zarr's.

    On S3, Google and Azure (through obstore) every put is conditional: a second run is never created where one is; a
    writer whose run was replaced or taken over is refused, and changes nothing that the new one has put. Elsewhere the
    root is looked at before each commit, so that such a writer is refused unless both put at the same moment. A second
    run is never created either where fsspec has a mode ``"create"`` (S3, memory).

    Args:
        store: The store, writable.
        name: How messages call it.
    """

    def __init__(self, store: "Store", name: str) -> None:
        from zarr.storage import ObjectStore

        self.store = store
        self.name = name
        self._conditional = isinstance(store, ObjectStore)
        self._tag: str | None = None  # of the root
        self._tags: dict[str, str | None] = {}  # of all else
        self._root: bytes | None = None
        self._tried: bytes | None = None

    @classmethod
    def at(cls, target: Any) -> "Objects":
        """Those at a URL, or in a store of zarr's or obstore's.

        Raises:
            ImportError, TypeError, ValueError: As `place.find_place`.
        """
        if isinstance(target, str):
            return cls(store_at(target, read_only=False), redacted(target))
        return cls(store_of(target), f"a {type(target).__name__}")

    def check(self) -> None:
        """Refuse to go on if the run is somebody else's by now; where puts are conditional, they do so.

        Raises:
            FileNotFoundError: It is.
            OSError: It cannot be asked.
        """
        if not self._conditional and get(self.store, ROOT, self.name) not in (
            self._root,
            self._tried,
        ):
            raise self._replaced()

    def put(self, objects: Mapping[str, bytes]) -> None:
        """Put objects, side by side; returns when all are there.

        Raises:
            FileNotFoundError: The run is somebody else's by now.
            OSError: Some are not there.
        """
        from zarr.core.buffer import default_buffer_prototype

        buffer = default_buffer_prototype().buffer

        async def plain(key: str, data: bytes) -> bool:
            await self.store.set(key, buffer.from_bytes(data))
            return True

        one = self._put_mine if self._conditional and self._tag else plain

        async def all_of_them() -> list[bool]:
            return await asyncio.gather(*(one(key, data) for key, data in objects.items()))

        with named(self.name):
            done = synchronous(all_of_them())
        if not all(done):
            raise self._replaced()

    def make_room(self, overwrite: bool) -> None:
        """Refuse a place where something is, or take a run away.

        Raises:
            FileExistsError: Something is there, and it is no run or must not be overwritten.
        """
        raw = get(self.store, ROOT, self.name)
        if raw is None:
            return
        if attributes_in(raw) is None:
            what = "is no propkit run, and nothing else is replaced; choose another name"
            raise FileExistsError(errno.EEXIST, f"what is there {what}", self.name)
        if not overwrite:
            raise self._taken()
        self.remove()

    def remove(self) -> None:
        """Delete the run, the root first: nobody opens one that is being deleted."""
        with named(self.name):
            synchronous(self.store.delete(ROOT))
            synchronous(self.store.delete_dir(""))

    def create_root(self, data: bytes) -> None:
        """Put the root metadata where there is none yet.

        Raises:
            FileExistsError: Another run has been created.
            OSError: It could not be written.
        """
        from zarr.storage import FsspecStore

        if self._conditional and self._put_if(data, "create"):
            return
        if isinstance(self.store, FsspecStore):
            self._create_by_fsspec(self.store, data)
        elif get(self.store, ROOT, self.name) is not None:
            raise self._taken()
        else:
            self.put({ROOT: data})
        self._root = data

    def take_root(self) -> bytes | None:
        """The root metadata, None if there are none; from here on `replace_root` refuses if others are there.

        Raises:
            OSError: The store cannot be reached.
        """
        if not self._conditional:
            self._root = get(self.store, ROOT, self.name)
            return self._root
        import obstore

        with named(self.name):
            try:
                found = obstore.get(self._inner, ROOT)
            except FileNotFoundError:
                return None
            self._tag = found.meta["e_tag"]
            self._root = bytes(found.bytes())
            return self._root

    def replace_root(self, data: bytes) -> None:
        """Put the root metadata in place of those that were put or taken last.

        Raises:
            FileNotFoundError: Somebody else has put others, or removed them.
            OSError: It could not be written.
        """
        if self._conditional and self._put_if(data, self._mode(self._tag)):
            return
        self._tried = data  # it may arrive although the answer does not
        self.put({ROOT: data})
        self._root = data

    @property
    def _inner(self) -> Any:
        """The store of obstore's."""
        return self.store.store  # type: ignore[attr-defined]  # obstore has it

    @staticmethod
    def _mode(tag: str | None) -> Any:
        return {"e_tag": tag} if tag else "overwrite"

    def _put_if(self, data: bytes, condition: Any) -> bool:
        """Put the root under a condition; False if the store knows none."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            with named(self.name):
                put = obstore.put(self._inner, ROOT, data, mode=condition)
        except OSError as error:
            if isinstance(error.__cause__, NotImplementedError):
                self._conditional = False
                return False
            if not isinstance(error.__cause__, AlreadyExistsError | PreconditionError):
                self._tried = data
                raise
            # Ours, if an answer to an earlier try was lost on the way.
            found = get(self.store, ROOT, self.name)
            if found is not None and found in (data, self._tried):
                self._tag = obstore.head(self._inner, ROOT)["e_tag"]
                return found == data or self._put_if(data, self._mode(self._tag))
            if condition == "create":
                raise self._taken() from error
            raise self._replaced() from error
        self._tried = self._root = data
        self._tag = put["e_tag"]
        return True

    async def _put_mine(self, key: str, data: bytes) -> bool:
        """Put an object unless the run is somebody else's; whether it was put."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        mode: Any = self._mode(self._tags[key]) if key in self._tags else "create"
        for _ in range(_TRIES):
            try:
                put = await obstore.put_async(self._inner, key, data, mode=mode)
            except NotImplementedError:
                self._conditional = False
                put = await obstore.put_async(self._inner, key, data)
            except (AlreadyExistsError, PreconditionError):
                # An earlier try, what a resumed run left, or another writer. First what is there, then whose the run
                # is: if it is taken over after that, and the object put anew, this one is refused again.
                try:
                    mode = self._mode((await obstore.head_async(self._inner, key))["e_tag"])
                except FileNotFoundError:
                    mode = "create"
                if not await self._is_mine():
                    return False
                continue
            self._tags[key] = put["e_tag"]
            return True
        raise OSError(errno.EBUSY, "something else puts the same object all the time", key)

    async def _is_mine(self) -> bool:
        import obstore

        try:
            found = await obstore.get_async(self._inner, ROOT)
        except FileNotFoundError:
            return False
        return found.meta["e_tag"] == self._tag or bytes(await found.bytes_async()) == self._tried

    def _create_by_fsspec(self, store: Any, data: bytes) -> None:
        path = f"{store.path}/{ROOT}"

        async def create() -> None:
            await store.fs._pipe_file(path, data, mode="create")

        try:
            if get(self.store, ROOT, self.name) is not None:
                raise self._taken()
            with named(self.name):
                synchronous(create())
        except OSError as error:
            if isinstance(error.__cause__, FileExistsError):
                raise self._taken() from error
            if not isinstance(error.__cause__, TypeError | NotImplementedError):
                raise
            self.put({ROOT: data})  # a file system without such a mode

    def _replaced(self) -> FileNotFoundError:
        reason = (
            "the run was replaced, taken over or deleted by someone else while it was being written"
        )
        return FileNotFoundError(errno.ENOENT, reason, self.name)

    def _taken(self) -> FileExistsError:
        reason = "a run is there; choose another name, continue it with resume=True, or replace it with overwrite=True"
        return FileExistsError(errno.EEXIST, reason, self.name)
