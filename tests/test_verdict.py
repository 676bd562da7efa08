"""Verdicts on networks whose fate is known from theory."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import propkit
from propkit.diagnosis.diagnosis import Diagnosis
from propkit.diagnosis.verdict import Evidence, Thresholds, judge
from propkit.testing import TinyResNet, mlp
from tests.conftest import make_case


def _column(diagnosis: Diagnosis, group: str, variable: str) -> dict[str, float]:
    values = diagnosis[group][variable].isel(step=0)
    return dict(zip(values["site"].values.tolist(), values.values.tolist(), strict=True))


def _row(diagnosis: Diagnosis, name: str) -> dict[str, float]:
    values = diagnosis.table[name]
    return dict(zip(values["site"].values.tolist(), values.values.tolist(), strict=True))


def _deep(depth: int, width: int, activation: type[nn.Module], gain: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.normal_(linear.weight, std=gain / width**0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear, activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def _verdicts(diagnosis: Diagnosis) -> dict[str, str]:
    return _row(diagnosis, "verdict")


def test_a_plain_network_of_44_layers_explodes() -> None:
    model = propkit.models.plain(44)
    x, y = torch.randn(16, 3, 16, 16), torch.arange(16) % 10
    found = propkit.measure(
        model, x, y, loss=F.cross_entropy, probes=["error_moment", "activation"]
    )
    verdicts = _verdicts(found)
    assert verdicts["conv1"] == verdicts["layer1.0.conv1"] == "exploding"
    assert verdicts["layer3.6.conv2"] == verdicts["fc"] == "healthy"
    assert found.verdict.startswith("exploding: ")
    assert "first conv1" in found.verdict
    assert not found.healthy


@pytest.mark.parametrize(("activation", "gain"), [(nn.Tanh, 0.5), (nn.Sigmoid, 1.0)])
def test_saturating_networks_with_small_weights_vanish(activation, gain: float) -> None:
    x, y = torch.randn(32, 64), torch.arange(32) % 10
    found = propkit.measure(_deep(30, 64, activation, gain), x, y, loss=F.cross_entropy)
    ratios = _row(found, "error_ratio")
    # the error shrinks by gain^2 E[f'^2] per layer: below 1/4 for tanh, 1/16 for the sigmoid
    assert ratios["0"] < 4**-29
    for site, verdict in _verdicts(found).items():
        if ratios[site] < 1e-3:
            assert verdict == "vanishing", site
    assert found.verdict.startswith("vanishing: ")
    assert found.problems["0"][0].verdict == "vanishing"


def test_vanishing_is_seen_without_a_loss() -> None:
    found = propkit.measure(_deep(30, 64, nn.Tanh, 0.5), torch.randn(32, 64))
    assert found.verdict.startswith("vanishing: ")
    assert "first layer" in found.problems["40"][0].reason


def test_units_behind_a_large_negative_bias_are_dead() -> None:
    model = _deep(3, 64, nn.ReLU, 2**0.5)
    nn.init.constant_(model[2].bias, -10.0)
    x, y = torch.randn(32, 64), torch.arange(32) % 10
    found = propkit.measure(model, x, y, loss=F.cross_entropy)
    assert _verdicts(found)["3"] == "dead"
    assert _row(found, "dead")["3"] == 1
    assert _verdicts(found)["0"] == "vanishing"  # no error passes the dead layer
    assert found.verdict.startswith("dead: ")
    assert "first 3 (100% of the units" in found.verdict
    half = _deep(1, 64, nn.ReLU, 2**0.5)
    nn.init.constant_(half[0].bias[:40].detach(), -10.0)
    with torch.no_grad():
        half[0].bias[:40] = -10.0
    assert _verdicts(propkit.measure(half, x))["1"] == "dead"
    strict = propkit.measure(half, x).judged_by(Thresholds(dead=0.7))
    assert _verdicts(strict)["1"] == "healthy"


def test_a_deep_relu_network_without_normalisation_is_singular() -> None:
    """Its representations collapse onto one direction, by the correlation map of ReLU (Cho & Saul, NIPS 2009)."""
    depth, width = 40, 512
    x = torch.randn(40, width)
    found = propkit.measure(
        _deep(depth, width, nn.ReLU, 2**0.5), x, probes=["representation", "activation"]
    )
    verdicts, cosine = _verdicts(found), _row(found, "mean_cosine")

    def kernel(c: float) -> float:
        return (math.sqrt(1 - c * c) + (math.pi - math.acos(c)) * c) / math.pi

    assert cosine["0"] == pytest.approx(0, abs=0.02)
    for layer in range(1, depth):
        c = cosine[str(2 * layer)]
        assert c == pytest.approx(kernel(cosine[str(2 * layer - 2)]), abs=0.08), layer
        if c > 0.96:
            assert verdicts[str(2 * layer)] == verdicts[str(2 * layer + 1)] == "singular"
        elif c < 0.94:
            assert verdicts[str(2 * layer)] == "healthy"
    assert c > 0.96
    assert found.verdict.startswith("singular: ")


def test_a_hundred_layers_of_64_units_lose_rank_and_batch_normalisation_keeps_it() -> None:
    """The near-singularity of a 100-layer plain network on small images (Oyedotun et al., ICPR 2020)."""
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
    from sklearn.datasets import load_digits

    x = torch.from_numpy(load_digits().data[:300]).float() / 16
    found = propkit.measure(
        _deep(99, 64, nn.ReLU, 2**0.5), x, probes=["representation", "activation"]
    )
    ds = found["representation"].isel(step=0)
    first, middle, last = (ds.sel(site=str(2 * i - 1)) for i in (1, 50, 99))
    assert 0.65 < float(first["top_share"]) < 0.85
    assert 0.96 < float(middle["top_share"]) < float(last["top_share"])
    assert float(last["mean_cosine"]) > 0.99
    assert float(last["effective_rank"]) < 1.1
    assert np.isinf(middle["condition_number"])
    assert found.problems["197"][0].verdict == "singular"
    normalised = nn.Sequential(
        *(
            m
            for layer in _deep(99, 64, nn.ReLU, 2**0.5)
            for m in (
                (layer, nn.BatchNorm1d(64))
                if isinstance(layer, nn.Linear) and layer.out_features == 64
                else (layer,)
            )
        )
    )
    found = propkit.measure(normalised, x, probes=["representation", "activation"])
    assert _row(found, "effective_rank")["296"] > 5
    assert found.healthy


@pytest.mark.parametrize("loss", [F.cross_entropy, None])
def test_an_orthogonal_linear_network_is_healthy(loss) -> None:
    model = nn.Sequential(*(nn.Linear(32, 32, bias=False) for _ in range(40)))
    for layer in model:
        nn.init.orthogonal_(layer.weight)
    inputs = (torch.randn(64, 32), torch.arange(64) % 10)
    found = propkit.measure(model, *inputs[: 2 if loss else 1], loss=loss)
    assert found.healthy
    assert found.verdict == "healthy: nothing found at 40 layers"
    if loss:
        np.testing.assert_allclose(list(_row(found, "error_ratio").values()), 1, rtol=1e-4)


def test_a_residual_network_is_healthy() -> None:
    x, y = torch.randn(16, 3, 8, 8), torch.arange(16) % 3
    found = propkit.measure(TinyResNet(depth=12, channels=8), x, y, loss=F.cross_entropy)
    assert found.verdict.startswith("healthy"), found.verdict


def test_what_is_not_finite_explodes() -> None:
    model, x, y = make_case("mlp")
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    found = propkit.measure(model, x, y, loss=F.cross_entropy)
    assert _verdicts(found)["2"] == "exploding"
    assert _verdicts(found)["6"] == "exploding"
    assert np.isnan(_column(found, "activation", "mean_square")["2"])


def test_frozen_layers_are_not_judged_by_an_error_that_never_came() -> None:
    model, x, y = make_case("mlp")
    model[0].requires_grad_(False)
    found = propkit.measure(model, x, y, loss=F.cross_entropy)
    assert _verdicts(found)["0"] == "healthy"
    for p in model.parameters():
        p.requires_grad_(False)
    found = propkit.measure(model, x, y, loss=F.cross_entropy)
    assert "requires no gradient" in found.run.attributes["notes"][-1]
    assert "error_moment" not in found.run


def test_a_single_sample_says_nothing_about_death_or_rank() -> None:
    found = propkit.measure(_deep(3, 64, nn.ReLU, 2**0.5), torch.randn(1, 64))
    assert _row(found, "dead")["1"] > 0.3
    assert found.healthy


def test_zero_initialised_layers_are_not_called_dead() -> None:
    model = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    found = propkit.measure(model, torch.randn(16, 12))
    assert _row(found, "dead")["1"] == 1
    assert found.healthy


def test_the_most_severe_problem_comes_first() -> None:
    everything = Evidence(
        error_moment=1.0,
        error_ratio=1e5,
        activation_moment=1.0,
        dead=0.9,
        activation_ratio=1e-9,
        mean_cosine=0.99,
        observations=100,
        matrix=(50, 50),
    )
    found = [f.verdict for f in judge(everything, Thresholds())]
    assert found == ["exploding", "dead", "vanishing", "singular"]
    loose = Thresholds(exploding=1e6, dead=1.0, vanishing_signal=0.0, mean_cosine=1.0)
    assert judge(everything, loose) == []


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("dead", 7, ValueError),
        ("dead", -1, ValueError),
        ("dead", math.nan, ValueError),
        ("mean_cosine", 5, ValueError),
        ("effective_rank", math.nan, ValueError),
        ("effective_rank", -1.0, ValueError),
        ("evidence", -3, ValueError),
        ("evidence", 0, ValueError),
        ("exploding", math.nan, ValueError),
        ("vanishing", "a", TypeError),
        ("evidence", 2.5, TypeError),
        ("dead", None, TypeError),
        ("dead", True, TypeError),
    ],
)
def test_thresholds_out_of_range_are_refused_by_name(field: str, value: object, kind) -> None:
    with pytest.raises(kind, match=rf"{field}.*expected|expected.*{field}") as caught:
        Thresholds(**{field: value})
    assert str(value) in str(caught.value)


def test_thresholds_may_be_numbers_of_numpy_and_switch_a_verdict_off() -> None:
    Thresholds(dead=np.float32(0.5), evidence=np.int64(4))
    Thresholds(vanishing=0, exploding=math.inf, effective_rank=0, dead=1, mean_cosine=1)


def test_other_thresholds_are_refused_before_the_model_runs() -> None:
    model, ran = mlp(), []
    model.register_forward_hook(lambda *_: ran.append(1))
    x = torch.randn(8, 12)
    for given in ({"dead": 0.1}, 0.1, Thresholds):
        with pytest.raises(TypeError, match=r"from propkit\.diagnosis\.verdict import Thresholds"):
            propkit.measure(model, x, thresholds=given)
    assert ran == []
    with pytest.raises(TypeError, match="expected a Thresholds, found dict"):
        propkit.measure(model, x).judged_by({"dead": 0.1})
