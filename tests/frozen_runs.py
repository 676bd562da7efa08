"""Runs of each layout, kept as they were written: tests/data/frozen/LAYOUT-live.zip and LAYOUT-compact.zip.

Before `propkit.schema.SCHEMA_VERSION` is raised: ``python -m tests.frozen_runs`` keeps two of the layout of today.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np

from propkit.schema import SCHEMA_VERSION, Group, Variable
from propkit.store import arrays
from propkit.store.compact import compact
from propkit.store.writer import ZarrWriter

FROZEN = Path(__file__).parent / "data" / "frozen"
STEPS = np.arange(20) * 5
SITES = ("conv1", "block.conv2", "fc")


def moment(step: int, site: int) -> float:
    """What ``moment/output`` holds."""
    return step + 0.25 * site


def write(path: Path) -> None:
    """A run with all that a layout has: columns and chunks that came later, a flat variable, a fixed axis, curves."""
    born = {"host": "frozen", "pid": 0, "steps": 100}
    writer = ZarrWriter.create(path, {"label": "frozen", "config": {"lr": 0.1}, **born})
    sites = {"site": np.array(SITES[:2]), "depth": np.array([1, 2])}
    output = Variable("output", "x^2", "second moment", "arXiv:1703.01827, Sec. 3.3")
    writer.define(Group("moment", (output,), sites))
    values = np.array([[moment(step, i) for i in range(3)] for step in STEPS])
    writer.append("moment", STEPS[:9], {"output": values[:9, :2]})
    writer.commit()
    sites = {"site": np.array(SITES), "depth": np.array([1, 2, 3])}
    order = {"site_order": [2, 0, 1]}
    writer.define(Group("moment", (Variable("input", dtype="float32"),), sites, order))
    writer.append("moment", STEPS[9:], {"output": values[9:], "input": -values[9:]})
    sizes = {"site": np.array(SITES), "row_size": np.array([2, 0, 3])}
    axes = {"singular_value": None, "quantile": np.array([0.5, 1.0])}
    flat = Variable("value", dim="singular_value")
    writer.define(Group("spectra", (flat, Variable("level", dim="quantile")), sizes, {}, axes))
    spectra = {"value": np.arange(10.0).reshape(2, 5), "level": np.arange(12.0).reshape(2, 3, 2)}
    writer.append("spectra", STEPS[:2], spectra)
    writer.define(Group("log", (Variable("loss"),)))
    writer.append("log", np.arange(20), {"loss": 1 / (1 + np.arange(20.0))})
    writer.close("complete")


def main() -> None:
    FROZEN.mkdir(exist_ok=True)
    arrays.LONGEST_CHUNK = 8  # several chunks of few bytes
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.zarr")
        write(path)
        shutil.make_archive(str(FROZEN / f"{SCHEMA_VERSION}-live"), "zip", path)
        compact(path, grace=0)
        shutil.make_archive(str(FROZEN / f"{SCHEMA_VERSION}-compact"), "zip", path)


if __name__ == "__main__":
    main()
