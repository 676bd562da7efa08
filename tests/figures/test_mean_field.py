"""Mean field: the prediction against closed forms and against a wide random network."""

import importlib

import numpy as np
import pytest
import torch
from torch import nn

import propkit
from propkit.figures.mean_field_prediction import theory_of
from propkit.figures.runs import FigureError

WIDTH = 1000
mean_field = importlib.import_module("propkit.figures.mean_field")


def theory(recorded, activation="relu", batch_norm=False, **given):
    return theory_of(recorded(), activation, given.get("b", 0.0), 0.01, batch_norm)


def test_relu_doubles_nothing_at_the_critical_point(recorded):
    q, error = theory(recorded).predict(3.0, np.full(5, 2.0), np.ones(5))
    np.testing.assert_allclose(q, 3.0)
    np.testing.assert_allclose(error, 1.0)
    # q' = w q/2 + b; an error grows by w/2 per layer on its way down.
    q, error = theory(recorded, b=1.0).predict(4.0, np.array([9.0, 4.0, 1.0]), np.ones(3))
    np.testing.assert_allclose(q, [4, 9, 5.5])
    np.testing.assert_allclose(error, [1.0, 0.5, 1.0])


def test_moments_are_means_over_layers_of_different_sizes(recorded):
    _, error = theory(recorded).predict(1.0, np.full(3, 2.0), np.array([400.0, 200.0, 10.0]))
    np.testing.assert_allclose(error, [10 / 400, 10 / 200, 1])


def test_batch_normalisation_makes_errors_grow_whatever_the_weights(recorded):
    growth = np.pi / (np.pi - 1)
    w = np.array([5.0, 2.0, 2.0, 2.0])
    # A first layer of length Var relu(z) * 2 is divided by the same variance as the others.
    first = 2 * (0.5 - 1 / (2 * np.pi))
    q, error = theory(recorded, batch_norm=True).predict(first, w, np.ones(4))
    np.testing.assert_allclose(q[1:], 1.0)
    np.testing.assert_allclose(error, growth ** np.arange(3, -1, -1.0))
    # Larger weights in one layer: its own error is smaller, no other changes (the gauge).
    other = theory(recorded, batch_norm=True).predict(first, w * [1, 1, 7, 1], np.ones(4))[1]
    np.testing.assert_allclose(other / error, [1, 1, 1 / 7, 1])


@pytest.mark.parametrize(("function", "w2", "b2"), [(nn.Tanh, 1.3, 0.05), (nn.ReLU, 2.0, 0.0)])
def test_a_wide_random_network_is_as_predicted(function, w2, b2):
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(5)]
    for layer in layers:
        nn.init.normal_(layer.weight, 0, (w2 / WIDTH) ** 0.5)
        nn.init.normal_(layer.bias, 0, b2**0.5)
    model = nn.Sequential(*[m for layer in layers for m in (layer, function())])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with propkit.attach(model, probes=["activation", "error_moment", "weight"]) as recorder:
        # Errors independent of the forward pass, as in the theory; those of a squared loss are aligned with it.
        (model(torch.randn(64, WIDTH)) * torch.randn(64, WIDTH)).sum().backward()
        optimizer.step()
    data = mean_field.prepare(recorder.run, sigma_b2=b2)
    assert data.attrs["theory"].startswith(function.__name__.lower())
    # A layer of finite width multiplies q by a random factor of variance 5/WIDTH (ReLU), alike for all inputs; thrice
    # the deviation of four of them. A factor of 2 in sigma_w2 would be one of 16 here.
    rtol = 3 * (4 * 5 / WIDTH) ** 0.5
    np.testing.assert_allclose(data["q_predicted"], data["q"], rtol=rtol)
    np.testing.assert_allclose(data["error_predicted"], data["error"], rtol=rtol)
    figure = propkit.figures.mean_field(recorder.run, sigma_b2=b2)
    top, bottom = figure.axes
    for ax, name in ((top, "q"), (bottom, "error")):
        (measured,) = [line for line in ax.lines if line.get_gid() == "measured"]
        (predicted,) = [line for line in ax.lines if line.get_gid() == "predicted"]
        np.testing.assert_array_equal(measured.get_ydata(), data[name][0])
        np.testing.assert_array_equal(predicted.get_ydata(), data[f"{name}_predicted"][0])
        assert measured.get_linestyle() == "None"
        assert ax.get_yscale() == "log"


def test_variances_are_those_of_the_recorded_weights(recorded):
    # Norms are 2(1 + s) at the first step, and there are 4 filters.
    run = recorded(layers=3)
    variances = mean_field._variances(run, ["layer0", "layer2"], np.array([0]), None)
    np.testing.assert_allclose(variances, [[1.0, 9.0]])
    assert mean_field._variances(run, ["layer0"], np.array([0, 1]), 1.7).tolist() == [[1.7], [1.7]]
    without = recorded(without=("weight",))
    assert mean_field._variances(without, ["layer0"], np.array([0]), None).tolist() == [[2.0]]


def test_what_is_not_known_is_asked_for(recorded, make_run):
    moments = {"output": [[1.0, 2.0]], "input": [[1.0, 2.0]]}
    groups = {"activation": {"mean_square": [[1.0, 2.0]]}, "error_moment": moments}
    run = make_run([0], groups, ["Linear", "Linear"])
    with pytest.raises(FigureError, match="does not recognise the activation function"):
        propkit.figures.mean_field(run)
    assert propkit.figures.mean_field(run, activation="linear").axes
    with pytest.raises(ValueError, match="sigma_b2 >= 0"):
        propkit.figures.mean_field(recorded(), sigma_b2=-1.0)


def test_batch_normalisation_is_recognised_by_the_models_summary(recorded):
    run = recorded(attributes={"model_summary": "Net: 3 Linear, 3 BatchNorm1d, 3 ReLU"})
    assert mean_field.prepare(run).attrs["theory"] == "relu, batch norm"
    assert mean_field.prepare(recorded()).attrs["theory"] == "relu"
