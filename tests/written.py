"""Groups, rows and failing disks for the tests of writers."""

import errno
import os
from pathlib import Path
from unittest import mock

import hypothesis.strategies as st
import numpy as np

from propkit.schema import Group, Variable
from propkit.store.protocol import Writer
from propkit.store.writer import ZarrWriter

SITES = 3
COORDS = {
    "site": np.array(["conv1", "layer1.0.conv", "fc"]),
    "depth": np.arange(1, SITES + 1),
    "type": np.array(["Conv2d", "Conv2d", "Linear"]),
}
MOMENT = Group(
    "error_moment",
    (Variable("output", "1", "moment", "arXiv:1703.01827, Sec. 3.3"), Variable("input")),
    COORDS,
)
LOSS = Group("log", (Variable("loss", "nat"),))
SIZES = np.array([2, 0, 3, 1])


def spectra(sites: int) -> Group:
    """Ragged and fixed axes, and plain numbers, at that many sites."""
    coords = {"site": np.array(["a", "bb", "c", "dddd"][:sites]), "row_size": SIZES[:sites]}
    variables = (
        Variable("value", "1", "singular values", dim="singular_value", dtype="float32"),
        Variable("quantiles", dim="quantile"),
        Variable("norm"),
    )
    axes = {"singular_value": None, "quantile": np.array([0.0, 0.5, 1.0])}
    return Group("spectra", variables, coords, {}, axes)


def spectral_rows(steps, sites: int) -> dict[str, np.ndarray]:
    """Values that say where they belong; exact in float32."""
    at = np.asarray(steps, float)[:, None]
    norm = at * 8 + np.arange(sites)
    return {
        "value": at * 8 + np.arange(SIZES[:sites].sum()),
        "quantiles": norm[..., None] + np.array([0.0, 0.25, 0.5]),
        "norm": norm,
    }


def create(path, **attributes) -> ZarrWriter:
    return ZarrWriter.create(path, attributes)


def block(steps, offset=0.0):
    """Values that say where they belong: step and site."""
    return np.asarray(steps, float)[:, None] * 100 + np.arange(SITES) + offset


def fill(writer: Writer, steps) -> None:
    steps = np.asarray(steps, int)
    writer.append("error_moment", steps, {"output": block(steps), "input": block(steps, 0.5)})


OPERATIONS = st.sampled_from(["rows", "rows", "curve", "late", "commit", "full", "sites"])


def check_spectra(dataset, steps, sites):
    np.testing.assert_array_equal(dataset.step, steps)
    for name in ("value", "quantiles", "norm"):
        values = dataset[name].values
        for row, (step, width) in enumerate(zip(steps, sites, strict=False)):
            expected = spectral_rows([step], width)[name][0]
            np.testing.assert_array_equal(values[row, : len(expected)], expected)
            assert np.isnan(values[row, len(expected) :]).all()


def check(run, rows, points, curves, steps, curve, names):
    moment, log = run["error_moment"], run["log"]
    np.testing.assert_array_equal(moment.step, steps[:rows])
    np.testing.assert_array_equal(moment.output, block(steps[:rows]))
    np.testing.assert_array_equal(moment.input, block(steps[:rows], 0.5))
    assert list(log.data_vars) == names[:curves]
    for name in names[:curves]:
        expected = [point.get(name, np.nan) for point in curve[:points]]
        np.testing.assert_array_equal(log[name], expected)


class failing:
    """The disk is full from the n-th system call on; writes before that take a part only."""

    def __init__(self, after: int) -> None:
        self.left = after
        self.patches = [
            mock.patch.object(os, "pwrite", self.part(os.pwrite)),
            mock.patch.object(os, "ftruncate", self.counted(os.ftruncate)),
            mock.patch.object(Path, "write_text", self.counted(Path.write_text)),
            mock.patch.object(os, "write", self.part(os.write)),
            mock.patch.object(os, "replace", self.counted(os.replace)),
        ]

    def counted(self, call):
        def wrapped(*args, **kwargs):
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return call(*args, **kwargs)

        return wrapped

    def part(self, call):
        def wrapped(descriptor, data, *offset):
            data = memoryview(data).cast("B")
            return self.counted(call)(descriptor, data[: max(1, len(data) // 2)], *offset)

        return wrapped

    def __enter__(self):
        for patch in self.patches:
            patch.start()
        return self

    def __exit__(self, *exception):
        for patch in self.patches:
            patch.stop()
