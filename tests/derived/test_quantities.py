"""Derived quantities on real runs, against NumPy on what brute force gives; and by hand."""

import copy
import functools

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import propkit
from propkit import derived
from propkit.registry import DEFAULT_PROBES
from propkit.schema import Group, Variable
from propkit.store.memory import MemoryWriter
from propkit.testing import brute_force
from tests.conftest import cross_entropy, make_case, sgd

STEPS = 2


@functools.cache
def recorded():
    """A run of three steps of a residual network, and what brute force gives before each."""
    torch.manual_seed(0)
    model, x, y = make_case("residual")
    oracles, weights = [], []
    optimizer = sgd(model)
    probes = [*DEFAULT_PROBES, "representation"]
    with propkit.attach(model, probes=probes, blocks=r"blocks\.\d") as recorder:
        for _ in range(STEPS):
            oracles.append(brute_force(model, cross_entropy(x, y)))
            before = copy.deepcopy(model)
            optimizer.zero_grad()
            cross_entropy(x, y)(model).backward()
            optimizer.step()
            weights.append((before, copy.deepcopy(model)))
    return recorder.run, oracles, weights


def _sites(array):
    return array["site"].values.tolist()


@pytest.mark.parametrize("direction", ["lower", "upper"])
def test_gradient_norm_ratio_in_both_directions(direction) -> None:
    run, oracles, _ = recorded()
    ratio = run.derived.gradient_norm_ratio(direction=direction)
    assert _sites(ratio) == ["blocks.0", "blocks.1", "blocks.2"]
    for step, oracle in enumerate(oracles):
        for i, site in enumerate(_sites(ratio)):
            s = oracle[site][0]
            ends = [t.double().norm().item() for t in (s.grad_input, s.grad_output)]
            expected = ends[0] / ends[1] if direction == "lower" else ends[1] / ends[0]
            np.testing.assert_allclose(ratio[step, i], expected, rtol=1e-5)


def test_the_direction_has_to_be_said() -> None:
    run, _, _ = recorded()
    with pytest.raises(TypeError, match="direction"):
        run.derived.gradient_norm_ratio()
    with pytest.raises(ValueError, match="direction='up': expected 'lower'"):
        run.derived.gradient_norm_ratio(direction="up")


def test_stable_rank_and_update_ratio() -> None:
    run, _, weights = recorded()
    rank, update = run.derived.stable_rank(), run.derived.update_ratio()
    for step, (before, after) in enumerate(weights):
        for i, site in enumerate(_sites(rank)):
            w = before.get_submodule(site).weight.detach().double().flatten(1).numpy()
            sigma = np.linalg.svd(w, compute_uv=False)
            np.testing.assert_allclose(rank[step, i], (sigma**2).sum() / sigma[0] ** 2, rtol=1e-6)
            change = after.get_submodule(site).weight.detach().double().flatten(1).numpy() - w
            expected = np.linalg.norm(change) / np.linalg.norm(w)
            np.testing.assert_allclose(update[step, i], expected, rtol=1e-5)


def test_filter_correlation_by_layer() -> None:
    run, _, weights = recorded()
    found = run.derived.layer_correlation()
    assert ((found > -1) & (found <= 1)).all()
    for step, (before, _) in enumerate(weights):
        for i, site in enumerate(_sites(found)):
            w = before.get_submodule(site).weight.detach().double().flatten(1).numpy()
            norms = np.linalg.norm(w, axis=1)
            cosines = (w @ w.T) / np.outer(norms, norms)
            upper = cosines[np.triu_indices(len(w), 1)]
            np.testing.assert_allclose(found[step, i], upper.mean(), rtol=1e-6, atol=1e-12)


