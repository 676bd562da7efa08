"""Where a run is read from: a directory, a zip file, a URL, or a store that someone opened."""

import contextlib
import errno
import os
import re
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from propkit.redaction import redacted, redacted_text
from propkit.store.root import local, parse_root, read_root

if TYPE_CHECKING:
    from zarr.abc.store import Store

OBSTORE_SCHEMES = {"s3", "s3a", "gs", "gcs", "az", "adl", "azure", "abfs", "abfss"}
"""URLs that obstore reads and writes, faster than fsspec, where it is installed."""

T = TypeVar("T")

Source = str | os.PathLike[str] | Any
"""A path, a URL, a store of zarr's or one of obstore's."""


@dataclass(frozen=True)
class Place:
    """Where a run is.

    Attributes:
        name: How messages call it; no password of a URL is in it.
        path: The directory or zip file; None elsewhere.
        opened: The store; None for a directory, of which each reader opens its own.
    """

    name: str
    path: Path | None
    opened: "Store | None" = None

    def read_root(self) -> dict[str, Any]:
        """The root metadata of the run; see `propkit.store.root.read_root`."""
        if self.opened is None:
            return read_root(Path(self.name))
        raw = get(self.opened, "zarr.json", self.name)
        if raw is None:
            raise FileNotFoundError(
                f"no run at {self.name}; `propkit.attach(model, ...)` records one"
            )
        return parse_root(raw, self.name)

    def store(self) -> "Store":
        """The store to read arrays from."""
        if self.opened is not None:
            return self.opened
        from propkit.store.run_directory import RunDirectory

        return RunDirectory(self.name, read_only=True)


def find_place(source: Source) -> Place:
    """Where a run is, as someone wrote it.

    Raises:
        FileNotFoundError: A zip file is not there.
        ImportError: The URL needs a package that is not installed.
        TypeError: It is neither path nor URL nor store.
        ValueError: The URL is of a kind that is not known, or a zip file is no whole one.
    """
    source = without_scheme(source)
    if isinstance(source, str) and "://" in source:
        return Place(redacted(source), None, store_at(source, read_only=True))
    if isinstance(source, str | os.PathLike):
        path = local(source)
        if path.suffix == ".zip" and path.is_file():
            from propkit.store.zip_file import ZipFileStore

            return Place(str(path), path, ZipFileStore(path))
        return Place(str(path), path)
    return Place(f"a {type(source).__name__}", None, store_of(source))


def without_scheme(source: Source) -> Source:
    """A ``file://`` URL as the path that it is, anything else as it is."""
    if isinstance(source, str) and source.startswith("file://") and "::" not in source:
        return unquote(urlsplit(source).path)
    return source


def is_local(source: Source) -> bool:
    """Whether it is a path on this machine, not a URL or a store."""
    return isinstance(source, os.PathLike) or (isinstance(source, str) and "://" not in source)


def store_of(source: Any) -> "Store":
    """The zarr store of an object that is one, or one of obstore's.

    Raises:
        TypeError: It is neither.
    """
    from zarr.abc.store import Store

    if isinstance(source, Store):
        return source
    if type(source).__module__.partition(".")[0] == "obstore":
        from zarr.storage import ObjectStore

        return ObjectStore(source)
    raise TypeError(
        "expected a path, a URL such as 's3://bucket/run.zarr', a zarr store or an obstore store, found "
        f"{type(source).__name__}"
    )


def store_at(url: str, read_only: bool) -> "Store":
    """The store at a URL: by obstore for S3, Google and Azure where it is installed, else by fsspec.

    Who may read and write is known from the environment, as those packages describe it, or for S3 from the URL
    (``s3://KEY:SECRET@bucket/run.zarr``, a slash in it as ``%2F``).

    Raises:
        ImportError: A package is missing; the message names the extra.
        ValueError: No package knows such URLs, or it cannot hold a password.
    """
    from zarr.storage import FsspecStore, ObjectStore

    scheme = url.partition("://")[0]
    if scheme in OBSTORE_SCHEMES:
        try:
            from obstore.store import from_url
        except ImportError:
            pass  # fsspec may have what it takes
        else:
            credentials = _credentials(url)
            with named(redacted(url)):
                opened = from_url(_plain(url), config=credentials, retry_config=_RETRIES)
            return ObjectStore(opened, read_only=read_only)
    try:
        return FsspecStore.from_url(url, read_only=read_only)
    except ImportError as error:
        raise ImportError(
            f"{redacted(url)}: {scheme} needs a package more: pip install 'propkit[remote]', or what fsspec asks for "
            f"({redacted_text(str(error))})"
        ) from None
    except ValueError as error:
        raise ValueError(
            f"expected a path on this machine or a URL that obstore or fsspec knows (s3, gs, az, memory, https...), "
            f"found {redacted(url)}: {redacted_text(str(error))}"
        ) from None


_RETRIES: Any = {"max_retries": 4, "retry_timeout": timedelta(seconds=10)}
"""Of one request. Whoever writes tries again with the next flush, and must not keep the training waiting."""


def _plain(url: str) -> str:
    """The URL as obstore knows it, without query, name and password."""
    scheme, _, rest = redacted(url).partition("://")
    return f"{'gs' if scheme == 'gcs' else scheme}://{rest}"


def _credentials(url: str) -> Any:
    """Name and password of an S3 URL, as obstore's configuration; None if there are none.

    Raises:
        ValueError: There is something else before the ``@``.
    """
    if redacted(url) == url.partition("?")[0]:
        return None
    parts = urlsplit(url)
    if not (parts.scheme.startswith("s3") and parts.username and parts.password):
        raise ValueError(
            f"{redacted(url)}: expected no more than s3://KEY:SECRET@bucket/run.zarr, characters such as / in it "
            "written as %2F, found something else before the @; the environment is the better place for credentials"
        )
    names = unquote(parts.username), unquote(parts.password)
    return dict(zip(("access_key_id", "secret_access_key"), names, strict=True))


def get(store: "Store", key: str, name: str) -> bytes | None:
    """What a store has under a key; None if it has nothing.

    Raises:
        OSError: It cannot be asked; the message says under which `name` it is known.
    """
    from zarr.core.buffer import default_buffer_prototype
    from zarr.storage import StorePath

    async def read() -> bytes | None:
        opened = await StorePath.open(store, path="", mode=None)
        found = await opened.store.get(key, default_buffer_prototype())
        return None if found is None else found.to_bytes()

    with named(name):
        return synchronous(read())


@contextlib.contextmanager
def named(name: str) -> Iterator[None]:
    """Whatever goes wrong between here and a place elsewhere is an OSError that names it, and shows no secrets."""
    try:
        yield
    except Exception as error:
        # Of an answer in XML what it says, not the identifier of the key that was refused.
        told = _ANSWER.search(str(error))
        text = str(error)[: told.start()] + ": ".join(told.groups()) if told else str(error)
        first = redacted_text(text.partition("\n")[0]) or type(error).__name__
        try:
            cause: Exception = type(error)(first)
        except TypeError:
            cause = RuntimeError(first)
        raise OSError(errno.EIO, f"the store cannot be reached: {first}", name) from cause


_ANSWER = re.compile(r"<\?xml.*?<Code>([^<]*)</Code>.*?<Message>([^<]*)", re.DOTALL)


def synchronous(work: Coroutine[Any, Any, T]) -> T:
    """Wait for what zarr does in its own thread."""
    from zarr.core.sync import sync

    return sync(work)
