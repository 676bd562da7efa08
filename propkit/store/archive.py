"""A run in one file: a compact copy as a zip archive, or at a URL."""

import errno
import json
import os
import secrets
import zipfile
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from propkit.store.compact import packed, rows_of
from propkit.store.memory import Snapshot
from propkit.store.packing import Encoder, compact_node, grows
from propkit.store.place import get
from propkit.store.root import local, parse_root

if TYPE_CHECKING:
    from zarr.abc.store import Store

    from propkit.store.run import Run


def export(run: "Run", target: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a compact copy of a run; `propkit.open` and zarr's ``ZipStore`` read it.

    The run may still be written and may be in memory: the copy holds what is committed. The copy appears as a whole.

    Args:
        run: The run.
        target: A path that ends in ``.zip``, or a URL as for `propkit.open`.
        overwrite: Replace a zip file that is there; at a URL, a run.

    Raises:
        FileExistsError: Something is there.
        OSError: It cannot be written.
        ValueError: The target is neither.
    """
    url = os.fspath(target)
    if "://" in url:
        from propkit.store.objects import Objects

        objects = Objects.at(url)
        objects.make_room(overwrite)
        *parts, (_, root) = contents(run)
        objects.put(dict(parts))
        objects.create_root(root)
        return
    path = local(target)
    if path.suffix != ".zip":
        raise ValueError(
            f"expected a name that ends in .zip or a URL, found {url}: a run in a directory can be copied as it is"
        )
    if os.path.lexists(path) and not (overwrite and path.is_file()):
        reason = "the path exists; choose another name, or replace the file with overwrite=True"
        raise FileExistsError(errno.EEXIST, reason, str(path))
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _zip(fresh, contents(run))
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def contents(run: "Run") -> Iterator[tuple[str, bytes]]:
    """What a compact store of the run holds, key and content; the root metadata come last."""
    store = run.store()
    root = parse_root(get(store, "zarr.json", run.name), run.name)
    nodes: dict[str, Any] = {}
    for key, node in root["consolidated_metadata"]["metadata"].items():
        name, _, variable = key.partition("/")
        if name not in run.contents or "/" in variable:
            continue  # what others have put there
        nodes[key] = node
        if node["node_type"] == "group":
            own = {k: v for k, v in node.items() if k != "consolidated_metadata"}
            yield f"{key}/zarr.json", json.dumps(own).encode()
            continue
        rows = rows_of(store, key, node)
        if grows(node):
            # The run may have grown since: no rows but those that it had by its root.
            nodes[key] = node = compact_node(node)
            chunks: Iterable[tuple[str, bytes]] = packed(node, rows)
        else:
            chunks = Encoder(node).encode(0, rows(0, node["shape"][0])).items()
        for chunk, data in chunks:
            yield f"{key}/{chunk}", data
        yield f"{key}/zarr.json", json.dumps(node).encode()
    root["consolidated_metadata"]["metadata"] = nodes
    yield "zarr.json", json.dumps(root, allow_nan=False).encode()


def store_of_rows(snapshot: Snapshot) -> "Store":
    """A store in memory with the rows of a run in memory."""
    from zarr.storage import MemoryStore

    from propkit.store.object_writer import ObjectWriter

    store = MemoryStore()
    writer = ObjectWriter.create(store, {})
    for name, rows in snapshot.tables.items():
        writer.define(rows.group)
        writer.append(name, rows.step, rows.columns)
    writer.commit()
    root = json.loads(get(store, "zarr.json", "in memory") or b"")
    root["attributes"] = snapshot.attributes
    writer.objects.put({"zarr.json": json.dumps(root, allow_nan=False).encode()})
    return store


def _zip(file: Any, entries: Iterable[tuple[str, bytes]]) -> None:
    # Stored, not deflated: the chunks are compressed already, and a reader may take any part of the file.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for key, data in entries:
            archive.writestr(key, data)
