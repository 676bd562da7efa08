"""Learning curves: a panel per quantity, what was logged rarely, and how a divergence ends."""

import importlib

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

import propkit
from propkit.figures.runs import FigureError

learning_curves = importlib.import_module("propkit.figures.learning_curves")


def curves(ax):
    return [line for line in ax.lines if line.get_gid() == "curve"]


def texts(figure):
    (legend,) = figure.legends
    return [t.get_text() for t in legend.get_texts()]


def ink_of(figure, handle):
    """Pixels of a handle in the legend, as the page shows them."""
    figure.set_dpi(200)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box = handle.get_window_extent().padded(8)
    pixels = np.asarray(canvas.buffer_rgba())[::-1, :, :3]
    return pixels[int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)]


def test_quantities_share_a_panel_if_a_prefix_tells_them_apart(recorded):
    figure = propkit.figures.learning_curves(recorded())
    loss, accuracy = figure.axes
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("loss", "accuracy")
    train, test = curves(loss)
    assert (train.get_ydata().tolist(), test.get_ydata().tolist()) == ([1, 2, 3, 4], [2, 4, 6, 8])
    assert train.get_xdata().tolist() == [0, 1, 10, 100]
    assert train.get_color() == test.get_color()
    assert (train.get_linestyle(), test.get_linestyle()) == ("-", "--")
    assert (train.get_markerfacecolor(), test.get_markerfacecolor()) == (train.get_color(), "white")
    assert texts(figure) == ["all", "training", "test"]


def test_runs_have_colours(recorded):
    figure = propkit.figures.learning_curves(
        recorded(), recorded(), names="accuracy", labels=["a", "b"]
    )
    (ax,) = figure.axes
    first, second = curves(ax)
    assert first.get_color() != second.get_color()
    assert texts(figure) == ["a", "b"]


def test_a_rare_quantity_has_no_gaps_and_a_divergence_has_its_cross(recorded):
    run = recorded(steps=range(6))
    log = run["log"].copy()
    log["test_loss"] = ("step", [1.0, np.nan, np.nan, 2.0, np.nan, np.nan])
    log["loss"] = ("step", [1.0, 2.0, 3.0, 4.0, np.nan, np.nan])
    run._read = {"log": log}.__getitem__
    ax = propkit.figures.learning_curves(run).axes[0]
    _, test = curves(ax)
    assert test.get_xdata().tolist() == [0, 3]
    (end,) = [line for line in ax.lines if line.get_gid() == "end"]
    assert (end.get_xdata()[0], end.get_ydata()[0]) == (3, 4)
    assert ax.get_xlim()[1] > 5


def test_log_axes_are_an_option(recorded):
    assert {
        ax.get_yscale() for ax in propkit.figures.learning_curves(recorded(), log=True).axes
    } == {"log"}


def test_what_was_not_logged_is_named(recorded):
    with pytest.raises(
        FigureError, match="'lr' was not logged; there are: loss, accuracy, test_loss"
    ):
        propkit.figures.learning_curves(recorded(), names=["loss", "lr"])


def test_training_and_test_are_told_apart_in_the_legend_and_by_more_than_the_middle_of_a_handle(
    recorded,
):
    figure = propkit.figures.learning_curves(recorded())
    _, train, test = figure.legends[0].legend_handles
    assert (train.get_linestyle(), test.get_linestyle()) == ("-", "--")
    strips = [ink_of(figure, handle) for handle in (train, test)]
    # where there is ink, from left to right
    along = [(strip < 200).any((0, 2)) for strip in strips]
    gaps = [np.count_nonzero(np.diff(a.astype(int)) == 1) for a in along]
    assert gaps[0] == 1
    assert gaps[1] >= 3  # three dashes, none of them joined by the marker


def test_a_lone_test_value_is_a_lone_marker_in_the_legend_too(recorded):
    run = recorded(steps=range(4))
    log = run["log"].copy()
    for name in ("test_loss", "test_accuracy"):
        log[name] = ("step", [np.nan, np.nan, np.nan, 0.5])
    run._read = {"log": log}.__getitem__
    figure = propkit.figures.learning_curves(run)
    _, train, test = figure.legends[0].legend_handles
    assert (train.get_linestyle(), train.get_marker()) == ("-", "o")
    assert (test.get_linestyle(), test.get_marker()) == ("None", "o")
    assert test.get_markerfacecolor() == "white"


def test_the_legend_is_below_the_panels_and_hides_no_curve(recorded):
    runs = [recorded(attributes={"label": f"a rather long label {i}"}) for i in range(7)]
    figure = propkit.figures.learning_curves(runs)
    figure.draw_without_rendering()
    top = figure.legends[0].get_window_extent().y1
    for ax in figure.axes:
        assert top <= ax.get_tightbbox().y0
        assert ax.get_legend() is None
        assert ax.get_window_extent().height > 0.6 * 3.2 * figure.dpi


def test_a_curve_without_a_finite_value_is_named_above_its_panel(recorded):
    run = recorded(steps=range(4))
    log = run["log"].copy()
    log["test_loss"] = ("step", [np.nan] * 4)
    run._read = {"log": log}.__getitem__
    loss, accuracy = propkit.figures.learning_curves(run).axes
    assert loss.get_title(loc="left") == "no finite value: all, test"
    assert accuracy.get_title(loc="left") == ""
