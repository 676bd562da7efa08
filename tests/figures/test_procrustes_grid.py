"""The grid of channels: geometric means over rows and runs, and what is drawn of them."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import propkit
from propkit.figures.runs import FigureError
from propkit.schema import Group, Variable
from propkit.store.memory import MemoryWriter

figure = importlib.import_module("propkit.figures.procrustes_grid")


def grid_run(c_in, c_out, projected, ratios, seed=0, shapes=True):
    """A run of one block whose gradient norms at output and input have these ratios, step after step."""
    how = "-projected" if projected else ""
    config = {"recipe": {"projection": "conv" if projected else None, "projection_every": 2}}
    writer = MemoryWriter({"label": f"{c_in}x{c_out}{how}", "config": config, "seed": seed})
    coords = {"site": np.array(["layer2"]), "depth": np.array([1]), "type": np.array(["ConvReLU"])}
    if shapes:
        coords["input_shape"] = np.array([f"(8, {c_in}, 4, 4)"])
        coords["output_shape"] = np.array([f"(8, {c_out}, 4, 4)"])
    writer.define(Group("gradient_norm", (Variable("input"), Variable("output")), coords))
    ratios = np.asarray(ratios, dtype=float)[:, None]
    writer.append(
        "gradient_norm",
        10 * np.arange(len(ratios)),
        {"input": np.full_like(ratios, 3.0), "output": 3.0 * ratios},
    )
    writer.commit()
    writer.close("complete")
    return propkit.Run.from_memory(writer)


def study():
    """2 x 2 channels, without and with projection, three seeds; the last of each is the one that counts."""
    rng = np.random.default_rng(0)
    last = {}
    runs = []
    for c_in in (2, 4):
        for c_out in (2, 8):
            for projected in (False, True):
                last[c_in, c_out, projected] = found = np.exp(rng.normal(size=3))
                runs += [
                    grid_run(c_in, c_out, projected, [9.0, 9.0, value], seed)
                    for seed, value in enumerate(found)
                ]
    return runs, last


def by_label(runs):
    return {f"{i}": run for i, run in enumerate(runs)}


def test_cells_are_geometric_means_over_runs_with_their_spread():
    runs, last = study()
    data = figure.prepare(by_label(runs))
    assert data["row"].values.tolist() == [2, 4]
    assert data["column"].values.tolist() == [2, 8]
    for (c_in, c_out, projected), values in last.items():
        cell = data.sel(grid=projected, row=c_in, column=c_out)
        np.testing.assert_allclose(cell["mean"], np.prod(values) ** (1 / 3))
        np.testing.assert_allclose(cell["spread"], np.std(np.log(values), ddof=1))
        assert (int(cell["count"]), int(cell["failed"])) == (3, 0)


def test_the_mean_runs_over_a_window_that_ends_at_an_iteration():
    runs = {"a": grid_run(2, 4, True, [1.0, 4.0, 16.0, np.nan, 64.0, 0.0])}

    def ratio(**options):
        return float(figure.prepare(runs, **options)["ratio"][0])

    assert np.isnan(ratio())  # a tenth of six rows is the last one
    assert ratio(window=2) == pytest.approx(64)
    assert ratio(window=4) == pytest.approx(32)  # of 16 and 64
    assert ratio(steps=[21], window=2) == pytest.approx(8)
    assert ratio(steps=[0], window=9) == pytest.approx(1)
    long = {"a": grid_run(2, 4, True, [*[5.0] * 18, 1.0, 4.0])}
    assert float(figure.prepare(long)["ratio"][0]) == pytest.approx(2)


def test_runs_that_died_are_counted_apart_and_missing_cells_are_empty():
    runs = [
        grid_run(2, 2, False, [2.0]),
        grid_run(2, 2, False, [np.inf]),
        grid_run(4, 8, False, [np.nan]),
    ]
    data = figure.prepare(by_label(runs)).isel(grid=0)
    assert data["count"].values.tolist() == [[1, 0], [0, 0]]
    assert data["failed"].values.tolist() == [[1, 0], [0, 1]]
    assert float(data["mean"][0, 0]) == pytest.approx(2)
    assert np.isnan(data["mean"].values[1, 1])
    drawn = propkit.figures.procrustes_grid(runs)
    (cross,) = [line for line in drawn.axes[0].lines if line.get_gid() == "failed"]
    assert cross.get_xydata().tolist() == [[1.5, 1.5]]


def test_what_is_drawn():
    runs, last = study()
    drawn = propkit.figures.procrustes_grid(runs)
    without, with_, bar, spread = drawn.axes
    assert [ax.get_title(loc="left") for ax in (without, with_)] == list(figure._NAMES)
    for projected, ax in ((False, without), (True, with_)):
        means = [[np.exp(np.log(last[a, b, projected]).mean()) for b in (2, 8)] for a in (2, 4)]
        (mesh,) = ax.collections
        np.testing.assert_allclose(mesh.get_array().reshape(2, 2), np.log2(means))
        texts = [float(t.get_text()) for t in ax.texts]
        np.testing.assert_allclose(texts, np.ravel(means), rtol=0.06)
        assert mesh.norm.vmin == -mesh.norm.vmax  # 1 is in the middle
    assert [t.get_text() for t in without.get_yticklabels()] == ["2", "4"]
    assert without.get_ylim() == (2, 0)  # the fewest channels on top
    assert [t.get_text() for t in spread.get_xticklabels()] == ["2→2", "2→8", "4→2", "4→8"]
    assert spread.get_yscale() == "log"
    points = np.concatenate([c.get_offsets() for c in spread.collections if len(c.get_offsets())])
    assert {round(y, 9) for _, y in points} >= {
        round(v, 9) for values in last.values() for v in values
    }
    assert spread.get_title(loc="left") == "3 runs per cell"
    assert "1" in [t.get_text() for t in bar.get_yticklabels()]


def test_one_cell_and_one_variant():
    drawn = propkit.figures.procrustes_grid(grid_run(3, 3, True, [1.1]))
    assert drawn.axes[0].get_title(loc="left") == "with projection"
    assert drawn.axes[-1].get_title(loc="left") == "1 run per cell"
    drawn.draw_without_rendering()


def test_what_is_wrong_is_said():
    runs = {"a": grid_run(2, 4, True, [1.0])}
    with pytest.raises(FigureError, match="shows one iteration, found steps=\\[1, 2\\]"):
        figure.prepare(runs, steps=[1, 2])
    with pytest.raises(FigureError, match="window=0: expected"):
        figure.prepare(runs, window=0)
    with pytest.raises(FigureError, match="'a' has no shapes of its blocks"):
        figure.prepare({"a": grid_run(2, 4, True, [1.0], shapes=False)})
    run = grid_run(2, 4, True, [1.0])
    flat = run["gradient_norm"].assign_coords(input_shape=("site", ["(8,)"]))
    run._read = {"gradient_norm": flat}.__getitem__
    with pytest.raises(FigureError, match=r"has a block from \(8,\) to .*: expected shapes"):
        figure.prepare({"a": run})


def test_seaborn_changes_no_setting_and_chooses_no_backend(tmp_path):
    code = (
        "import warnings, matplotlib, importlib\n"
        "import tests.figures.test_procrustes_grid as t, propkit\n"
        "data = t.figure.prepare(t.by_label(t.study()[0]))\n"
        "filters, settings = list(warnings.filters), matplotlib.rcParams.copy()\n"
        "t.figure.draw(data).savefig('grid.png')\n"
        "assert list(warnings.filters) == filters\n"
        "get = matplotlib.rcParams._get\n"
        "assert get('backend') is matplotlib.rcsetup._auto_backend_sentinel\n"
        "assert all(get(key) == settings._get(key) for key in settings)\n"
        "import matplotlib.pyplot as plt; assert not plt.get_fignums()"
    )
    root = str(Path(propkit.__file__).parents[1])
    subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root},
    )
