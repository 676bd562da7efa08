"""Thinning keeps what can be seen; lines have gaps where values cannot be shown."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from propkit.figures.curves import (
    DENSE,
    curve,
    drawable,
    legend,
    log_axis_around_one,
    medians,
    thin,
    whole_axis,
)
from propkit.figures.style import line_look, new_figure


def axes():
    return new_figure((6, 4)).subplots()


def parts(ax, gid):
    return [line for line in ax.lines if line.get_gid() == gid]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.sampled_from([0.0, 0.02, 0.5, 1.0]))
def test_thinning_keeps_each_bucket_s_first_lowest_highest_last_and_the_gaps(
    seed, buckets, missing
):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 400))
    x = np.cumsum(rng.integers(1, 5, n)).astype(float)
    y = np.where(rng.random(n) < missing, np.nan, rng.standard_normal(n).round(1))
    tx, ty = thin(x, y, buckets)
    assert (np.diff(tx) > 0).all()
    at = np.searchsorted(x, tx)
    np.testing.assert_array_equal(ty, y[at])  # a subset of the points
    for left, right in itertools.pairwise(at):  # nothing is joined across a gap
        if np.isfinite(y[left]) and np.isfinite(y[right]):
            assert np.isfinite(y[left : right + 1]).all()
    if n > 4 * buckets:
        for b in range(buckets):
            inside = np.minimum((x - x[0]) / (x[-1] - x[0]) * buckets, buckets - 1).astype(int) == b
            kept = np.isin(np.flatnonzero(inside), at)
            values, shown = y[inside], y[inside][kept]
            if np.isfinite(values).any():
                assert np.nanmin(shown) == np.nanmin(values)
                assert np.nanmax(shown) == np.nanmax(values)


def test_thinning_bounds_the_number_of_points():
    x = np.arange(64_000.0)
    y = np.random.default_rng(0).standard_normal(64_000)
    y[31_234] = 99.0
    tx, ty = thin(x, y, 600)
    assert len(tx) <= 4 * 600
    assert ty.max() == 99.0
    assert tx[ty.argmax()] == 31_234
    assert (tx[0], tx[-1]) == (0, 63_999)


def test_few_points_are_left_alone():
    x, y = np.arange(10.0), np.arange(10.0)
    assert thin(x, y, 600)[0] is x


def test_medians_agree_with_a_loop():
    rng = np.random.default_rng(1)
    x = np.sort(rng.choice(10_000, 700, replace=False)).astype(float)
    y = rng.standard_normal(700)
    y[:200] = np.nan
    mx, my = medians(x, y, 10)
    edges = np.linspace(x[0], x[-1], 11)
    for i in range(10):
        inside = (x >= edges[i]) & ((x < edges[i + 1]) if i < 9 else (x <= edges[i + 1]))
        finite = y[inside][np.isfinite(y[inside])]
        if len(finite):
            assert my[i] == np.median(finite)
            assert edges[i] <= mx[i] <= edges[i + 1]
        else:
            assert np.isnan(my[i])


def test_drawable_has_nan_where_the_axis_shows_nothing():
    y = [1.0, 0.0, -1.0, np.inf, np.nan]
    np.testing.assert_array_equal(drawable(y), [1, 0, -1, np.nan, np.nan])
    np.testing.assert_array_equal(drawable(y, log=True), [1, np.nan, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(drawable([1e301, -1e301, 1e299]), [np.nan, np.nan, 1e299])
    np.testing.assert_array_equal(drawable([1e301], log=True), [1e301])


def test_a_sparse_curve_marks_every_point_and_a_lonely_point_is_seen():
    ax = axes()
    line = curve(ax, [0, 1, 2], [1, 2, 3], line_look(0), "a")
    assert line.get_markevery() == [0, 1, 2]
    y = np.full(100, np.nan)
    y[[3, 50, 51, 52]] = 1.0
    line = curve(ax, np.arange(100), y, line_look(0), "b")
    assert line.get_markevery() == [3]
    line = curve(ax, np.arange(100), np.ones(100), line_look(0), "c")
    assert line.get_marker() == ""


def test_a_dense_curve_is_a_trace_with_the_peaks_and_a_line_of_medians():
    ax = axes()
    y = np.ones(64_000)
    y[5000] = 1e6
    line = curve(ax, np.arange(64_000), y, line_look(1), "a", log=True)
    (trace,) = parts(ax, "trace")
    assert trace.get_ydata().max() == 1e6
    assert len(trace.get_xdata()) < 3000
    assert (line.get_ydata() == 1.0).all()
    assert line.get_linestyle() == "--"
    assert trace.get_color() == line.get_color()
    ax = axes()
    line = curve(ax, np.arange(1000), np.arange(1000.0), line_look(0), "a", noisy=False)
    assert len(line.get_xdata()) == 1000
    assert len(ax.lines) == 1
    assert DENSE < 1000


def test_a_cross_marks_where_a_line_ends_early():
    ax = axes()
    curve(ax, [0, 1, 2, 3], [1, 2, np.inf, np.nan], line_look(0), "a")
    (end,) = parts(ax, "end")
    assert (end.get_xdata().item(), end.get_ydata().item()) == (1, 2)
    ax = axes()
    curve(ax, [0, 1, 2, 3], [1, np.nan, 2, 3], line_look(0), "a")
    assert not parts(ax, "end")


def test_a_curve_of_nothing_says_so_in_the_legend():
    ax = axes()
    line = curve(ax, [0, 1], [np.nan, np.inf], line_look(0), "a")
    assert line.get_label() == "a (no finite value)"


@pytest.mark.parametrize(
    ("values", "inside"),
    [
        ([1e-6], (1e-6, 1.0)),
        ([1e3], (1.0, 1e3)),
        ([1e-2, 1e2], (1e-2, 1e2)),
        ([np.nan, 0], (0.2, 5)),
    ],
)
def test_the_log_axis_always_holds_one_with_room_around_it(values, inside):
    ax = axes()
    shown = log_axis_around_one(ax, [values])
    assert shown is bool(np.isfinite(drawable(values, log=True)).any())
    low, high = ax.get_ylim()
    assert low < inside[0] * 0.9
    assert high > inside[1] * 1.1
    assert ax.get_yscale() == "log"
    (one,) = parts(ax, "one")
    assert set(one.get_ydata()) == {1.0}


def test_a_log_axis_over_all_of_float64_can_be_drawn(tmp_path):
    ax = axes()
    log_axis_around_one(ax, [[1e-320, 1e308]])
    ax.figure.savefig(tmp_path / "x.png")
    assert ax.get_ylim() == pytest.approx((1e-300, 1e300))


def test_the_x_axis_holds_gaps_too_and_has_whole_numbers():
    ax = axes()
    whole_axis(ax, [[0, 100], [50, 30_000]])
    assert ax.get_xlim()[0] < 0
    assert ax.get_xlim()[1] > 30_000
    assert ax.xaxis.get_major_formatter()(20_000) == "20,000"
    for positions, ticks in ([[7]], [7]), ([[]], [0, 1]):
        whole_axis(ax, positions)
        low, high = ax.get_xlim()
        assert [t for t in ax.get_xticks() if low <= t <= high] == ticks


def test_any_label_can_be_in_a_legend(tmp_path):
    labels = ["_hidden", "costs $5", r"$\lambda = 1$", r"$\oops{$", "a_b"]
    ax = axes()
    legend(ax, [curve(ax, [0, 1], [1, 2], line_look(i), t) for i, t in enumerate(labels)])
    texts = ax.get_legend().get_texts()
    assert [t.get_text() for t in texts] == labels
    ax.figure.savefig(tmp_path / "x.png")
    assert [t.get_parse_math() for t in texts] == [True, False, True, False, True]


def test_a_line_without_markers_marks_lone_points():
    look = line_look(0) | {"marker": ""}
    alone = curve(axes(), [3], [1.0], look, "a")
    assert (alone.get_marker(), alone.get_markevery()) == ("o", [0])
    square = curve(axes(), [3], [1.0], look | {"lone": "s"}, "a")
    assert square.get_marker() == "s"
    among = curve(axes(), range(5), [1.0, 2.0, np.nan, 3.0, np.nan], look, "a")
    assert among.get_markevery() == [3]
    assert curve(axes(), range(5), np.ones(5), look, "a").get_marker() in ("", "None")
