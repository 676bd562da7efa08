"""Runs and labels that figures are given, and what they say when something is missing."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import propkit
from propkit.figures.runs import FigureError, gather, need
from propkit.schema import Group, Variable
from propkit.store.memory import MemoryWriter
from propkit.store.run import Run

SOME = {"error_moment": {"output": np.ones((1, 4))}}


def test_runs_and_paths_and_lists_of_them(run, make_store, groups, steps, tmp_path):
    path = make_store(tmp_path / "b.zarr", steps, groups)
    assert list(gather([run, path])) == ["tiny", "b"]
    assert list(gather([[run, str(path)]])) == ["tiny", "b"]
    assert list(gather([run], labels="only")) == ["only"]
    assert list(gather([run, path], labels=["x", "y"])) == ["x", "y"]


def test_studies_folders_and_patterns_are_all_their_runs(make_store, tmp_path):
    for name in ("seed10", "seed2"):
        make_store(tmp_path / f"{name}.zarr", [0], SOME, label="L2", seed=int(name[4:]))
    study = propkit.open_study(tmp_path)
    assert list(gather([study])) == list(study.runs) == ["L2 (seed 2)", "L2 (seed 10)"]
    assert list(gather([study], ["a", "b"])) == ["a", "b"]
    assert list(gather([study.select(seed=10)])) == ["L2"]
    for several in (tmp_path, str(tmp_path), str(tmp_path / "*.zarr"), tmp_path / "seed*"):
        assert list(gather([several])) == ["L2 (seed2)", "L2 (seed10)"]
    memory = propkit.open_study([propkit.open(tmp_path / "seed2.zarr")])
    assert len(gather([memory, tmp_path / "seed10.zarr"])) == 2
    figure = propkit.figures.fig4(study)
    assert [ax.get_title(loc="left") for ax in figure.axes] == list(study.runs)


def test_equal_labels_are_told_apart(make_run, make_store, tmp_path):
    for place in ("a/run.zarr", "b/run.zarr", "c/other.zarr"):
        (tmp_path / place).parent.mkdir()
        make_store(tmp_path / place, [0], SOME, label="L2")
    a, b, c = (tmp_path / p for p in ("a/run.zarr", "b/run.zarr", "c/other.zarr"))
    assert list(gather([a, c])) == ["L2 (run)", "L2 (other)"]
    assert list(gather([a, b])) == ["L2 (a/run)", "L2 (b/run)"]
    assert list(gather([a, a])) == ["L2", "L2 (2)"]
    memory = [make_run([0], SOME, label="m") for _ in range(3)]
    assert list(gather(memory)) == ["m", "m (2)", "m (3)"]
    assert list(gather(memory, ["m (2)", "m", "m"])) == ["m (2)", "m", "m (3)"]


def test_unusable_arguments_are_refused(run):
    with pytest.raises(FigureError, match="expected one label per run, found 2 for 1"):
        gather([run], ["a", "b"])
    with pytest.raises(FigureError, match="no run was given"):
        gather([])
    with pytest.raises(TypeError, match=r"the path of one or a propkit\.Study, found int"):
        gather([3])
    with pytest.raises(FileNotFoundError, match="no run at"):
        gather([Path("there-is-no-such.zarr")])


def test_a_missing_quantity_names_the_probe_and_the_way_to_record_it(make_run):
    only = make_run([0], SOME, label="L2")
    with pytest.raises(FigureError) as error:
        need(only, "filter_correlation", "fig2")
    text = str(error.value)
    assert "fig2 needs 'filter_correlation', which run 'L2' does not have" in text
    assert "it has: error_moment" in text
    assert "propkit.attach(model, ..., probes=['filter_correlation'])" in text
    assert "python -m propkit train RECIPE -o run.zarr" in text


def test_a_probe_s_fault_is_passed_on(make_run):
    broken = make_run([0], SOME, faults={"weight": "step 3: out of memory"})
    with pytest.raises(FigureError, match=r"switched off during the run: step 3: out of memory\."):
        need(broken, "weight", "fig3")


def test_a_run_without_rows_says_that_and_its_state():
    writer = MemoryWriter({"label": "new"})
    coords = {"site": np.array(["a"]), "type": np.array(["Conv2d"])}
    writer.define(Group("error_moment", (Variable("output"),), coords))
    writer.commit()
    with pytest.raises(
        FigureError, match=r"'new' has no row of 'error_moment' yet \(state: running"
    ):
        need(Run.from_memory(writer), "error_moment", "fig3")


SAMPLED = {"sampling": {"error_moment": 2}}


def unwritten(state="running", attributes=SAMPLED):
    writer = MemoryWriter({"label": "live", **attributes})
    writer.commit()
    if state != "running":
        writer.close(state)
    return Run.from_memory(writer)


def test_what_is_being_recorded_and_not_flushed_yet_is_not_said_to_be_missing():
    expected = (
        r"^fig3: run 'live' has no row of 'error_moment' yet \(state: running\)\. Rows appear"
    )
    with pytest.raises(FigureError, match=expected):
        need(unwritten(), "error_moment", "fig3")
    with pytest.raises(FigureError, match=r"'log' yet \(state: running\)"):
        need(unwritten(), "log", "learning_curves")
    with pytest.raises(FigureError, match=r"yet \(state: failed\)\. It ended before a row"):
        need(unwritten("failed"), "error_moment", "fig3")
    with pytest.raises(FigureError, match=r"needs 'weight', which .* Record it with"):
        need(unwritten(), "weight", "fig3")
    off = unwritten(attributes={**SAMPLED, "faults": {"error_moment": "step 0: broke"}})
    with pytest.raises(FigureError, match=r"switched off during the run: step 0: broke\.$"):
        need(off, "error_moment", "fig3")


@pytest.mark.parametrize("gone", ["error_moment", "error_moment/site"])
def test_a_store_that_lost_an_array_is_damaged(make_store, groups, steps, tmp_path, gone):
    path = make_store(tmp_path / "a.zarr", steps, groups)
    shutil.rmtree(path / gone)
    named = "error_moment/depth, .* more are" if gone == "error_moment" else "error_moment/site is"
    for figure in (propkit.figures.fig3, propkit.figures.fig4):
        with pytest.raises(FigureError, match=rf"a\.zarr is damaged: {named} missing, .* copy"):
            figure(path)
    assert propkit.figures.fig2(path).axes  # of other groups
