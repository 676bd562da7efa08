"""Filters and activations as images: fig6 and activation_images."""

import dataclasses
import importlib

import numpy as np
import pytest
import torch
from torch import nn

import propkit
from propkit.figures.pictures import tiled
from propkit.figures.runs import FigureError
from propkit.probes import activation_maps, filters


def module(name):
    return importlib.import_module(f"propkit.figures.{name}")


def image(ax, gid):
    (found,) = [i for i in ax.get_images() if i.get_gid() == gid]
    return np.asarray(found.get_array())


def run_of(model, x, probe, **options):
    """Three steps of a model that does not learn."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with propkit.attach(model, probes=[probe], every=1, label="r", **options) as recorder:
        for _ in range(3):
            model(x).square().mean().backward()
            optimizer.step()
    return recorder.run


@pytest.fixture
def colours():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, (2, 4)), nn.ReLU(), nn.Conv2d(5, 2, 3))
    with torch.no_grad():
        model[0].weight[1] = 0.0
        model[0].weight[2] *= 100.0
    return model, run_of(model, torch.randn(2, 3, 9, 9), "filters")


def test_tiles_are_in_rows_with_gaps():
    tiles = np.random.default_rng(0).random((5, 2, 3, 4))
    whole = tiled(tiles, columns=3, gap=2)
    assert whole.shape == (2 * 2 + 2, 3 * 3 + 2 * 2, 4)
    np.testing.assert_array_equal(whole[:2, 5:8], tiles[1])
    np.testing.assert_array_equal(whole[4:, 5:8], tiles[4])
    assert np.isnan(whole[2:4]).all()
    assert np.isnan(whole[4:, 10:]).all()


def test_filters_are_those_of_the_model_scaled_each_by_itself(colours):
    model, run = colours
    data = module("fig6").prepare(run)
    assert data["step"].values.tolist() == [2]
    assert data.attrs == {"layer": "0", "filters": 5}
    weight = model[0].weight.detach().double().numpy()
    np.testing.assert_allclose(data["weight"][0], weight.transpose(0, 2, 3, 1))
    for i in range(5):
        largest = abs(weight[i]).max()
        for channel in range(3):
            expected = 0.5 + (weight[i, channel] / (2 * largest) if largest else 0.0)
            np.testing.assert_allclose(data["picture"][0, i, :, :, channel], expected, rtol=1e-12)
    assert (data["picture"][0, 1] == 0.5).all()  # nothing is grey


def test_a_layer_may_be_scaled_as_a_whole(colours):
    model, run = colours
    weight = model[0].weight.detach().double().numpy()
    data = module("fig6").prepare(run, scale="layer")
    expected = 0.5 + weight / (2 * abs(weight).max())
    np.testing.assert_allclose(data["picture"][0], expected.transpose(0, 2, 3, 1), rtol=1e-5)
    with pytest.raises(FigureError, match="scale='x': expected one of filter, layer"):
        propkit.figures.fig6(run, scale="x")


def test_the_drawn_squares_have_the_colours_of_the_weights(colours):
    _, run = colours
    figure = propkit.figures.fig6(run, run, steps=[0, 2])
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == ["r, iteration 0", "r (2), iteration 0", "r, iteration 2", "r (2), iteration 2"]  # fmt: skip
    drawn = image(figure.axes[0], "filters")
    picture = module("fig6").prepare(run)["picture"].values[0]
    high, wide = 24 // 2 * 2, 24 // 4 * 4
    # Three squares to a row, each with an edge of 1 pixel and 3 more to the next.
    top, left = (high + 5) * 1 + 1, (wide + 5) * 1 + 1
    square = drawn[top : top + high, left : left + wide]
    np.testing.assert_allclose(square[high // 4, wide // 8, :3], picture[4, 0, 0])
    np.testing.assert_allclose(square[-1, -1, :3], picture[4, 1, 3])
    assert (square[..., 3] == 1).all()
    assert drawn[-1, -1, 3] == 0  # the sixth square is empty
    assert figure.axes[0].get_xlabel() == "0: 5 filters"


def test_a_layer_of_other_channels_has_a_row_of_grey_squares_per_filter():
    probe = dataclasses.replace(filters, sites=lambda m: isinstance(m, nn.Conv2d))
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 3, 3))
    run = run_of(model, torch.randn(1, 1, 6, 6), probe)
    assert module("fig6").prepare(run).attrs["layer"] == "0"
    figure = propkit.figures.fig6(run, layers="1")
    drawn = image(figure.axes[0], "filters")
    assert drawn.shape == (3 * 26 + 2 * 3, 2 * 26 + 3, 4)
    picture = module("fig6").prepare(run, layers="1")["picture"].values[0]
    np.testing.assert_allclose(drawn[1, 26 + 3 + 1, :3], picture[0, 0, 0, 1])
    np.testing.assert_allclose(drawn[26 + 3 + 1, 1, :3], picture[1, 0, 0, 0])


def test_more_filters_than_a_page_holds_are_said():
    run = run_of(nn.Conv2d(1, 300, 1), torch.randn(1, 1, 2, 2), "filters")
    ax = propkit.figures.fig6(run).axes[0]
    assert ax.get_xlabel().endswith("300 filters, the first 256 shown")


def test_filters_that_are_not_finite_are_left_out():
    model = nn.Conv2d(1, 2, 2)
    with torch.no_grad():
        model.weight[0, 0, 0, 0] = np.inf
    data = module("fig6").prepare(run_of(model, torch.randn(1, 1, 3, 3), "filters"))
    assert np.isnan(data["picture"][0, 0]).all()
    assert np.isfinite(data["picture"][0, 1]).all()


def test_sizes_that_were_not_recorded_are_an_error(recorded):
    run = recorded()
    broken = run["filters"].copy()
    broken["width"] = broken["width"] * 0 + 3
    run._read = {"filters": broken}.__getitem__
    with pytest.raises(FigureError, match="5 values of 'layer0' cannot be folded to 1 x 1 x 3"):
        propkit.figures.fig6(run)


def test_activations_of_the_middle_and_the_last_nonlinearity():
    torch.manual_seed(0)
    layers = [x for _ in range(5) for x in (nn.Linear(70, 70), nn.ReLU())]
    model, x = nn.Sequential(*layers), torch.randn(40, 70)
    run = run_of(model, x, "activation_maps")
    data = module("activation_images").prepare(run)
    assert list(data) == ["5", "9"]
    outputs, value = {}, x
    for i, layer in enumerate(model):
        outputs[str(i)] = value = layer(value)
    for name, array in data.items():
        assert array.sizes == {"step": 1, "map": 1, "row": 32, "column": 64}
        np.testing.assert_allclose(array[0, 0], outputs[name].detach()[:32, :64], rtol=1e-6)
    chosen = module("activation_images").prepare(run, layers="[02]", steps=[0, 1])
    assert list(chosen) == ["0", "2"]
    assert chosen["0"]["step"].values.tolist() == [0, 1]
    with pytest.raises(FigureError, match="matches 10 layers, and a page holds 6"):
        propkit.figures.activation_images(run, layers=".*")
    figure = propkit.figures.activation_images(run)
    np.testing.assert_allclose(image(figure.axes[0], "activations"), data["5"][0, 0])
    assert figure.axes[0].get_ylabel() == "sample"
    assert [ax.get_title(loc="left") for ax in figure.axes[:2]] == ["r, iteration 2\n5", "\n9"]


def test_maps_of_a_convolution_are_side_by_side():
    model = nn.Sequential(nn.Conv2d(1, 9, 3, padding=1), nn.Tanh())
    x = torch.randn(2, 1, 40, 7)
    run = run_of(model, x, "activation_maps")
    (array,) = module("activation_images").prepare(run).values()
    expected = model(x).detach()[0, :8, ::3]  # 40 rows are three times 16, but for some
    np.testing.assert_allclose(array[0], expected, rtol=1e-6)
    ax = propkit.figures.activation_images(run).axes[0]
    drawn = np.ma.filled(image(ax, "activations"), np.nan)
    assert drawn.shape == (2 * 14 + 1, 4 * 7 + 3)
    np.testing.assert_allclose(drawn[15:, 8:15], expected[5], rtol=1e-6)
    assert ax.get_xlabel() == "8 channels, one sample"


def test_one_layer_has_one_picture(recorded):
    figure = propkit.figures.activation_images(recorded(layers=2))
    assert len(figure.axes) == 2  # and its colour bar


def test_the_probe_takes_any_shape():
    for shape in [(), (3,), (2, 5), (2, 3, 5), (2, 3, 4, 4), (2, 3, 4, 4, 4)]:
        value = torch.randn(shape)
        found = activation_maps(value)
        sizes = [int(found[k]) for k in ("maps", "height", "width")]
        assert found["value"].numel() == np.prod(sizes) <= 2048
        flat = value[:1] if value.ndim == 4 else value
        flat = flat.reshape(len(flat), -1)[:, :64].flatten() if value.ndim == 5 else flat.flatten()
        np.testing.assert_array_equal(found["value"].sort().values, flat.sort().values)
