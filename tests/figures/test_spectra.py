"""Densities of singular values: their areas, their layers, and quantiles in place of values."""

import importlib
import itertools

import numpy as np
import pytest

import propkit
from propkit.figures.runs import FigureError

spectra = importlib.import_module("propkit.figures.spectra")


def area(density, edges):
    edges = edges[np.isfinite(edges)]
    return float((density[: len(edges) - 1] * np.diff(edges)).sum())


def test_densities_are_histograms_of_a_layers_values(recorded):
    run = recorded(layers=3)
    data = spectra.prepare(run, steps=[0, 100])
    assert data["site"].values.tolist() == ["layer0", "layer1", "layer2"]
    for i, site in enumerate(data["site"].values):
        edges = data["edge"].values[i]
        edges = edges[np.isfinite(edges)]
        for step in (0, 100):
            values = run.spectrum(str(site), step=step).values
            share = [(values >= a) & (values < b) for a, b in itertools.pairwise(edges)]
            expected = np.mean(share, axis=1) / np.diff(edges)
            found = data["density"].sel(step=step).values[i]
            np.testing.assert_allclose(found[: len(expected)], expected)
            assert area(found, edges) == pytest.approx(1.0)
            assert float(data["largest"].sel(step=step)[i]) == values.max()


def test_quantiles_give_the_same_shares(recorded):
    run = recorded(layers=2, without=("singular_values",))
    data = spectra.prepare(run, steps=[0])
    for i in range(2):
        edges = data["edge"].values[i]
        assert area(data["density"].values[0, i], edges) == pytest.approx(1.0)
    # Quantiles 0, 1/4, ... of a layer are 0, 1/4, ... of its largest value: the density is level.
    level = data["density"].values[0, 1]
    np.testing.assert_allclose(level[:19], 1 / 2)


@pytest.mark.parametrize(
    ("quantiles", "below"),
    [([0, 0, 0, 1, 2], [0, 0.75, 1]), ([1, 1, 1, 1, 1], [0, 1, 1]), ([1, 1, 1, 2, 2], [0, 0.5, 1])],
)
def test_quantiles_that_coincide_are_a_jump(quantiles, below):
    found = spectra._shares_below(
        np.array([0.0, 1.0, 2.5]), np.array(quantiles, float), np.linspace(0, 1, 5)
    )
    np.testing.assert_allclose(found, below)


def test_up_to_six_layers_are_shown_from_the_first_to_the_last(recorded):
    data = spectra.prepare(recorded(layers=31), steps=[0])
    assert data["site"].values.tolist() == [f"layer{i}" for i in (0, 6, 12, 18, 24, 30)]
    chosen = spectra.prepare(recorded(layers=31), steps=[0], layers=r"layer1\d")
    assert chosen["site"].values.tolist() == [f"layer{i}" for i in range(10, 20)]
    with pytest.raises(FigureError, match="matches 31 layers, and a page holds 24"):
        spectra.prepare(recorded(layers=31), layers=r".*")


def test_lines_have_an_area_of_one_and_a_mark_at_the_largest(recorded):
    figure = propkit.figures.spectra(recorded(layers=2), steps=[0, 100])
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["layer0", "layer1"]
    for i, ax in enumerate(figure.axes):
        lines = [line for line in ax.lines if line.get_gid() == "density"]
        assert len(lines) == 2
        for line in lines:
            x, y = line.get_xdata(), line.get_ydata()
            assert (np.diff(x) * (y[1:] + y[:-1]) / 2).sum() == pytest.approx(1.0)
        tops = [line.get_xdata()[0] for line in ax.lines if line.get_gid() == "largest"]
        assert tops == [1 + i, 4 + i]
        assert len([line for line in ax.lines if line.get_gid() == "one"]) == 1
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert texts == ["iteration 0", "iteration 100"]


def test_several_runs_have_rows(recorded):
    figure = propkit.figures.spectra(recorded(layers=2), recorded(layers=2), labels=["a", "b"])
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == ["a: layer0", "a: layer1", "b: layer0", "b: layer1"]


def test_densities_on_a_log_axis_leave_out_empty_bins(recorded):
    figure = propkit.figures.spectra(recorded(layers=2), steps=[0, 100], log=True)
    for ax in figure.axes:
        assert ax.get_yscale() == "log"
        for line in (line for line in ax.lines if line.get_gid() == "density"):
            heights = line.get_ydata()
            assert np.nanmin(heights) > ax.get_ylim()[0] > 0
            assert np.nanmax(heights) < ax.get_ylim()[1]
