"""Fig. 3: R = q¹/qᴸ by hand, its two panels, and what is read to draw them."""

import importlib

import numpy as np
import pytest
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

import propkit
from propkit.figures.runs import FigureError

fig3 = importlib.import_module("propkit.figures.fig3")
EXPECTED = [1 / 100, 2 / 8, 6 / 3, 1e-9 / 1e-3]


def curves(ax):
    return [line for line in ax.lines if line.get_gid() == "curve"]


def texts(ax):
    return [t.get_text() for t in ax.texts]


def test_prepare_divides_the_first_convolution_by_the_last(run):
    data = fig3.prepare(run)
    np.testing.assert_allclose(data["ratio"], EXPECTED)
    assert data["ratio"].dims == ("step",)
    assert data.attrs["symbol"] == "$R = q^1 / q^L$"


def test_prepare_corrected_multiplies_by_the_filter_norms(run):
    # Mean squared filter norms: 2²/2 in the first layer, 4²/8 in the last convolution.
    data = fig3.prepare(run, corrected=True)
    np.testing.assert_allclose(data["ratio"], np.array(EXPECTED) * 2 / 2)
    assert "tilde" in data.attrs["symbol"]


def test_the_upper_panel_has_all_iterations_the_lower_those_from_5(run, steps):
    figure = propkit.figures.fig3(run)
    top, bottom = figure.axes
    assert curves(top)[0].get_xdata().tolist() == steps
    np.testing.assert_allclose(curves(top)[0].get_ydata(), EXPECTED)
    assert curves(bottom)[0].get_xdata().tolist() == [5, 10]
    np.testing.assert_allclose(curves(bottom)[0].get_ydata(), EXPECTED[2:])
    assert top.get_position().y0 > bottom.get_position().y1
    assert (top.get_title(loc="left"), bottom.get_title(loc="left")) == (
        "all iterations",
        "from iteration 5 on",
    )
    assert bottom.get_xlabel() == "iteration"
    assert "R = q^1 / q^L" in figure.get_supylabel()


def test_log_axes_with_a_line_at_one_between_exploding_and_vanishing(run):
    figure = propkit.figures.fig3(run)
    figure.draw_without_rendering()
    for ax in figure.axes:
        assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "log")
        (one,) = [line for line in ax.lines if line.get_gid() == "one"]
        assert set(one.get_ydata()) == {1.0}
        low, high = ax.get_ylim()
        assert low < min(EXPECTED[2:])
        assert high > max(EXPECTED)
        above, below = ax.texts
        assert (above.get_text(), below.get_text()) == ("exploding", "vanishing")
        level = ax.transData.transform((0, 1.0))[1]
        box = ax.get_window_extent()
        assert level < above.get_window_extent().y0 < above.get_window_extent().y1 < box.y1
        assert box.y0 < below.get_window_extent().y0 < below.get_window_extent().y1 < level


def test_runs_are_compared_in_both_panels(run, make_run, groups, steps):
    other = make_run(steps, groups, label="other")
    top, bottom = propkit.figures.fig3([run, other]).axes
    for ax in (top, bottom):
        assert [line.get_label() for line in curves(ax)] == ["tiny", "other"]
    assert [t.get_text() for t in top.get_legend().get_texts()] == ["tiny", "other"]
    blue, green = (line.get_color() for line in curves(top))
    assert (blue, green) == tuple(line.get_color() for line in curves(bottom))


def test_runs_of_different_lengths_keep_their_colours(run, make_run):
    short = make_run([0], {"error_moment": {"output": [[1, 1, 1, 1]]}}, label="short")
    top, bottom = propkit.figures.fig3(short, run).axes
    assert [line.get_label() for line in curves(bottom)] == ["tiny"]
    assert curves(bottom)[0].get_color() == curves(top)[1].get_color()


def test_zero_and_nan_are_gaps(make_run, steps, tmp_path):
    q = [[0, 1, 1, 1], [1, 1, 0, 1], [2, 1, 1, 1], [np.nan, 1, 1, 1]]
    figure = propkit.figures.fig3(make_run(steps, {"error_moment": {"output": q}}))
    (line,) = curves(figure.axes[0])
    np.testing.assert_array_equal(line.get_ydata(), [np.nan, np.nan, 2, np.nan])
    assert line.get_markevery() == [2]
    figure.savefig(tmp_path / "x.png")


def test_one_step_and_no_value_at_all(make_run, tmp_path):
    one = make_run([0], {"error_moment": {"output": [[1, 2, 4, 8]]}})
    figure = propkit.figures.fig3(one)
    top, bottom = figure.axes
    assert curves(top)[0].get_marker() == "o"
    assert curves(top)[0].get_markevery() == [0]
    assert "no iteration recorded here" in texts(bottom)
    figure.savefig(tmp_path / "x.png")
    none = make_run([0, 9], {"error_moment": {"output": np.full((2, 4), np.nan)}})
    figure = propkit.figures.fig3(none)
    assert all("no value on a log axis" in texts(ax) for ax in figure.axes)
    figure.savefig(tmp_path / "y.png")


def test_first_moves_the_lower_panel(run):
    _, bottom = propkit.figures.fig3(run, first=2).axes
    assert curves(bottom)[0].get_xdata().tolist() == [2, 5, 10]
    assert bottom.get_title(loc="left") == "from iteration 2 on"


def test_what_is_missing_is_named(make_run, steps, groups):
    del groups["weight"]
    without = make_run(steps, groups)
    with pytest.raises(FigureError, match=r"fig3 \(corrected\) needs 'weight'"):
        propkit.figures.fig3(without, corrected=True)
    with pytest.raises(ValueError, match=r"at least two layers, but layer1 \(Linear\)"):
        propkit.figures.fig3(make_run([0], {"error_moment": {"output": [[1.0]]}}, ["Linear"]))


class Recorded(BackendArray):
    """An array on disk, as xarray sees it, that remembers what was read."""

    def __init__(self, values):
        self.values, self.shape, self.dtype = values, values.shape, values.dtype
        self.read = 0

    def __getitem__(self, key):
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._get
        )

    def _get(self, key):
        part = self.values[key[0]][..., key[1]]
        self.read += part.size
        return part


def test_only_two_columns_are_read(run):
    array = Recorded(np.ones((1000, 44)))
    lazy = xr.Dataset(
        {"output": (("step", "site"), indexing.LazilyIndexedArray(array))},
        coords={
            "step": np.arange(1000),
            "site": [f"s{i}" for i in range(44)],
            "type": ("site", ["Conv2d"] * 44),
        },
    )

    class Stored:
        label, path, state, attributes = "x", None, "complete", {}

        def __contains__(self, group):
            return True

        def __getitem__(self, group):
            return lazy

    fig3.prepare(Stored())
    assert 0 < array.read <= 2 * 1000
    array.read = 0
    importlib.import_module("propkit.figures.fig4").prepare(Stored(), steps=[3, 700])
    assert 0 < array.read <= 2 * 2 * 44


def test_layers_decide_between_which_two_the_ratio_is(run):
    prepare = importlib.import_module("propkit.figures.fig3").prepare
    assert prepare(run, layers="layer[23]")["ratio"].values == pytest.approx([0.1, 0.5, 1, 0.1])
    corrected = prepare(run, layers="layer[23]", corrected=True)["ratio"]
    # Squared norms of a filter: 4 / 4 and 16 / 8.
    assert corrected.values == pytest.approx([0.05, 0.25, 0.5, 0.05])
    with pytest.raises(ValueError, match="matches the whole name of no layer"):
        propkit.figures.fig3(run, layers="layer")
