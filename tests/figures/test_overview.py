"""The overview: a part for each figure that can be drawn, and the names of the others."""

import pytest

import propkit
from propkit.figures import overview as _  # noqa: F401 - the file, not the function
from propkit.figures.runs import FigureError


def names(figure):
    return [part.get_suptitle() for part in figure.subfigs if part.get_suptitle()]


def test_all_other_figures_are_parts_of_it(recorded):
    figure = propkit.figures.overview(recorded(layers=4))
    assert set(names(figure)) == set(propkit.figures.names()) - {"overview"}
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


def test_it_is_a_page_for_one_run(recorded):
    with pytest.raises(FigureError, match="a page for one run, found 2"):
        propkit.figures.overview(recorded(), recorded())
