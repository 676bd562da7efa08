"""Fig. 2: numbers by hand, and what is drawn of them."""

import importlib

import matplotlib.figure
import numpy as np
import pytest

import propkit
from propkit.figures.runs import FigureError

fig2 = importlib.import_module("propkit.figures.fig2")
# Pairs of the three convolutions are 1, 6 and 28.
EXPECTED = [0.0, (0.5 + 0.6 + 5.6) / 35, 0.1, (-0.1 + 2.8) / 35]


def curves(ax):
    return [line for line in ax.lines if line.get_gid() == "curve"]


def test_prepare_pools_the_convolutions(run):
    data = fig2.prepare(run)
    np.testing.assert_allclose(data["correlation"], EXPECTED)
    assert data["step"].values.tolist() == [0, 2, 5, 10]
    everything = fig2.prepare(run, include_linear=True)["correlation"]
    assert everything[1].item() == pytest.approx((0.5 + 0.6 + 5.6 + 0.9 * 45) / 80)


def test_one_line_per_run_on_linear_axes(run, make_run, groups, steps):
    figure = propkit.figures.fig2(run, make_run(steps, groups, label="other"))
    assert isinstance(figure, matplotlib.figure.Figure)
    (ax,) = figure.axes
    first, second = curves(ax)
    assert first.get_xdata().tolist() == steps
    np.testing.assert_allclose(first.get_ydata(), EXPECTED)
    assert (first.get_label(), second.get_label()) == ("tiny", "other")
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["tiny", "other"]
    assert first.get_linestyle() != second.get_linestyle()
    assert ax.get_xlabel() == "iteration"
    assert "cosine correlation" in ax.get_ylabel()
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "linear")


def test_negative_values_are_shown(make_run, steps, groups):
    groups["filter_correlation"]["correlation"] = np.full((4, 4), -0.001)
    (ax,) = propkit.figures.fig2(make_run(steps, groups)).axes
    assert ax.get_ylim()[0] < -0.001
    assert (curves(ax)[0].get_ydata() == -0.001).all()


def test_gaps_and_a_run_of_gaps_only(make_run, steps, groups, tmp_path):
    c = np.array(groups["filter_correlation"]["correlation"])
    c[2] = np.nan
    groups["filter_correlation"]["correlation"] = c
    some = make_run(steps, groups, label="some")
    groups["filter_correlation"]["correlation"] = np.full_like(c, np.nan)
    none = make_run(steps, groups, label="none")
    figure = propkit.figures.fig2(some, none)
    first, second = curves(figure.axes[0])
    assert np.isnan(first.get_ydata()).tolist() == [False, False, True, False]
    assert second.get_label() == "none (no finite value)"
    figure.savefig(tmp_path / "x.png")
    (ax,) = propkit.figures.fig2(none).axes
    assert "no finite value" in [t.get_text() for t in ax.texts]


def test_size_and_labels(run):
    figure = propkit.figures.fig2(run, labels=["L2"], size=(3, 2), dpi=50)
    assert figure.get_size_inches().tolist() == [3, 2]
    assert figure.dpi == 50
    assert curves(figure.axes[0])[0].get_label() == "L2"


def test_without_the_probe_it_says_so(make_run, steps, groups):
    del groups["filter_correlation"]
    with pytest.raises(FigureError, match="fig2 needs 'filter_correlation'"):
        propkit.figures.fig2(make_run(steps, groups))


def test_layers_are_chosen_by_their_whole_names(run):
    def value(**options):
        return importlib.import_module("propkit.figures.fig2").prepare(run, **options)

    # At step 2: 0.5 of 1 pair, 0.1 of 6, 0.2 of 28, and 0.9 of 45 of the linear layer.
    pooled = value(layers="layer[13]")["correlation"]
    assert float(pooled.sel(step=2)) == pytest.approx((0.5 + 28 * 0.2) / 29)
    assert float(value(layers="layer4")["correlation"].sel(step=2)) == pytest.approx(0.9)
    both = value(layers="layer[34]")["correlation"]
    assert float(both.sel(step=2)) == pytest.approx((28 * 0.2 + 45 * 0.9) / 73)
