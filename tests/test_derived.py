"""Derived quantities against numbers worked out by hand, and against plain loops."""

from collections.abc import Sequence

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from propkit import derived

CONVS = ["Conv2d", "Conv2d", "Conv2d", "Linear"]


def dataset(
    types: Sequence[str], steps: Sequence[int] | None = None, **variables: object
) -> xr.Dataset:
    values = {k: np.array(v, dtype=float) for k, v in variables.items()}
    rows, sites = next(iter(values.values())).shape
    return xr.Dataset(
        {k: (("step", "site"), v) for k, v in values.items()},
        coords={
            "step": list(steps or range(rows)),
            "site": [f"s{i}" for i in range(sites)],
            "type": ("site", list(types)),
            "depth": ("site", np.arange(1, sites + 1)),
            "fan_out": ("site", [2, 4, 8, 10][:sites]),
        },
    )


MOMENTS = dataset(CONVS, output=[[1, 10, 100, 7], [6, 3, 2, 7]])


def test_error_ratio_is_relative_to_the_last_convolution() -> None:
    ratio = derived.error_ratio(MOMENTS)
    np.testing.assert_allclose(ratio, [[0.01, 0.1, 1.0], [3.0, 1.5, 1.0]])
    assert ratio.dims == ("step", "site")
    assert ratio["site"].values.tolist() == ["s0", "s1", "s2"]
    assert ratio["depth"].values.tolist() == [1, 2, 3]
    assert ratio.attrs["units"] == "1"
    assert "highest layer" in ratio.attrs["long_name"]
    assert ratio.attrs["reference"] == "arXiv:1703.01827, Fig. 4"


def test_end_to_end_ratio_is_first_to_last() -> None:
    ratio = derived.end_to_end_ratio(MOMENTS)
    np.testing.assert_allclose(ratio, [0.01, 3.0])
    assert ratio.dims == ("step",)
    assert set(ratio.coords) == {"step"}
    np.testing.assert_allclose(ratio, derived.error_ratio(MOMENTS).isel(site=0))


def test_consecutive_ratios_multiply_to_the_end_to_end_ratio() -> None:
    ratio = derived.consecutive_ratio(MOMENTS)
    np.testing.assert_allclose(ratio, [[0.1, 0.1], [2.0, 1.5]])
    assert ratio["site"].values.tolist() == ["s0", "s1"]
    assert ratio["depth"].values.tolist() == [1, 2]
    np.testing.assert_allclose(ratio.prod("site"), derived.end_to_end_ratio(MOMENTS))


def test_the_correction_takes_out_the_mean_squared_filter_norms() -> None:
    moments = dataset(CONVS, steps=[0, 1, 2], output=[[1, 0, 4, 0], [2, 0, 4, 0], [3, 0, 4, 0]])
    weight = dataset(CONVS, steps=[0, 2, 3], norm=[[2, 9, 4, 9], [1, 9, 2, 9], [1, 9, 1, 9]])
    ratio = derived.corrected_end_to_end_ratio(moments, weight)
    assert ratio["step"].values.tolist() == [0, 2]
    # Mean squared norms: 2²/2 and 4²/8 at step 0, 1²/2 and 2²/8 at step 2.
    np.testing.assert_allclose(ratio, [(1 * 2) / (4 * 2), (3 * 0.5) / (4 * 0.5)])


@given(st.floats(0.01, 100), st.floats(0.01, 100), st.floats(1e-20, 1e20), st.floats(1e-20, 1e20))
def test_the_corrected_ratio_does_not_depend_on_the_scale_of_a_normalised_layer(
    first: float, last: float, q1: float, q2: float
) -> None:
    def corrected(a: float, b: float) -> float:
        # Batch normalisation: a weight scaled by a has errors scaled by 1/a².
        moments = dataset(["Conv1d", "Conv1d"], output=[[q1 / a**2, q2 / b**2]])
        weight = dataset(["Conv1d", "Conv1d"], norm=[[3 * a, 5 * b]])
        return derived.corrected_end_to_end_ratio(moments, weight).item()

    assert corrected(first, last) == pytest.approx(corrected(1, 1))


