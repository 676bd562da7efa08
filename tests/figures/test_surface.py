"""The surface: which cell has which value, and the scale of its colours."""

import importlib

import numpy as np
import pytest

import propkit

surface = importlib.import_module("propkit.figures.surface")


def mesh(ax):
    return next(c for c in ax.collections if c.get_gid() == "surface")


def test_cells_are_layers_by_iterations(run):
    q = np.array(run["error_moment"]["output"])[:, :3]  # the linear layer is left out
    figure = propkit.figures.surface(run)
    ax, bar = figure.axes
    np.testing.assert_array_equal(mesh(ax).get_array(), q.T)
    corners = mesh(ax).get_coordinates()
    np.testing.assert_allclose(corners[0, :, 0], [-1, 1, 3.5, 7.5, 12.5])  # steps 0, 2, 5, 10
    np.testing.assert_allclose(corners[:, 0, 1], [0.5, 1.5, 2.5, 3.5])
    norm = mesh(ax).norm
    np.testing.assert_allclose([norm.vmin, norm.vmax], [1e-9, 100])
    assert "mean square of the error" in bar.get_ylabel()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("iteration", "layer index")


def test_it_shows_ratios_if_asked(run):
    figure = propkit.figures.surface(run, relative=True)
    np.testing.assert_allclose(mesh(figure.axes[0]).get_array()[-1], 1)
    np.testing.assert_allclose(mesh(figure.axes[0]).get_array()[0], [0.01, 0.25, 2, 1e-6])


def test_panels_share_their_colours(make_run):
    runs = [make_run([0], {"error_moment": {"output": [[v, v, v, v]]}}) for v in (1e-5, 1e3)]
    figure = propkit.figures.surface(*runs)
    first, second = (mesh(ax).norm for ax in figure.axes[:2])
    assert (first.vmin, first.vmax) == (second.vmin, second.vmax)
    np.testing.assert_allclose([first.vmin, first.vmax], [1e-5, 1e3])


def test_a_constant_has_a_scale_of_one_decade(make_run):
    figure = propkit.figures.surface(make_run([0], {"error_moment": {"output": [[2, 2, 2, 2]]}}))
    norm = mesh(figure.axes[0]).norm
    np.testing.assert_allclose([norm.vmin, norm.vmax], [2 / 10**0.5, 2 * 10**0.5])


def test_colours_are_told_apart_in_greyscale(run):
    shades = mesh(propkit.figures.surface(run).axes[0]).cmap(np.linspace(0, 1, 32))[:, :3]
    assert (np.diff(shades @ [0.299, 0.587, 0.114]) > 0).all()


def test_very_long_runs_are_thinned_to_medians():
    steps = np.arange(5000.0)
    values = np.stack([steps, np.where(steps < 2500, np.nan, 7.0)], axis=1)
    x, y = surface._fewer(steps, values)
    np.testing.assert_allclose(x[:2], [2.0, 7.0])
    np.testing.assert_allclose(y[:2, 0], [2.0, 7.0])
    assert np.isnan(y[:500, 1]).all()
    assert (y[500:, 1] == 7.0).all()


def test_layers_that_are_not_in_order_of_depth_are_counted(make_run):
    run = make_run([0], {"error_moment": {"output": [[1, 2, 3, 4]]}}, ["Conv2d"] * 4)
    run = run["error_moment"].assign_coords(depth=("site", [1, 2, 2, 3])), run
    run[1]._read = {"error_moment": run[0]}.__getitem__
    corners = mesh(propkit.figures.surface(run[1]).axes[0]).get_coordinates()
    np.testing.assert_allclose(corners[:, 0, 1], [0.5, 1.5, 2.5, 3.5, 4.5])


def test_a_ratio_needs_two_layers(recorded):
    with pytest.raises(ValueError, match="at least two layers"):
        propkit.figures.surface(recorded(layers=1), relative=True)
