"""Ways to keep the rows of a training so that a reader sees each flush at once: propkit's store and others."""

# ruff: noqa: D102 - what the methods do is said by `Writer`

import csv
import sqlite3
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from storing.rows import Block, Shape

from propkit.schema import Group, Variable
from propkit.store.writer import ZarrWriter

CHUNK = 1024  # rows of a chunk where a format leaves the choice; near what is best for HDF5 and for zarr's append


class Writer(Protocol):
    """Takes flushes; after each a reader sees them."""

    def flush(self, block: Block) -> None:
        """Append the rows and make them visible."""

    def close(self) -> None:
        """End."""


class Raw:
    """Bytes at the end of a file: the limit. Nobody would know what they mean."""

    def __init__(self, path: Path, shape: Shape) -> None:  # noqa: ARG002 - as all writers
        self.file = path.open("wb", buffering=0)

    def flush(self, block: Block) -> None:
        self.file.write(block.wide.data.cast("B"))

    def close(self) -> None:
        self.file.close()


class Propkit:
    """The store of a run."""

    def __init__(self, path: Path, shape: Shape) -> None:
        sites = {
            "site": np.array([f"layer{i}" for i in range(shape.layers)]),
            "depth": np.arange(shape.layers),
        }
        self.writer = ZarrWriter.create(path, {})
        self.writer.define(
            Group("g", tuple(Variable(q, dtype=shape.dtype) for q in shape.quantities), sites)
        )
        self.writer.commit()

    def flush(self, block: Block) -> None:
        self.writer.append("g", block.step, block.columns)
        self.writer.commit()

    def close(self) -> None:
        self.writer.close("complete")


class Hdf5:
    """One dataset per quantity, resized; with SWMR, readers may come while it is written."""

    def __init__(self, path: Path, shape: Shape, swmr: bool) -> None:
        self.file = import_module("h5py").File(path, "w", libver="latest")
        make = self.file.create_dataset
        make("step", (0,), "i8", maxshape=(None,), chunks=(CHUNK,))
        for q in shape.quantities:
            make(
                q,
                (0, shape.layers),
                shape.dtype,
                maxshape=(None, shape.layers),
                chunks=(CHUNK, shape.layers),
            )
        if swmr:
            self.file.swmr_mode = True
        self.arrays = dict(self.file.items())
        self.rows = 0

    def flush(self, block: Block) -> None:
        start, self.rows = self.rows, self.rows + len(block.step)
        for name, values in {**block.columns, "step": block.step}.items():
            array = self.arrays[name]
            array.resize(self.rows, axis=0)
            array[start:] = values
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class Sqlite:
    """A transaction per flush, write-ahead log; a column per number, or one opaque blob a row."""

    def __init__(self, path: Path, shape: Shape, blobs: bool) -> None:
        self.blobs = blobs
        self.connection = sqlite3.connect(path)
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute("PRAGMA synchronous=NORMAL")
        names = ["row"] if blobs else shape.names
        columns = ", ".join(f"{n} {'BLOB' if blobs else 'REAL'}" for n in names)
        self.connection.execute(f"CREATE TABLE t (step INTEGER PRIMARY KEY, {columns})")
        self.insert = f"INSERT INTO t VALUES ({', '.join('?' * (len(names) + 1))})"

    def flush(self, block: Block) -> None:
        steps = block.step.tolist()
        if self.blobs:
            rows: Any = ((s, row.data) for s, row in zip(steps, block.wide, strict=True))
        else:
            rows = ([s, *row] for s, row in zip(steps, block.wide.tolist(), strict=True))
        with self.connection:
            self.connection.executemany(self.insert, rows)

    def close(self) -> None:
        self.connection.close()


class Csv:
    """A line per step."""

    def __init__(self, path: Path, shape: Shape) -> None:
        self.file = path.open("w", newline="")
        self.writer = csv.writer(self.file)
        self.writer.writerow(["step", *shape.names])

    def flush(self, block: Block) -> None:
        wide = zip(block.step.tolist(), block.wide.tolist(), strict=True)
        self.writer.writerows([step, *row] for step, row in wide)
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class Parquet:
    """A file per flush, since a Parquet file has no end before it is closed."""

    def __init__(self, path: Path, shape: Shape) -> None:
        path.mkdir()
        self.path, self.names, self.parts = path, ["step", *shape.names], 0
        self.arrow, self.parquet = import_module("pyarrow"), import_module("pyarrow.parquet")

    def flush(self, block: Block) -> None:
        columns = [block.step, *block.wide.T]
        table = self.arrow.table(dict(zip(self.names, columns, strict=True)))
        draft = self.path / ".draft"
        self.parquet.write_table(table, draft)
        draft.rename(self.path / f"{self.parts:06}.parquet")
        self.parts += 1

    def close(self) -> None:
        pass


class ZarrAppend:
    """zarr's own way to grow an array."""

    def __init__(self, path: Path, shape: Shape) -> None:
        group = import_module("zarr").open_group(path, mode="w")
        width = shape.layers
        self.arrays = {
            q: group.create_array(q, shape=(0, width), chunks=(CHUNK, width), dtype=shape.dtype)
            for q in shape.quantities
        }
        self.arrays["step"] = group.create_array("step", shape=(0,), chunks=(CHUNK,), dtype="i8")

    def flush(self, block: Block) -> None:
        for name, values in {**block.columns, "step": block.step}.items():
            self.arrays[name].append(values)

    def close(self) -> None:
        pass


class TensorBoard:
    """A scalar per quantity, layer and step (in float32), as one would log them."""

    def __init__(self, path: Path, shape: Shape) -> None:
        self.writer = import_module("torch.utils.tensorboard").SummaryWriter(path)
        self.names = shape.names

    def flush(self, block: Block) -> None:
        for step, row in zip(block.step.tolist(), block.wide.tolist(), strict=True):
            for name, value in zip(self.names, row, strict=True):
                self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
