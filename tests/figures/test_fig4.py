"""Fig. 4: q^l/qᴸ by layer, the iterations chosen, and one panel per run."""

import importlib

import numpy as np
import pytest

import propkit
from propkit.figures.runs import FigureError
from propkit.figures.snapshots import snapshot_steps

fig4 = importlib.import_module("propkit.figures.fig4")
fig3 = importlib.import_module("propkit.figures.fig3")


def curves(ax):
    return [line for line in ax.lines if line.get_gid() == "curve"]


def long_run(make_run, steps, layers=3, **attributes):
    q = np.tile(10.0 ** np.arange(layers), (len(steps), 1))
    return make_run(steps, {"error_moment": {"output": q}}, ["Conv2d"] * layers, **attributes)


def test_prepare_gives_every_layer_relative_to_the_last(run):
    data = fig4.prepare(run, steps=[0, 5])
    np.testing.assert_allclose(data["ratio"], [[0.01, 0.1, 1], [2, 1, 1]])
    assert data["step"].values.tolist() == [0, 5]
    assert data["depth"].values.tolist() == [1, 2, 3]


def test_its_leftmost_point_is_fig3_and_its_rightmost_is_one(run):
    data = fig4.prepare(run, steps=[0, 2, 5, 10])["ratio"]
    np.testing.assert_allclose(data[:, 0], fig3.prepare(run)["ratio"])
    assert (data[:, -1] == 1.0).all()


@pytest.mark.parametrize(
    ("recorded", "wanted", "shown"),
    [
        (range(0, 64_001, 50), None, [200, 2000, 20_000, 30_000]),
        (range(0, 64_001, 48), None, [192, 2016, 20_016, 30_000]),
        (range(30_001), None, [200, 2000, 20_000, 30_000]),
        ([0], None, [0]),
        ([0, 1, 2], None, [1, 2]),
        ([7], None, [7]),
        (range(0, 1501, 10), None, [10, 50, 280, 1500]),
        (range(1000, 1501, 10), None, [1000, 1140, 1310, 1500]),
        (range(0, 100, 10), [95, 14, 16, 1000, -5], [0, 10, 20, 90]),
        (range(0, 100, 10), [15], [10]),
    ],
)
def test_iterations_shown(recorded, wanted, shown):
    found = snapshot_steps(np.array(recorded), wanted)
    assert found.tolist() == shown


def test_one_line_per_iteration_against_layer_index(run):
    figure = propkit.figures.fig4(run, steps=[0, 5])
    (ax,) = figure.axes
    first, second = curves(ax)
    assert first.get_xdata().tolist() == [1, 2, 3]
    np.testing.assert_allclose(first.get_ydata(), [0.01, 0.1, 1])
    np.testing.assert_allclose(second.get_ydata(), [2, 1, 1])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["iteration 0", "iteration 5"]
    assert (first.get_linestyle(), first.get_color()) != (
        second.get_linestyle(),
        second.get_color(),
    )
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "log")
    assert figure.get_supxlabel() == "layer index"
    assert "q^l / q^L" in figure.get_supylabel()
    assert ax.get_title(loc="left") == "tiny"


def test_gaps_in_depth_are_kept(make_run):
    types = ["Conv2d", "Linear", "Conv2d", "Conv2d"]
    run = make_run([0], {"error_moment": {"output": [[1, 5, 2, 4]]}}, types)
    (ax,) = propkit.figures.fig4(run).axes
    assert curves(ax)[0].get_xdata().tolist() == [1, 3, 4]


def test_the_later_line_is_lighter_so_that_greyscale_tells_them_apart(make_run):
    (ax,) = propkit.figures.fig4(long_run(make_run, list(range(0, 30_001, 50)))).axes
    grey = [np.dot(line.get_color()[:3], [0.299, 0.587, 0.114]) for line in curves(ax)]
    assert len(grey) == 4
    assert (np.diff(grey) > 0.1).all()


def test_runs_have_panels_with_shared_axes(make_run):
    runs = [long_run(make_run, [0, 10, 100], label=f"run {i}") for i in range(4)]
    figure = propkit.figures.fig4(*runs)
    assert [ax.get_title(loc="left") for ax in figure.axes] == [f"run {i}" for i in range(4)]
    assert len({ax.get_ylim() for ax in figure.axes}) == 1
    first, *others = figure.axes
    assert all(first.get_shared_y_axes().joined(first, ax) for ax in others)
    assert [ax.get_legend() is not None for ax in figure.axes] == [True, False, False, False]
    figure.draw_without_rendering()
    for ax in figure.axes:
        assert any(t.get_text() and t.get_visible() for t in ax.get_xticklabels())


def test_panels_of_other_iterations_have_a_legend_of_their_own(make_run):
    figure = propkit.figures.fig4(long_run(make_run, [0, 10]), long_run(make_run, [0, 11]))
    assert all(ax.get_legend() is not None for ax in figure.axes)


def test_a_long_legend_stands_beside_the_axes(make_run):
    run = long_run(make_run, list(range(20)))
    figure = propkit.figures.fig4(run, steps=range(20))
    figure.draw_without_rendering()
    (ax,) = figure.axes
    legend = ax.get_legend().get_window_extent()
    assert legend.x0 > ax.get_window_extent().x1
    assert legend.y0 > 0
    assert legend.x1 < figure.bbox.x1


def test_a_thousand_layers_are_all_drawn(make_run):
    layers = 1000
    q = 1.02 ** np.arange(layers) * np.ones((1, layers))
    run = make_run([0], {"error_moment": {"output": q}}, ["Conv2d"] * layers)
    (ax,) = propkit.figures.fig4(run).axes
    (line,) = curves(ax)
    np.testing.assert_allclose(line.get_ydata(), 1.02 ** (np.arange(layers) - layers + 1.0))


def test_a_run_of_nan_is_drawn_as_such(make_run, tmp_path):
    q = np.full((2, 4), np.nan)
    figure = propkit.figures.fig4(make_run([0, 1], {"error_moment": {"output": q}}))
    assert "no value on a log axis" in [t.get_text() for t in figure.axes[0].texts]
    figure.savefig(tmp_path / "x.png")


def test_what_cannot_be_shown_is_refused(run, make_run):
    with pytest.raises(FigureError, match="steps is empty"):
        propkit.figures.fig4(run, steps=[])
    with pytest.raises(ValueError, match="at least two layers"):
        propkit.figures.fig4(make_run([0], {"error_moment": {"output": [[1.0]]}}, ["Conv2d"]))


def test_networks_of_different_depths_share_an_axis_from_0_to_1(recorded):
    runs = [recorded(layers=3), recorded(layers=9)]
    (ax,) = propkit.figures.fig4(*runs, relative_depth=True).axes
    short, long = (line for line in ax.lines if line.get_gid() == "curve")
    np.testing.assert_allclose(short.get_xdata(), [0, 0.5, 1])
    np.testing.assert_allclose(long.get_xdata(), np.arange(9) / 8)
    np.testing.assert_allclose(short.get_ydata(), np.array([4, 5, 6]) / 6)  # the last iteration
    assert ax.get_xlabel() == "relative depth"
    assert ax.get_yscale() == "log"
