"""Singular values of layers against the SVD of the operator, written out by pushing unit vectors through the layer."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import propkit
from propkit.notices import PropkitWarning
from propkit.probes import singular_value_quantiles, singular_values
from propkit.probes.singular_value_quantiles import QUANTILES
from tests.conftest import make_case, sgd

TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


def written_out(layer: nn.Module, shape: tuple[int, ...]) -> np.ndarray:
    """The layer without its bias as a matrix, float64: a column for each unit vector of its input (channels, *map)."""
    with torch.no_grad():
        layer = layer.double()
        units = torch.eye(int(np.prod(shape)), dtype=torch.float64).reshape(-1, *shape)
        zero = layer(torch.zeros(1, *shape, dtype=torch.float64))
        return (layer(units) - zero).flatten(1).numpy().T


def measured(layer: nn.Module, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    found = singular_values(layer.weight.detach(), layer, torch.zeros(2, *shape))
    return {name: value.numpy() for name, value in found.items()}


def check_circular(layer: nn.Module, shape: tuple[int, ...]) -> None:
    found = measured(layer, shape)
    sigma = np.linalg.svd(written_out(layer, shape), compute_uv=False)
    np.testing.assert_allclose(found["value"], sigma, **TOLERANCE)
    np.testing.assert_allclose(found["spectral_norm"], sigma[0], **TOLERANCE)
    np.testing.assert_allclose(found["smallest"], sigma[-1], **TOLERANCE)
    np.testing.assert_allclose(found["frobenius_norm"], np.linalg.norm(sigma), **TOLERANCE)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 2),
    st.sampled_from([1, 3, 5]),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2]),
    st.integers(2, 4),
)
def test_circular_layers(dims, kernel, stride, dilation, groups, half) -> None:
    kind = (nn.Conv1d, nn.Conv2d)[dims - 1]
    padding = dilation * (kernel - 1) // 2
    size = 2 * max(half, padding)
    torch.manual_seed(kernel + 10 * stride)
    layer = kind(
        2,
        4,
        kernel,
        stride,
        padding,
        dilation,
        groups,
        padding_mode="circular",
        dtype=torch.float64,
    )
    check_circular(layer, (2, *[size] * dims))


def test_linear_layers() -> None:
    check_circular(nn.Linear(5, 3).double(), (5,))
    check_circular(nn.Linear(3, 7, bias=False).double(), (3,))


def test_three_dimensions_and_unbatched_input() -> None:
    layer = nn.Conv3d(2, 1, 3, padding=1, padding_mode="circular", dtype=torch.float64)
    check_circular(layer, (2, 2, 4, 3))
    found = singular_values(layer.weight.detach(), layer, torch.zeros(2, 2, 4, 3))
    np.testing.assert_array_equal(found["value"], measured(layer, (2, 2, 4, 3))["value"])


ZERO_PADDED = [
    (nn.Conv2d(2, 3, 3, padding=1), (2, 5, 4)),
    (nn.Conv2d(3, 3, 3, stride=2, padding=1), (3, 6, 5)),
    (nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2), (4, 5, 5)),
    (nn.Conv2d(2, 2, 3), (2, 5, 5)),
    (nn.Conv1d(2, 3, 5, padding="same"), (2, 7)),
    (nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, output_padding=1), (3, 3, 4)),
]


@pytest.mark.parametrize(("layer", "shape"), ZERO_PADDED, ids=lambda v: str(v)[:40])
def test_zero_padding_has_an_exact_frobenius_norm_and_a_bound(layer, shape) -> None:
    layer = layer.double()
    found = measured(layer, shape)
    matrix = written_out(layer, shape)
    np.testing.assert_allclose(found["padded_frobenius_norm"], np.linalg.norm(matrix), **TOLERANCE)
    norm = np.linalg.norm(matrix, 2)
    assert norm <= found["padded_norm_bound"] * (1 + 1e-12) <= 1.6 * norm


@pytest.mark.parametrize(("layer", "shape"), ZERO_PADDED[:3], ids=lambda v: str(v)[:40])
def test_the_spectrum_beside_it_is_that_of_the_circular_layer(layer, shape) -> None:
    twin = nn.Conv2d(
        *(layer.in_channels, layer.out_channels, 3, layer.stride, layer.padding, layer.dilation),
        *(layer.groups, False, "circular", None, torch.float64),
    )
    twin.weight = nn.Parameter(layer.weight.detach().double())
    stride = layer.stride[0]
    rounded = (shape[0], *(-(-n // stride) * stride for n in shape[1:]))
    sigma = np.linalg.svd(written_out(twin, rounded), compute_uv=False)
    np.testing.assert_allclose(measured(layer.double(), shape)["value"], sigma, **TOLERANCE)


def test_other_paddings_are_taken_for_circular() -> None:
    options = {"padding": 1, "dtype": torch.float64}
    layers = [nn.Conv2d(2, 2, 3, padding_mode=m, **options) for m in ("circular", "reflect")]
    layers[1].weight = layers[0].weight
    first, second = (measured(layer, (2, 4, 4)) for layer in layers)
    np.testing.assert_array_equal(first["value"], second["value"])
    assert "padded_norm_bound" not in second


def test_a_circular_layer_whose_stride_does_not_divide_the_map() -> None:
    layer = nn.Conv2d(2, 2, 3, 2, 1, padding_mode="circular", dtype=torch.float64)
    odd, even = measured(layer, (2, 5, 7)), measured(layer, (2, 6, 8))
    np.testing.assert_array_equal(odd["value"], even["value"])


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_weights_that_are_zero_or_not_finite(bad) -> None:
    for layer, shape in (
        (nn.Conv2d(2, 2, 3, padding=1), (2, 4, 4)),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), (2, 4, 4)),
    ):
        nn.init.constant_(layer.weight, bad)
        found = measured(layer, shape)
        assert len(found["value"]) == 32
        for value in found.values():
            assert np.array_equal(value, np.zeros_like(value)) if not bad else np.isnan(value).all()


def test_quantiles_are_those_of_numpy() -> None:
    for layer, shape in ((nn.Conv2d(2, 3, 3, padding=1), (2, 5, 4)), (nn.Linear(1, 1), (1,))):
        found = singular_value_quantiles(layer.weight.detach(), layer, torch.zeros(2, *shape))
        everything = measured(layer, shape)
        expected = np.quantile(everything.pop("value"), QUANTILES)
        np.testing.assert_allclose(found.pop("quantiles"), expected, rtol=1e-12)
        assert {k: float(v) for k, v in found.items()} == {
            k: float(v) for k, v in everything.items()
        }


# -- in a run ---------------------------------------------------------------------------------------------------------


def test_a_run_holds_the_spectra_of_all_layers(tmp_path) -> None:
    model, x, _ = make_case("residual")
    probes = ["singular_values", "singular_value_quantiles"]
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    with propkit.attach(model, tmp_path / "run.zarr", probes=probes) as recorder:
        for _ in range(3):
            model(x).square().mean().backward()
            sgd(model).step()
    run = recorder.run
    assert run.attributes["sampling"] == dict.fromkeys(probes, "log_spaced(10)")
    ds = run["singular_values"]
    assert ds["step"].values.tolist() == [0, 1, 2]
    names = [
        n.removesuffix(".weight") for n in weights if n.endswith(("conv1.weight", "conv2.weight"))
    ]
    assert ds["site"].values.tolist() == ["stem", *names, "head"]
    for site in ("stem", *names, "head"):
        layer = model.get_submodule(site)
        found = singular_values(weights[f"{site}.weight"], layer, torch.zeros(1, 6, 7, 5))
        recorded = run.spectrum(site, step=0)
        np.testing.assert_allclose(recorded, found["value"], rtol=1e-6)
        assert (np.diff(recorded) <= 0).all()
        here = ds.isel(step=0, site=ds["site"].values.tolist().index(site))
        np.testing.assert_allclose(here["spectral_norm"], found["spectral_norm"], rtol=1e-12)
        assert np.isnan(here["padded_norm_bound"].item()) == (site == "head")
        quantiles = run.spectrum(site, step=0, group="singular_value_quantiles")
        np.testing.assert_allclose(quantiles, np.quantile(found["value"], QUANTILES), rtol=1e-9)
    assert run.attributes["faults"] == {}
    assert ds["value"].attrs["units"] == "output/input"
    bound = run.derived.operator_condition_number()
    np.testing.assert_allclose(bound, ds["spectral_norm"] / ds["smallest"])


def test_the_map_s_size_may_change_for_quantiles_only() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1))
    with propkit.attach(model, probes=["singular_values", "singular_value_quantiles"]) as recorder:
        for size in (4, 6):
            if size == 6:
                with pytest.warns(
                    PropkitWarning, match="'singular_values'.*32 values of 'value' at 0, found 72"
                ):
                    model(torch.zeros(1, 2, size, size))
            else:
                model(torch.zeros(1, 2, size, size))
            recorder.step()
    run = recorder.run
    assert run["singular_values"].sizes["step"] == 1
    assert run["singular_value_quantiles"].sizes["step"] == 2


def test_micro_batches_and_evaluations_cost_no_further_spectrum() -> None:
    calls = []

    @propkit.probe(sites="filters", once=True, dims={"value": "k"}, reduce="sum")
    def counted(weight, input):
        calls.append(input.shape)
        return {"value": weight.flatten()[:2]}

    model = nn.Sequential(nn.Linear(3, 3))
    with propkit.attach(model, probes=counted) as recorder:
        for _ in range(2):
            weight = model[0].weight.detach().flatten()[:2].numpy().copy()
            with torch.no_grad():
                for _ in range(5):
                    model(torch.ones(4, 3))
            for batch in (2, 2, 2):
                model(torch.ones(batch, 3)).sum().backward()
            sgd(model).step()
            np.testing.assert_array_equal(recorder.run.spectrum("0", group="counted")[-1], weight)
    assert calls == [(4, 3), (2, 3)] * 2


def test_no_copy_of_the_input_is_made(monkeypatch) -> None:
    model, x, _ = make_case("plain")
    cloned = []
    clone = torch.Tensor.clone
    monkeypatch.setattr(
        torch.Tensor, "clone", lambda t, **k: cloned.append(t.shape) or clone(t, **k)
    )
    with propkit.attach(model, probes="singular_values") as recorder:
        model(x)
        recorder.step()
    assert recorder.run["singular_values"].sizes["step"] == 1
    assert not [shape for shape in cloned if shape[:1] == x.shape[:1] and len(shape) == 4]


def test_a_compiled_model_is_told_that_there_is_no_room_for_spectra() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    with propkit.attach(model, probes=["singular_values", "activation"]) as recorder:
        compiled = torch.compile(model, backend="eager")
        with pytest.warns(PropkitWarning, match="'singular_values'.*no room for values"):
            compiled(torch.ones(2, 3)).sum().backward()
        recorder.step()
    assert recorder.run.groups == ("activation",)