def test_normalized_mean_activation() -> None:
    run, oracles, _ = recorded()
    found = run.derived.normalized_mean_activation(include_parametric=True)
    np.testing.assert_allclose(found.max("site"), 1.0)
    layers = run.derived.normalized_mean_activation()
    assert _sites(layers) == [s for s in _sites(found) if s.partition("#")[0].endswith("relu")]
    for step, oracle in enumerate(oracles):
        convolutions = [s for s in _sites(found) if s.endswith(("stem", "conv1", "conv2", "head"))]
        means = {s: oracle[s][0].output.detach().double().abs().mean().item() for s in convolutions}
        ratios = found[step].sel(site=convolutions).values / found[step].sel(site="stem").item()
        expected = [means[s] / means["stem"] for s in convolutions]
        np.testing.assert_allclose(ratios, expected, rtol=1e-5)


def test_normalized_mean_activation_by_hand() -> None:
    coords = {"site": list("abcd"), "fan_out": ("site", [3, 0, 0, 5])}
    group = xr.Dataset({"mean_abs": (("step", "site"), [[8.0, 1, 4, 9], [0, 0, 0, 1]])}, coords)
    found = derived.normalized_mean_activation(group.assign_coords(fan_in=group["fan_out"]))
    np.testing.assert_array_equal(found, [[0.25, 1.0], [np.nan, np.nan]])
    everything = derived.normalized_mean_activation(group, include_parametric=True)
    np.testing.assert_allclose(everything[0], [8 / 9, 1 / 9, 4 / 9, 1])
    whole = derived.normalized_mean_activation(group.isel(site=[0, 3]))
    np.testing.assert_allclose(whole[0], [8 / 9, 1])


def test_near_singularity() -> None:
    group = xr.Dataset(
        {
            name: (("step", "site"), [values])
            for name, values in {
                "condition_number": [4.0, np.inf],
                "top_share": [0.5, 1.0],
                "effective_rank": [8.0, 1.0],
                "mean_cosine": [-0.25, 1.0],
            }.items()
        },
        {"site": ["a", "b"]},
    )
    found = derived.near_singularity(group)
    assert {name: v.values[0].tolist() for name, v in found.items()} == {
        "top_share": [0.5, 1.0],
        "mean_cosine": [0.25, 1.0],
        "rank_loss": [0.125, 1.0],
        "inverse_condition_number": [0.25, 0.0],
    }
    real = recorded()[0].derived.near_singularity()
    assert all(((v >= 0) & (v <= 1)).all() for v in real.values())


# -- operators --------------------------------------------------------------------------------------------------------


def _operators(values: dict[str, list[list[float]]], padded=None) -> xr.Dataset:
    """A group ``singular_values`` of operators with these singular values (steps, K)."""
    coords = {
        "site": np.array(list(values)),
        "row_size": np.array([len(rows[0]) for rows in values.values()]),
    }
    names = ["spectral_norm", "smallest", "frobenius_norm"]
    names += ["padded_norm_bound"] if padded else []
    variables = (
        Variable("value", dim="singular_value", dtype="float32"),
        *(Variable(n) for n in names),
    )
    writer = MemoryWriter({})
    writer.define(Group("singular_values", variables, coords, {}, {"singular_value": None}))
    arrays = [np.array(rows, float) for rows in values.values()]
    columns = {
        "value": np.concatenate(arrays, axis=1),
        "spectral_norm": np.stack([a.max(1) for a in arrays], 1),
        "smallest": np.stack([a.min(1) for a in arrays], 1),
        "frobenius_norm": np.stack([np.sqrt((a**2).sum(1)) for a in arrays], 1),
    }
    if padded:
        columns["padded_norm_bound"] = np.array(padded, float)
    writer.append("singular_values", np.arange(len(arrays[0])), columns)
    writer.close("complete")
    return propkit.Run.from_memory(writer)["singular_values"]