def test_the_correction_of_every_layer() -> None:
    moments = dataset(CONVS, output=[[1, 10, 100, 7], [6, 3, 2, 7]])
    weight = dataset(CONVS, norm=[[2, 3, 4, 9], [1, 6, 2, 9]])
    ratio = derived.corrected_error_ratio(moments, weight)
    # Mean squared norms: norm² / fan_out with fan_out 2, 4, 8.
    q = np.array([[1 * 4 / 2, 10 * 9 / 4, 100 * 16 / 8], [6 * 1 / 2, 3 * 36 / 4, 2 * 4 / 8]])
    np.testing.assert_allclose(ratio, q / q[:, -1:])
    assert ratio["site"].values.tolist() == ["s0", "s1", "s2"]
    first = ratio.isel(site=0, drop=True).drop_vars(["type", "depth", "fan_out"], errors="ignore")
    np.testing.assert_allclose(first, derived.corrected_end_to_end_ratio(moments, weight))


def test_calls_of_a_layer_share_the_norm_of_its_weight() -> None:
    names = ["s0", "s0#1", "s1", "s2"]
    moments = MOMENTS.assign_coords(site=names, type=("site", ["Conv2d"] * 4))
    weight = dataset(CONVS, norm=[[2, 3, 4, 9], [2, 3, 4, 9]])
    ratio = derived.corrected_error_ratio(moments, weight)
    square = np.array([4 / 2, 4 / 2, 9 / 4, 16 / 8])
    q = MOMENTS["output"].values * square
    np.testing.assert_allclose(ratio, q / q[:, -1:])


def test_the_correction_names_what_the_weights_lack() -> None:
    weight = dataset(CONVS, norm=[[1, 1, 1, 1]] * 2)
    with pytest.raises(ValueError, match=r"from 's0' to 's2'.*no site 's2'.*same include="):
        derived.corrected_end_to_end_ratio(MOMENTS, weight.isel(site=[0, 1]))
    with pytest.raises(ValueError, match="no coordinate 'fan_out'"):
        derived.corrected_end_to_end_ratio(MOMENTS, weight.drop_vars("fan_out"))


def test_zero_and_infinite_denominators_give_nan_without_warning() -> None:
    moments = dataset(
        CONVS, output=[[1, 1, 0, 7], [0, 1, 0, 7], [1, 1, np.inf, 7], [1, 1, np.nan, 7]]
    )
    assert derived.end_to_end_ratio(moments).isnull().all()
    assert derived.error_ratio(moments).isnull().all()
    weight = dataset(CONVS, norm=[[1, 1, 0, 1]] * 4)
    assert derived.corrected_end_to_end_ratio(moments, weight).isnull().all()
    tiny = dataset(CONVS, output=[[1e300, 1, 1e-300, 7], [np.inf, 1, 1, 7], [0, 1, 1, 7]])
    np.testing.assert_array_equal(derived.end_to_end_ratio(tiny), [np.inf, np.inf, 0.0])


def test_shortcut_and_transposed_convolutions_count_and_other_layers_do_not() -> None:
    types = ["Embedding", "StdConv2d", "ConvTranspose3d", "ParametrizedConv1d", "Conv1D"]
    moments = dataset(types[:4], output=[[9, 1, 2, 4]])
    np.testing.assert_allclose(derived.error_ratio(moments), [[0.25, 0.5, 1.0]])
    five = moments.isel(site=[0, 1, 2, 3, 0]).assign_coords(type=("site", types))
    assert derived.is_convolution(five).tolist() == [False, True, True, True, False]


