"""Before and after marked iterations: means over windows, marks of recipes, what is drawn."""

import importlib

import numpy as np
import pytest

import propkit
from propkit.figures.runs import FigureError

figure = importlib.import_module("propkit.figures.intervention")

STEPS = [0, 10, 20, 30, 40]
VALUES = np.random.default_rng(0).lognormal(size=(5, 3))


@pytest.fixture
def made(make_run):
    def make(values=VALUES, label="a", **recipe):
        groups = {"error_moment": {"output": values}, "weight": {"norm": -np.asarray(values)}}
        kinds = ["Conv2d"] * np.shape(values)[1]
        return make_run(STEPS, groups, kinds, label=label, config={"recipe": recipe})

    return make


def test_means_before_and_after_a_mark_are_geometric_of_positive_values(made):
    data = figure.prepare(made(), steps=[20], window=2)
    np.testing.assert_allclose(data["before"], [np.sqrt(VALUES[0] * VALUES[1])])
    np.testing.assert_allclose(data["after"], [np.sqrt(VALUES[2] * VALUES[3])])
    between = figure.prepare(made(), steps=[21], window=99)
    np.testing.assert_allclose(between["before"], [VALUES[:3].prod(0) ** (1 / 3)])
    np.testing.assert_allclose(between["after"], [np.sqrt(VALUES[3] * VALUES[4])])
    signed = figure.prepare(made(), of="weight.norm", steps=[20], window=2)
    np.testing.assert_allclose(signed["after"], [-(VALUES[2] + VALUES[3]) / 2])


def test_what_is_not_finite_counts_for_nothing(made):
    values = VALUES.copy()
    values[1, 0], values[2:, 1], values[:2, 2] = np.nan, np.inf, np.nan
    data = figure.prepare(made(values), steps=[20], window=2)
    np.testing.assert_allclose(data["before"][0, 0], values[0, 0])
    assert np.isnan(data["after"][0, 1])
    assert np.isnan(data["before"][0, 2])


def test_a_mark_after_the_end_of_a_run_compares_nothing(made):
    data = figure.prepare(made(), steps=[0, 40, 41])
    assert np.isnan(data["before"]).all("site").values.tolist() == [True, False, True]
    assert np.isnan(data["after"]).all("site").values.tolist() == [False, False, True]


def test_the_band_holds_the_middle_of_the_layers(made):
    values = np.random.default_rng(1).permuted(np.tile(np.arange(1.0, 12.0), (5, 1)), axis=1)
    data = figure.prepare(made(values))
    for name, expected in (("low", 2.0), ("median", 6.0), ("high", 10.0)):
        assert data[name].values.tolist() == [expected] * 5
    values[0, :] = np.nan
    values[1, values[1] > 5] = np.inf
    data = figure.prepare(made(values))
    assert np.isnan(data["median"][0])
    assert data["median"][1] == 3


def test_marks_are_what_the_recipe_tells_of(made):
    marks = figure.marks_of
    assert marks(made()) == {}
    recipe = {"milestones": [30, 35], "warm_up": 10, "steps": 33}
    assert marks(made(**recipe)) == {10: "warm-up ends", 30: "learning rate"}
    modulated = made(modulation="decade", modulation_steps=20)
    assert marks(modulated) == {20: "modulation ends"}
    assert marks(made(modulation="never", modulation_steps=20)) == {}
    assert len(marks(made(milestones=[1, 2, 3, 4]))) == 3


def test_without_marks_the_first_and_the_last_iterations_are_compared(made):
    data = figure.prepare(made())
    assert data["mark"].values.tolist() == [-1]
    np.testing.assert_allclose(data["before"], [np.sqrt(VALUES[0] * VALUES[1])])
    np.testing.assert_allclose(data["after"], [np.sqrt(VALUES[3] * VALUES[4])])
    drawn = propkit.figures.intervention(made())
    assert drawn.axes[1].get_title(loc="left") == "first and last iterations"
    assert not [line for line in drawn.axes[0].lines if line.get_gid() == "mark"]


def test_a_run_that_was_left_alone_has_the_marks_of_the_other(made):
    treated = made(modulation="decade", modulation_steps=20, milestones=[40])
    alone = made(2 * VALUES, label="alone")
    drawn = propkit.figures.intervention(alone, treated, window=1)
    top, *below = drawn.axes
    marks = [line.get_xdata()[0] for line in top.lines if line.get_gid() == "mark"]
    assert marks == [20, 40]
    titles = [ax.get_title(loc="left") for ax in below]
    assert titles == ["iteration 20: modulation ends", "iteration 40: learning rate"]
    for ax, row in zip(below, (2, 4), strict=True):
        for name, shift in (("before", -1), ("after", 0)):
            lines = [line for line in ax.lines if line.get_gid() == name]
            assert len(lines) == 2
            np.testing.assert_allclose(lines[0].get_ydata(), 2 * VALUES[row + shift])
            np.testing.assert_allclose(lines[1].get_ydata(), VALUES[row + shift])
            assert all((x.get_linestyle() == "--") == (name == "before") for x in lines)
    assert top.get_yscale() == "log"
    assert top.get_ylabel() == "error moment, output"
    texts = [t.get_text() for t in top.get_legend().get_texts()]
    assert texts == ["alone", "a"]
    curves = [line for line in top.lines if line.get_gid() == "curve"]
    np.testing.assert_allclose(curves[1].get_ydata(), np.median(VALUES, axis=1))


def test_quantities_without_layers_have_one_point(recorded):
    data = figure.prepare(recorded(), of="log.loss", steps=[10], window=1)
    np.testing.assert_allclose(data["before"], [[2.0]])
    np.testing.assert_allclose(data["after"], [[3.0]])
    propkit.figures.intervention(recorded(), of="log.loss").draw_without_rendering()


def test_what_is_wrong_is_said(made, recorded):
    with pytest.raises(FigureError, match=r"of='weight.x': expected .*; 'weight' has norm"):
        figure.prepare(made(), of="weight.x")
    with pytest.raises(FigureError, match="'singular_values' has spectral_norm"):
        figure.prepare(recorded(), of="singular_values.value")
    with pytest.raises(FigureError, match="needs 'nothing', which"):
        figure.prepare(made(), of="nothing")
    with pytest.raises(FigureError, match="window=0: expected"):
        figure.prepare(made(), window=0)