def test_shape_of_the_spectrum_of_operators() -> None:
    rng = np.random.default_rng(0)
    matrices = {
        name: rng.standard_normal((2, *shape))
        for name, shape in {"a": (4, 7), "b": (5, 5), "c": (1, 3)}.items()
    }
    matrices["b"][1] = np.outer(np.ones(5), np.arange(5.0))
    sigma = {name: np.linalg.svd(m, compute_uv=False) for name, m in matrices.items()}
    sigma["b"][1, 1:] = 0
    group = _operators({name: s.tolist() for name, s in sigma.items()})
    condition = derived.operator_condition_number(group)
    stable, effective = derived.operator_stable_rank(group), derived.operator_effective_rank(group)
    for i, (name, m) in enumerate(matrices.items()):
        for step in range(2):
            s = sigma[name][step]
            p = s[s > 0] ** 2 / (s**2).sum()
            full = np.linalg.matrix_rank(m[step]) == min(m[step].shape)
            expected = np.linalg.cond(m[step]) if full else np.inf
            np.testing.assert_allclose(condition[step, i], expected, rtol=1e-6)
            rank = np.linalg.norm(m[step]) ** 2 / np.linalg.norm(m[step], 2) ** 2
            np.testing.assert_allclose(stable[step, i], rank, rtol=1e-6)
            np.testing.assert_allclose(
                effective[step, i], np.exp(-(p * np.log(p)).sum()), rtol=1e-5
            )
    assert _sites(effective) == ["a", "b", "c"]
    assert effective.dims == ("step", "site")


def test_an_operator_that_is_zero_or_not_finite_has_no_shape() -> None:
    group = _operators({"zero": [[0.0, 0.0]], "nan": [[np.nan, np.nan]], "one": [[2.0, 2.0]]})
    for function, one in (
        (derived.operator_condition_number, 1.0),
        (derived.operator_stable_rank, 2.0),
        (derived.operator_effective_rank, 2.0),
    ):
        np.testing.assert_allclose(function(group), [[np.nan, np.nan, one]], rtol=1e-6)
    with pytest.raises(ValueError, match="variable 'value' is ragged"):
        derived.operator_effective_rank(
            xr.Dataset({"value": (("step", "site"), np.ones((1, 2)))}, {"site": ["a", "b"]})
        )


# -- Corollary 1 ------------------------------------------------------------------------------------------------------


class PreActivation(nn.Module):
    """x + W2 relu(W1 relu(x)), as in the corollary."""

    def __init__(self, width: int, gain: float) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(width, width, bias=False) for _ in range(2))
        for layer in (self.first, self.second):
            nn.init.normal_(layer.weight, std=gain / width**0.5)

    def forward(self, x):
        return x + self.second(self.first(x.relu()).relu())


def _residual_run(gains: list[float]):
    torch.manual_seed(1)
    blocks = [PreActivation(6, gain) for gain in gains]
    model = nn.Sequential(nn.Linear(6, 6), *blocks)
    x = torch.randn(16, 6)
    with propkit.attach(model, probes="gradient_norm", blocks=r"\d") as recorder:
        (model(x) * torch.randn(16, 6)).sum().backward()
        recorder.step()
    values = {}
    for i, block in enumerate(blocks, 1):
        for name in ("first", "second"):
            w = getattr(block, name).weight.detach().double().numpy()
            values[f"{i}.{name}"] = [np.linalg.svd(w, compute_uv=False).tolist()]
    return recorder.run["gradient_norm"], _operators(values), blocks