@pytest.mark.parametrize("types", [["Linear"] * 3, ["Conv2d", "Linear", "Linear"]])
def test_with_fewer_than_two_convolutions_all_layers_count(types: list[str]) -> None:
    moments = dataset(types, output=[[1, 2, 4]])
    np.testing.assert_allclose(derived.error_ratio(moments), [[0.25, 0.5, 1.0]])
    assert derived.end_to_end_ratio(moments).item() == 0.25


def test_a_single_layer_has_no_ratio() -> None:
    single = dataset(["Linear"], output=[[1.0]])
    for function in (derived.error_ratio, derived.end_to_end_ratio, derived.consecutive_ratio):
        with pytest.raises(ValueError, match=r"at least two layers, but s0 \(Linear\) is all"):
            function(single)


def test_the_wrong_group_is_refused() -> None:
    wrong = dataset(CONVS, norm=[[1, 1, 1, 1]])
    with pytest.raises(ValueError, match="expected a variable 'output', found norm"):
        derived.error_ratio(wrong)
    with pytest.raises(ValueError, match="expected a variable 'correlation'"):
        derived.pooled_correlation(wrong)


def test_pooled_correlation_weighs_layers_by_their_pairs() -> None:
    data = dataset(CONVS, correlation=[[0.5, 0.1, 0.2, 0.9]], pairs=[[1, 6, 28, 45]])
    assert derived.pooled_correlation(data).item() == pytest.approx((0.5 + 0.6 + 5.6) / 35)
    everything = derived.pooled_correlation(data, include_linear=True).item()
    assert everything == pytest.approx((0.5 + 0.6 + 5.6 + 40.5) / 80)
    assert derived.pooled_correlation(data).attrs["reference"] == "arXiv:1703.01827, Eq. 8"


def test_pooled_correlation_is_the_mean_over_all_pairs_of_filters() -> None:
    rng = np.random.default_rng(0)
    cosines = []
    correlation, pairs = [], []
    for m in (3, 5, 2):
        filters = rng.standard_normal((m, 7))
        filters /= np.linalg.norm(filters, axis=1, keepdims=True)
        layer = [filters[i] @ filters[j] for i in range(m) for j in range(i + 1, m)]
        cosines += layer
        correlation.append(np.mean(layer))
        pairs.append(len(layer))
    data = dataset(["Conv2d"] * 3, correlation=[correlation], pairs=[pairs])
    assert derived.pooled_correlation(data).item() == pytest.approx(np.mean(cosines))


def test_pooled_correlation_skips_missing_layers_and_keeps_missing_steps() -> None:
    nan = np.nan
    data = dataset(
        CONVS,
        correlation=[[0.5, nan, 0.2, 9], [nan, nan, nan, 9], [nan, 0.3, 0.2, 9]],
        pairs=[[1, 6, 28, 45], [1, 6, 28, 45], [0, 6, nan, 45]],
    )
    expected = [(0.5 + 5.6) / 29, nan, 0.3]
    np.testing.assert_allclose(derived.pooled_correlation(data), expected)


def test_a_network_without_convolutions_pools_its_linear_layers() -> None:
    data = dataset(["Linear", "Linear"], correlation=[[0.5, 0.1]], pairs=[[1, 3]])
    assert derived.pooled_correlation(data).item() == pytest.approx(0.8 / 4)
    with pytest.raises(ValueError, match="no site"):
        derived.pooled_correlation(data.isel(site=[]))


def test_lazy_datasets_stay_lazy_and_agree() -> None:
    dask = pytest.importorskip("dask.array")
    lazy = MOMENTS.chunk({"step": 1})
    ratio = derived.error_ratio(lazy)
    assert isinstance(ratio.data, dask.Array)
    xr.testing.assert_allclose(ratio.compute(), derived.error_ratio(MOMENTS))


def test_no_row_is_fine() -> None:
    none = MOMENTS.isel(step=[])
    assert derived.end_to_end_ratio(none).sizes == {"step": 0}
    assert derived.error_ratio(none).sizes == {"step": 0, "site": 3}
