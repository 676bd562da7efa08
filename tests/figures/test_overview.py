"""The overview: a part for each figure that can be drawn, and the names of the others."""

import pytest

import propkit
from propkit.figures import overview as _  # noqa: F401 - the file, not the function
from propkit.figures.overview import COMPARED
from propkit.figures.runs import FigureError

OF_SEVERAL = {"fig5", "generalisation_gap", "parameter_efficiency", "procrustes_grid"}
OF_SEVERAL |= {"intervention"}
"""Figures that compare runs, or show what others do."""


def names(figure):
    return [part.get_suptitle() for part in figure.subfigs if part.get_suptitle()]


def test_all_other_figures_are_parts_of_it(recorded):
    figure = propkit.figures.overview(recorded(layers=4))
    assert set(names(figure)) == set(propkit.figures.names()) - {"overview"} - OF_SEVERAL
    assert figure.get_suptitle() == "all (complete)"
    assert not figure.get_supxlabel()
    figure.draw_without_rendering()
    for part in figure.subfigs:
        assert bool(part.axes) == bool(part.get_suptitle())


def test_what_was_not_recorded_is_named(recorded):
    run = recorded(without=("log", "bn_jacobian", "singular_values"))
    figure = propkit.figures.overview(run)
    assert {"learning_curves", "bn_spectra"} & set(names(figure)) == set()
    assert "spectra" in names(figure)  # from the quantiles
    assert figure.get_supxlabel() == "not recorded, so not drawn: learning_curves, bn_spectra"


def test_steps_reach_the_parts_that_have_snapshots(recorded):
    figure = propkit.figures.overview(recorded(), steps=[10])
    (part,) = [p for p in figure.subfigs if p.get_suptitle() == "fig4"]
    (ax,) = part.axes
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["iteration 10"]


def parts(figure):
    return {part.get_suptitle(): part for part in figure.subfigs if part.get_suptitle()}


def curves(ax):
    return [line for line in ax.lines if line.get_gid() == "curve"]


def test_several_runs_are_laid_over_each_other_with_one_legend(recorded):
    runs = [recorded(attributes={"label": label}) for label in ("a", "b", "c")]
    figure = propkit.figures.overview(*runs)
    assert figure.get_suptitle() == "3 runs"
    assert tuple(parts(figure)) == COMPARED
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["a", "b", "c"]
    for name, part in parts(figure).items():
        kinds = [t.get_text() for legend in part.legends for t in legend.get_texts()]
        assert kinds == (["training", "test"] if name == "learning_curves" else [])
        for ax in part.axes:
            assert ax.get_legend() is None
            if name not in ("learning_curves", "fig4"):
                assert len(curves(ax)) == 3, name
            colors = list(dict.fromkeys(line.get_color() for line in curves(ax)))
            assert colors == [handle.get_color() for handle in figure.legends[0].legend_handles]
    (ax,) = parts(figure)["norm_ratios"].axes
    assert ax.get_title(loc="left") == "iteration 100"
    assert ax.get_xlabel() == "block"
    figure.draw_without_rendering()


def test_runs_of_different_depths_are_aligned(recorded):
    figure = propkit.figures.overview(recorded(layers=3), recorded(layers=9), steps=[10])
    for name in ("fig4", "norm_ratios", "bn_spectra"):
        for ax in parts(figure)[name].axes:
            assert [line.get_xdata()[-1] for line in curves(ax)] == [1.0, 1.0]
    assert parts(figure)["norm_ratios"].axes[0].get_title(loc="left") == "iteration 10"


def test_a_part_is_of_all_runs_or_not_there(recorded):
    figure = propkit.figures.overview(recorded(), recorded(without=("weight", "bn_jacobian")))
    assert "bn_spectra" not in parts(figure)
    text = figure.legends[0].get_title().get_text()
    assert text == "not recorded, so not drawn: bn_spectra"


def test_several_runs_are_compared_at_one_iteration(recorded):
    with pytest.raises(FigureError, match=r"compares 2 runs at one iteration, found steps=.1, 2"):
        propkit.figures.overview(recorded(), recorded(), steps=[1, 2])
    empty = recorded(without=tuple(recorded().groups))
    with pytest.raises(FigureError, match=r"nothing can be drawn from these runs; .* needs"):
        propkit.figures.overview(empty, recorded())