def test_the_bound_of_corollary_1_holds_and_is_the_product_of_the_norms() -> None:
    gradient_norm, singular_values, blocks = _residual_run([0.05, 0.3, 1.0])
    found = derived.residual_bound(gradient_norm, singular_values)
    assert _sites(found) == ["1", "2", "3"]
    for i, block in enumerate(blocks):
        norms = [np.linalg.norm(m.weight.detach().numpy(), 2) for m in (block.first, block.second)]
        np.testing.assert_allclose(found["delta"][0, i], norms[0] * norms[1], rtol=1e-5)
    np.testing.assert_allclose(found["upper"], 1 + found["delta"])
    np.testing.assert_allclose(found["lower"], np.maximum(0, 1 - found["delta"]))
    assert (found["lower"] <= found["ratio"]).all()
    assert (found["ratio"] <= found["upper"]).all()
    assert found["delta"][0, 0] < 0.1  # so that the bound says something
    np.testing.assert_allclose(
        found["ratio"],
        derived.gradient_norm_ratio(gradient_norm, direction="lower").sel(site=["1", "2", "3"]),
    )
    steep = derived.residual_bound(gradient_norm, singular_values, slope=3.0)
    np.testing.assert_allclose(steep["delta"], 9 * found["delta"])
    chosen = derived.residual_bound(gradient_norm, singular_values, layers={"2": ["2.first"]})
    norm = np.linalg.norm(blocks[1].first.weight.detach().numpy(), 2)
    np.testing.assert_allclose(chosen["delta"].sel(site="2"), norm, rtol=1e-5)


def test_the_bound_of_a_padded_layer_is_taken_where_there_is_one() -> None:
    gradient_norm, _, _ = _residual_run([0.1])
    group = _operators({"1.a": [[2.0]], "1.b": [[3.0]]}, padded=[[5.0, np.nan]])
    assert derived.residual_bound(gradient_norm, group)["delta"].item() == 15.0


def test_the_bound_refuses_what_would_be_wrong() -> None:
    run, _, _ = recorded()
    with pytest.raises(ValueError, match="'weight' is that of a kernel as a matrix"):
        derived.residual_bound(run["gradient_norm"], run["weight"])
    gradient_norm, singular_values, _ = _residual_run([0.1])
    with pytest.raises(ValueError, match="'9' is not recorded; blocks are 0, 1"):
        derived.residual_bound(gradient_norm, singular_values, layers={"9": ["1.first"]})
    with pytest.raises(ValueError, match=r"'1.third' is not recorded"):
        derived.residual_bound(gradient_norm, singular_values, layers={"1": ["1.third"]})
    with pytest.raises(ValueError, match=r"none of the layers x.y is inside one of the blocks"):
        derived.residual_bound(gradient_norm, _operators({"x.y": [[1.0]]}))


# -- the accessor -----------------------------------------------------------------------------------------------------


def test_every_quantity_is_there_by_name() -> None:
    run, _, _ = recorded()
    assert dir(run.derived) == sorted(derived.QUANTITIES)
    assert set(derived.QUANTITIES) <= set(derived.__all__)
    for name in derived.QUANTITIES:
        bound = getattr(run.derived, name)
        assert bound.__doc__ == getattr(derived, name).__doc__
    for name in ("error_ratio", "end_to_end_ratio", "consecutive_ratio"):
        expected = getattr(derived, name)(run["error_moment"])
        xr.testing.assert_identical(getattr(run.derived, name)(), expected)
    expected = derived.corrected_error_ratio(run["error_moment"], run["weight"])
    xr.testing.assert_identical(run.derived.corrected_error_ratio(), expected)
    xr.testing.assert_identical(
        run.derived.pooled_correlation(include_linear=True),
        derived.pooled_correlation(run["filter_correlation"], True),
    )
    last = run["error_moment"].isel(step=[-1])
    assert run.derived.error_ratio(error_moment=last).sizes["step"] == 1
    with pytest.raises(AttributeError, match="no derived quantity 'eror_ratio'; there are error_"):
        run.derived.eror_ratio  # noqa: B018 - the access is the test
    assert "error_ratio" in repr(run.derived)


def test_what_a_quantity_needs_is_said() -> None:
    run, _, _ = recorded()
    with pytest.raises(KeyError, match="no group 'singular_values'") as error:
        run.derived.residual_bound()
    (note,) = error.value.__notes__
    assert "computed from gradient_norm, singular_values" in note
    assert "'weight' does not do" in note
