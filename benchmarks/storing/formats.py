"""The formats that are compared: how each is written, opened and read."""

import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from storing.rows import Array, Shape
from storing.writers import (
    Csv,
    Hdf5,
    Parquet,
    Propkit,
    Raw,
    Sqlite,
    TensorBoard,
    Writer,
    ZarrAppend,
)

import propkit


@dataclass(frozen=True)
class Format:
    """A way to keep rows.

    Attributes:
        label: Its name in the tables.
        create: Path and shape -> writer.
        open: Path -> what is read from; the time it takes is "open".
        series: Opened, shape, quantity, layer -> its values at all steps.
        package: What has to be installed, if it is not installed with propkit.
        share: Part of the rows that are written; the slow ones get fewer.
    """

    label: str
    create: Callable[[Path, Shape], Writer]
    open: Callable[[Path], Any]
    series: Callable[[Any, Shape, str, int], Array]
    package: str = ""
    share: float = 1.0


def _raw_series(path: Path, shape: Shape, quantity: str, layer: int) -> Array:
    wide = np.fromfile(path, shape.dtype).reshape(-1, len(shape.names))
    return wide[:, shape.column(quantity, layer)].copy()


def _propkit_series(run: propkit.Run, _: Shape, quantity: str, layer: int) -> Array:
    values: Array = run["g"][quantity].sel(site=f"layer{layer}").values
    return values


def _sql_series(connection: sqlite3.Connection, _: Shape, quantity: str, layer: int) -> Array:
    rows = connection.execute(f"SELECT {quantity}_{layer} FROM t ORDER BY step")
    return np.fromiter((value for (value,) in rows), np.float64)


def _blob_series(connection: sqlite3.Connection, shape: Shape, quantity: str, layer: int) -> Array:
    rows = connection.execute("SELECT row FROM t ORDER BY step").fetchall()
    wide = np.frombuffer(b"".join(row for (row,) in rows), shape.dtype).reshape(len(rows), -1)
    return wide[:, shape.column(quantity, layer)].copy()


def _csv_series(path: Path, _: Shape, quantity: str, layer: int) -> Array:
    name = f"{quantity}_{layer}"
    table = import_module("pandas").read_csv(path, usecols=[name])
    return np.asarray(table[name])


def _parquet_series(path: Path, _: Shape, quantity: str, layer: int) -> Array:
    table = import_module("pyarrow.parquet").read_table(path, columns=[f"{quantity}_{layer}"])
    return np.asarray(table.column(0).to_numpy())


def _events(path: Path) -> Any:
    module = import_module("tensorboard.backend.event_processing.event_accumulator")
    return module.EventAccumulator(str(path), {"scalars": 0}).Reload()


def _events_series(events: Any, _: Shape, quantity: str, layer: int) -> Array:
    return np.array([event.value for event in events.Scalars(f"{quantity}_{layer}")])


def _hdf5(path: Path) -> Any:
    return import_module("h5py").File(path, "r", libver="latest", swmr=True)


OURS, RAW = "propkit", "raw write (limit)"
FORMATS = (
    Format(RAW, Raw, lambda path: path, _raw_series),
    Format(OURS, Propkit, propkit.open, _propkit_series),
    Format(
        "SQLite, one blob a row", lambda p, s: Sqlite(p, s, True), sqlite3.connect, _blob_series
    ),
    Format("SQLite, wide", lambda p, s: Sqlite(p, s, False), sqlite3.connect, _sql_series),
    Format(
        "HDF5, flush", lambda p, s: Hdf5(p, s, False), _hdf5, lambda f, _, q, k: f[q][:, k], "h5py"
    ),
    Format(
        "HDF5, SWMR", lambda p, s: Hdf5(p, s, True), _hdf5, lambda f, _, q, k: f[q][:, k], "h5py"
    ),
    Format("CSV", Csv, lambda path: path, _csv_series, share=1 / 4),
    Format(
        "Parquet, a part per flush", Parquet, lambda path: path, _parquet_series, "pyarrow", 1 / 4
    ),
    Format(
        "zarr, append",
        ZarrAppend,
        lambda path: import_module("zarr").open_group(path, mode="r"),
        lambda group, _, q, k: group[q][:, k],
        share=1 / 4,
    ),
    Format("TensorBoard", TensorBoard, _events, _events_series, "tensorboard", 1 / 64),
)


def bytes_on_disk(path: Path) -> tuple[int, int]:
    """Bytes that the files of a path take, and how many files there are; with those beside it that belong to it."""
    files = [p for p in [path, *path.parent.glob(f"{path.name}-*")] if p.is_file()]
    files += [Path(f) / n for f, _, names in os.walk(path) for n in names]
    return sum(f.stat().st_blocks * 512 for f in files), len(files)
