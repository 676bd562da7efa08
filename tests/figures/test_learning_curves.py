"""Learning curves: a panel per quantity, what was logged rarely, and how a divergence ends."""

import importlib

import numpy as np
import pytest

import propkit
from propkit.figures.runs import FigureError

learning_curves = importlib.import_module("propkit.figures.learning_curves")


def curves(ax):
    return [line for line in ax.lines if line.get_gid() == "curve"]


def test_quantities_share_a_panel_if_a_prefix_tells_them_apart(recorded):
    figure = propkit.figures.learning_curves(recorded())
    loss, accuracy = figure.axes
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("loss", "accuracy")
    train, test = curves(loss)
    assert (train.get_ydata().tolist(), test.get_ydata().tolist()) == ([1, 2, 3, 4], [2, 4, 6, 8])
    assert train.get_xdata().tolist() == [0, 1, 10, 100]
    assert train.get_color() == test.get_color()
    assert (train.get_linestyle(), test.get_linestyle()) == ("-", "--")
    assert [t.get_text() for t in loss.get_legend().get_texts()] == ["all, train", "all, test"]


def test_runs_have_colours(recorded):
    figure = propkit.figures.learning_curves(
        recorded(), recorded(), names="accuracy", labels=["a", "b"]
    )
    (ax,) = figure.axes
    first, second = curves(ax)
    assert first.get_color() != second.get_color()
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b"]


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
