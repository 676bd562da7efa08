"""Where a linear axis ends: healthy curves are whole, lone values beyond are marked and named."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import propkit
from propkit.figures.beyond import reach

DECAY = 0.02 + 2.3 * np.exp(-np.linspace(0, 12, 3000))


@pytest.mark.parametrize(
    "curves",
    [
        [DECAY],
        [DECAY, 1.3 * DECAY[::100]],
        [DECAY[::300]],
        [[2.3, 1.1, 0.5, 0.3, 0.2]],
        [[1.0, 1.0, 1.0]],
        [[0.0, 5.0]],
        [[np.nan, np.nan], []],
        [[7.0]],
        [np.geomspace(1e6, 1e-3, 400)],  # falls steadily: no value is alone
        [[600.0] * 20 + [1.0, 2.0] * 20],  # a third of the curve is no exception
    ],
)
def test_an_axis_holds_curves_whole_that_have_no_lone_values(curves):
    assert reach(curves) is None


@pytest.mark.parametrize(
    ("curves", "highest"),
    [
        ([DECAY, [612.0, 2.0, 1.5, 1.2]], DECAY.max()),
        ([[2.3, 1.2, 0.6], [600.0, 2.9, 0.8], [550.0, 2.0, 0.7]], 2.9),  # one for each curve
        ([np.append(DECAY, [40.0, 1e3, 1e6])], DECAY.max()),  # it diverges in the end
        ([np.append(DECAY, [1e9, np.inf, np.nan])], DECAY.max()),
        ([[-0.5, -0.7, 900.0, -0.9]], -0.5),
    ],
)
def test_it_ends_before_lone_values_far_beyond(curves, highest):
    assert reach(curves) == highest


values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12)


@given(st.lists(values, min_size=1, max_size=4), st.floats(0.01, 100), st.floats(-50, 50))
def test_whatever_the_values_few_are_beyond_and_the_rest_was_squashed(curves, scale, shift):
    top = reach(curves)
    if top is None:
        return
    every = np.concatenate(curves)
    low, beyond = every.min(), every[every > top]
    assert top in every
    assert 0 < beyond.size <= max(len(curves), 0.05 * every.size)
    assert (top - low) < 0.125 * (every.max() - low)
    assert beyond.min() - low >= 3 * (top - low) > 0


def panel(recorded, **logged):
    run = recorded(steps=range(len(next(iter(logged.values())))))
    log = run["log"].copy()
    for name, y in logged.items():
        log[name] = ("step", y)
    run._read = {"log": log}.__getitem__
    return run


def beyond(ax):
    return [line for line in ax.lines if line.get_gid() == "beyond" and len(line.get_xdata())]


def test_the_panel_shows_the_curves_and_says_what_is_beyond(recorded):
    loss, test = [2.3, 2.0, 1.5, 1.2, 1.0, 0.9], [612.25, 3.0, 1.5, 1.25, 1.0, 0.8]
    run = panel(recorded, loss=loss, test_loss=test)
    figure = propkit.figures.learning_curves(run, names=["loss", "test_loss"])
    (ax,) = figure.axes
    low, high = ax.get_ylim()
    assert low < 0.8
    assert 3.0 < high < 3.5
    (mark,) = beyond(ax)
    assert mark.get_xdata().tolist() == [0]
    assert mark.get_marker() == "^"
    (of_test,) = [c for c in ax.lines if c.get_gid() == "curve" and 612.25 in c.get_ydata()]
    assert mark.get_color() == of_test.get_color()
    (text,) = [t for t in ax.texts if t.get_gid() == "beyond"]
    assert text.get_text() == "beyond the axis: up to 612"
    figure.canvas.draw()
    assert text.get_window_extent().y0 >= ax.get_window_extent().y1
    legend = [t.get_text() for t in figure.legends[0].get_texts()]
    assert legend == ["all", "training", "test"]  # the marks are not in it


def test_a_cross_beyond_the_axis_stands_at_its_top(recorded):
    loss = [2.3, 2.0, 1.5, 1.2, 1e9, np.nan]
    ax = propkit.figures.learning_curves(panel(recorded, loss=loss, test_loss=loss)).axes[0]
    ends = [line for line in ax.lines if line.get_gid() == "end"]
    assert len(ends) == 2
    for end in ends:
        (_, y) = end.get_transform().transform((end.get_xdata()[0], end.get_ydata()[0]))
        assert y == pytest.approx(ax.transAxes.transform((0, 1))[1])


def test_a_log_axis_holds_all(recorded):
    loss = [600.0, 2.0, 1.5, 1.2]
    run = panel(recorded, loss=loss, test_loss=loss)
    ax = propkit.figures.learning_curves(run, log=True).axes[0]
    assert ax.get_ylim()[1] > 600
    assert not beyond(ax)
