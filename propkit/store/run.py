"""Reading a run: `open` a store, also while it is being written, and look at it with xarray."""

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from propkit.schema import LOG, STATES
from propkit.store.datasets import (
    Chunks,
    Contents,
    contents_of_rows,
    contents_of_store,
    dataset_of_rows,
    dataset_of_store,
)
from propkit.store.hold import alive
from propkit.store.memory import MemoryWriter, Snapshot
from propkit.store.place import Place, Source, find_place

if TYPE_CHECKING:
    import xarray as xr
    from zarr.abc.store import Store

    from propkit.derived.accessor import Derived
    from propkit.live import Live

DIED = "died"
"""What `Run.state` says of a run whose process is gone without having closed it."""


class MissingGroupError(KeyError):
    """A run has no such group; unlike KeyError's, the message is printed as it is."""

    def __str__(self) -> str:
        return str(self.args[0])


class Run:
    """A run as it was when it was opened: one xarray.Dataset per probe, and the root attributes.

    Of a store, values are read when they are used. A run that is still being written grows on;
    `refresh` gives it as it is by then. Made by `propkit.open` and by `Recorder.run`.

    Attributes:
        path: The store's directory or zip file; None for a run in memory, at a URL or in another store.
        name: What it is called, where it is stored: the path, or the URL; ``"in memory"`` otherwise.
        attributes: Root attributes: versions, command, configuration, seed, model, device, state...
        contents: Group name -> what it holds.
    """

    def __init__(
        self,
        attributes: Mapping[str, Any],
        contents: Mapping[str, Contents],
        read: Callable[[str], "xr.Dataset"],
        renew: Callable[[], "Run"],
        store: Callable[[], "Store"],
        place: Place | None = None,
    ) -> None:
        self.path = place.path if place else None
        self.name = place.name if place else "in memory"
        self._place = place
        self.attributes = dict(attributes)
        self.contents = dict(contents)
        self._read = read
        self._renew = renew
        self._store = store

    @classmethod
    def from_memory(cls, writer: MemoryWriter) -> "Run":
        """The run that a `MemoryWriter` holds, as of its last commit; its arrays are read-only."""
        snapshot = writer.snapshot
        last = _last_steps(snapshot.attributes)
        contents = {
            name: contents_of_rows(rows, last.get(name)) for name, rows in snapshot.tables.items()
        }
        return cls(
            snapshot.attributes,
            contents,
            lambda group: dataset_of_rows(snapshot.tables[group]),
            lambda: cls.from_memory(writer),
            lambda: _store_of_rows(snapshot),
        )

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups: the probes that were recorded, and ``log`` for training curves."""
        return tuple(self.contents)

    @property
    def state(self) -> str:
        """``running``, ``complete``, ``interrupted``, ``failed``, or ``died``.

        The store cannot say the last: the process ended without closing the run (killed, out of
        memory, crashed). It is known on the machine where the process ran, unless its number was
        given to another process since; elsewhere such a run counts as running.
        """
        state = str(self.attributes.get("state", ""))
        here = self.attributes.get("host") == socket.gethostname()
        if state == STATES[0] and here and not alive(int(self.attributes.get("pid", 0))):
            return DIED
        return state

    @property
    def label(self) -> str:
        """Short name for legends: the attribute ``label``, else the name of the store."""
        name = "run"
        if self._place and (self.path or "://" in self.name):
            last = self.name.rstrip("/").rpartition("/")[2]
            name = last.removesuffix(".zip").removesuffix(".zarr")
        return str(self.attributes.get("label") or name)

    @property
    def tree(self) -> "xr.DataTree":
        """All groups as one tree, with the run's attributes at the root."""
        import xarray as xr

        root = xr.Dataset(attrs=self.attributes)
        return xr.DataTree.from_dict({"/": root, **{name: self[name] for name in self}})

    @property
    def derived(self) -> "Derived":
        """Quantities computed from recorded ones: ``run.derived.error_ratio()``; see `propkit.derived`."""
        from propkit.derived.accessor import Derived

        return Derived(self)

    def refresh(self) -> "Run":
        """The run as it is now; this one stays what it was."""
        return self._renew()

    def live(self, figure: str = "fig3", *, interval: float = 2.0, **options: Any) -> "Live":
        """Show a figure in a notebook that follows the run while it is being written; see `propkit.live.Live`."""
        from propkit.live import Live

        return Live(self, figure, interval, **options)

    def store(self) -> "Store":
        """The zarr store that the run is in, for reading with zarr; a new one for a run in memory."""
        return self._store()

    def compact(self) -> "Run":
        """Compress the run and gather its files, see `propkit.store.compact.compact`; returns it as it is then.

        Raises:
            BlockingIOError: The run is being written.
            ValueError: The run is not in a directory of this machine.
        """
        from propkit.store.compact import compact

        if self.path is None or not self.path.is_dir():
            raise ValueError(
                f"only a run in a directory of this machine can be compacted, this one is {self.name}: "
                "run.export('copy.zarr.zip') writes a compact copy"
            )
        compact(self.path)
        return self.refresh()

    def export(self, target: str | os.PathLike[str], *, overwrite: bool = False) -> "Run":
        """Write a compact copy, one ``.zip`` file or at a URL, and open it; see `propkit.store.archive.export`."""
        from propkit.store.archive import export

        export(self, target, overwrite=overwrite)
        return open(target)

    def spectrum(
        self,
        site: str,
        *,
        step: int | None = None,
        method: str | None = None,
        group: str = "singular_values",
        variable: str | None = None,
    ) -> "xr.DataArray":
        """One site's spectrum, at one step or over all recorded steps; of a store, no other site's is read.

        Args:
            site: Its name, with the number of the call where a module runs several times (``"fc#1"``).
            step: A recorded step; None: all of them.
            method: ``"nearest"``: take the recorded step that is nearest to `step`.
            group: The group that has it.
            variable: Its variable, where the group has several with a dimension of their own.

        Returns:
            (K,) at one step, else (step, K): K values in the order in which the probe gave them; NaN in steps without.

        Raises:
            KeyError: No such group, site, step or variable; the message says what there is.
        """
        from propkit.store.spectrum import spectrum

        return spectrum(self[group], site, group=group, step=step, method=method, variable=variable)

    def __getitem__(self, group: str) -> "xr.Dataset":
        """One group, dims (step, site), or (step,) for ``log``; more for variables with a dimension of their own.

        Sites are in the order of execution, except where a variable is ragged (see `propkit.schema`): there they are
        in the order in which they first ran, as in the store.

        Raises:
            KeyError: It was not recorded; the message says what was, and how to record it.
        """
        if group not in self.contents:
            raise MissingGroupError(self._missing(group))
        import propkit.derived  # noqa: F401 - xarray's objects have .propkit from here on

        return self._read(group)

    def __contains__(self, group: object) -> bool:
        return group in self.contents

    def __iter__(self) -> Iterator[str]:
        return iter(self.contents)

    def __len__(self) -> int:
        return len(self.contents)

    def __repr__(self) -> str:
        width = max(map(len, self.contents), default=0)
        lines = [f"  {name:{width}}  {held}" for name, held in self.contents.items()]
        return "\n".join([f"<propkit.Run {self._headline()}>", *lines])

    def _repr_html_(self) -> str:
        from propkit.notebook import run_html

        return run_html(self)

    def _headline(self) -> str:
        reason = self.attributes.get("reason")
        state = f"{self.state}: {reason}" if reason else self.state
        faults = self.attributes.get("faults") or {}
        parts = [repr(self.label), state, self.name]
        return ", ".join(parts + ([f"faults in {', '.join(faults)}"] if faults else []))

    def _missing(self, group: str) -> str:
        recorded = f"it has {', '.join(self.groups)}" if self.groups else "it has none yet"
        how = (
            "`recorder.log(loss=loss)` in the training loop records it"
            if group == LOG
            else f'`propkit.attach(model, ..., probes=[..., "{group}"])` records it, and so does '
            "a recipe with that probe (`python -m propkit train RECIPE`)"
        )
        return f"run {self.label!r} has no group {group!r}, {recorded}: {how}"


