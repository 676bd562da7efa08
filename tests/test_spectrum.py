"""`Run.spectrum`: one site's values, and helpful errors."""

import re

import numpy as np
import pytest
import xarray as xr

import propkit
from propkit.schema import Group, Variable
from propkit.store.memory import MemoryWriter
from propkit.store.run import Run
from propkit.store.writer import ZarrWriter

SITES = ["layer1.0.conv1", "layer1.0.conv1#1", "layer2.0.conv", "fc"]
SIZES = np.array([2, 3, 0, 4])
STEPS = np.array([0, 10, 100])
GROUP = Group(
    "singular_values",
    (
        Variable("value", "weight", dim="singular_value", dtype="float32"),
        Variable("spectral_norm", "weight"),
    ),
    {"site": np.array(SITES), "depth": np.arange(4), "row_size": SIZES},
    {},
    {"singular_value": None},
)
QUANTILES = Group(
    "quantiles",
    (Variable("low", dim="quantile"), Variable("high", dim="quantile"), Variable("mean")),
    {"site": np.array(SITES)},
    {},
    {"quantile": np.array([0.0, 1.0])},
)
VALUES = 10.0 * np.arange(3)[:, None] + np.arange(9)


@pytest.fixture(params=["zarr", "memory"])
def run(request, tmp_path):
    memory = request.param == "memory"
    writer = MemoryWriter({}) if memory else ZarrWriter.create(tmp_path / "run.zarr", {})
    writer.define(GROUP)
    writer.append("singular_values", STEPS, {"value": VALUES, "spectral_norm": np.ones((3, 4))})
    writer.define(QUANTILES)
    writer.append("quantiles", STEPS, {"high": np.arange(24.0).reshape(3, 4, 2)})
    writer.define(Group("weight", (Variable("norm"),), {"site": np.array(SITES)}))
    writer.close("complete")
    return Run.from_memory(writer) if memory else propkit.open(writer.path)


def test_one_site(run) -> None:
    every = run.spectrum("layer1.0.conv1#1")
    assert every.dims == ("step", "singular_value")
    assert every["step"].values.tolist() == [0, 10, 100]
    assert (every["site"].item(), every["depth"].item()) == ("layer1.0.conv1#1", 1)
    assert every.attrs["units"] == "weight"
    np.testing.assert_array_equal(every, VALUES[:, 2:5])
    np.testing.assert_array_equal(run.spectrum("fc", step=10), VALUES[1, 5:])
    assert run.spectrum("fc", step=10).dims == ("singular_value",)
    assert run.spectrum("fc", step=10)["step"].item() == 10
    np.testing.assert_array_equal(run.spectrum("fc", step=40, method="nearest"), VALUES[1, 5:])
    np.testing.assert_array_equal(run.spectrum("layer1.0.conv1", step=0), VALUES[0, :2])
    assert run.spectrum("layer2.0.conv").shape == (3, 0)


def test_a_fixed_axis(run) -> None:
    found = run.spectrum("fc", group="quantiles", variable="high", step=10)
    assert found.dims == ("quantile",)
    assert found["quantile"].values.tolist() == [0.0, 1.0]
    assert found.values.tolist() == [14.0, 15.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"site": "layer1.0.conv2"}, r"no site 'layer1.0.conv2': did you mean layer1.0.conv1,"),
        ({"site": "zzz"}, "it has layer1.0.conv1, layer1.0.conv1#1, layer2.0.conv, fc"),
        ({"step": 11}, "no step 11, it has 0, 10, 100; the nearest is 10.*method='nearest'"),
        ({"group": "weight"}, "no spectra: norm are one number per site.*run\\['weight'\\]"),
        ({"group": "quantiles"}, "several spectra; say variable= one of low, high"),
        ({"variable": "spectral_norm"}, "no spectrum 'spectral_norm', only value"),
        ({"group": "spectra"}, 'probes=\\[..., "spectra"\\]'),
    ],
)
def test_errors_say_what_there_is(run, arguments, message) -> None:
    with pytest.raises(KeyError) as error:
        run.spectrum(**{"site": "fc", **arguments})
    assert re.search(message, str(error.value))


def test_an_unknown_method(run) -> None:
    with pytest.raises(ValueError, match="method='linear': expected None"):
        run.spectrum("fc", step=1, method="linear")


def test_no_rows_yet() -> None:
    writer = MemoryWriter({})
    writer.define(GROUP)
    writer.commit()
    run = Run.from_memory(writer)
    assert run.spectrum("fc").shape == (0, 4)
    with pytest.raises(KeyError, match="no rows yet"):
        run.spectrum("fc", step=0)


def test_only_the_site_s_slice_is_read(run, monkeypatch) -> None:
    """Nothing is read before it is used, and then one site's columns."""
    found = run.spectrum("fc")
    if run.path is None:
        assert np.shares_memory(found.values, run["singular_values"]["value"].values)
        return
    asked = []
    from propkit.store.reading import StoredArray

    read = StoredArray.__getitem__
    monkeypatch.setattr(
        StoredArray, "__getitem__", lambda self, key: asked.append(key) or read(self, key)
    )
    np.testing.assert_array_equal(found.values, VALUES[:, 5:])
    ((steps, values),) = [key.tuple for key in asked]
    assert (steps.indices(3), values) == ((0, 3, 1), slice(5, 9, 1))


def test_spectra_of_runs_are_plain_arrays(run) -> None:
    assert isinstance(run.spectrum("fc"), xr.DataArray)
    assert float(run.spectrum("fc", step=0).max()) == 8.0