def open(source: Source, *, chunks: Chunks = None) -> Run:
    """Open a run, finished or still being written.

    Nothing but the root metadata is read, so that it takes as long for a run of a million steps as for one of ten.

    Args:
        source: The store's directory, the zip file of `Run.export`, a URL (``s3://``, ``gs://``, ``az://``,
            ``memory://``, ``https://`` and whatever fsspec knows), or a store of zarr's or obstore's.
        chunks: Read the values through dask, for runs larger than memory: ``{}`` for the chunks of the store,
            ``"auto"``, or rows per chunk as ``{"step": 10_000}``; see `xarray.open_zarr`.

    Raises:
        FileNotFoundError: There is nothing at that path.
        ImportError: The URL needs a package that is not installed; the message says which.
        ValueError: What is there is no propkit run, or a newer propkit wrote it.
    """
    return _open(find_place(source), chunks)


def _open(place: Place, chunks: Chunks) -> Run:
    root = place.read_root()
    attributes = root["attributes"]
    contents = contents_of_store(root, _last_steps(attributes))
    return Run(
        attributes,
        contents,
        lambda group: dataset_of_store(
            place.store(), place.read_root(), group, contents[group], chunks
        ),
        lambda: _open(place, chunks),
        place.store,
        place,
    )


def _store_of_rows(snapshot: Snapshot) -> "Store":
    from propkit.store.archive import store_of_rows

    return store_of_rows(snapshot)


def _last_steps(attributes: Mapping[str, Any]) -> dict[str, int]:
    steps: dict[str, int] = attributes.get("commit", {}).get("last_step", {})
    return steps
