"""What a model is given, and what it is made of: batches and models of which nothing can be said."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import propkit
from propkit.diagnosis.batch import not_finite
from propkit.testing import mlp


class Nested(nn.Module):
    """Takes what it takes in a dict and a tuple, and a mask by name."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.embedding = mlp(), nn.Embedding(5, 12)

    def forward(self, batch, others=(), *, mask=None):
        hidden = batch["x"] + self.embedding(batch["index"])
        if mask is not None:
            hidden = hidden.masked_fill(mask == -math.inf, 0.0)
        return self.net(hidden)


def batch(n: int = 7) -> dict[str, object]:
    return {
        "x": torch.randn(n, 12),
        "index": torch.arange(n) % 5,
        "name": "a",
        "scale": torch.tensor(2.0),
    }


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the batch is empty: input 0 has the shape \(0, 12\)"):
        propkit.measure(mlp(), torch.randn(0, 12))
    with pytest.raises(ValueError, match="the batch is empty"):
        propkit.measure(mlp(), torch.randn(0, 12), torch.arange(0), loss=F.cross_entropy)
    with pytest.raises(ValueError, match="the batch is empty: input 'batch'"):
        propkit.measure(Nested(), batch=batch(0))
    with pytest.raises(ValueError, match="input 0 is on the meta device"):
        propkit.measure(mlp(), torch.randn(3, 12, device="meta"))


def test_some_empty_inputs_are_none_of_its_business() -> None:
    found = propkit.measure(Nested(), batch(), (torch.zeros(0, 4), torch.tensor(3)))
    assert found.verdict.startswith("healthy")


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.busy, self.idle = nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.busy(x), self.idle(x[:0])])


def test_a_layer_that_was_given_nothing_is_not_judged() -> None:
    found = propkit.measure(
        Experts(), torch.randn(16, 12), loss=lambda output: output.square().mean()
    )
    assert found.healthy
    assert found.verdict == "healthy: nothing found at 1 layers"
    assert found.table["verdict"].sel(site="idle") == ""


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_input_that_is_not_finite_is_named_and_no_layer_is_blamed(value: float) -> None:
    x, y = torch.randn(8, 12), torch.arange(8) % 3
    x[0, :3] = value
    found = propkit.measure(mlp(), x, y, loss=F.cross_entropy)
    assert found.verdict.startswith("the input itself is not finite (input 0: 3 of 96 values), so ")
    assert "exploding" not in repr(found)
    assert found.problems == {}
    assert not found.healthy
    assert not found.judged_by(propkit.diagnosis.verdict.Thresholds()).healthy
    assert set(found.table["verdict"].values.tolist()) == {""}
    nested = batch(8)
    nested["x"] = x
    found = propkit.measure(Nested(), batch=nested)
    assert "input 'batch': 3 of 97 values" in found.verdict
    found = propkit.measure(mlp(), torch.randn(8, 12), x[:, :3], loss=F.mse_loss)
    assert "the target: 3 of 24 values" in found.verdict


def test_a_mask_of_infinities_that_does_no_harm_is_only_noted() -> None:
    mask = torch.zeros(7, 12).index_fill(1, torch.tensor([0]), -math.inf)
    found = propkit.measure(Nested(), batch(), mask=mask)
    assert found.healthy
    assert found.verdict.startswith("healthy")
    assert "input 'mask': 7 of 84 values" in found.run.attributes["notes"][-1]


def test_nan_that_arises_in_the_network_is_still_its_own() -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = math.nan
    found = propkit.measure(model, torch.randn(8, 12))
    assert found.verdict.startswith("exploding: ")
    assert found.table["verdict"].sel(site="0") == "healthy"
    assert "input_not_finite" not in found.run.attributes


def test_any_kind_of_tensor_can_be_looked_at() -> None:
    x = torch.ones(4, 3)
    strange = x.clone()
    strange[0, 0] = math.nan
    kinds = [
        x.to_sparse(),
        x.to(torch.float8_e4m3fn),
        torch.nested.nested_tensor([x, x[:2]], layout=torch.jagged),
        torch.arange(3),
        strange.half(),
        strange.bfloat16(),
        strange.to(torch.complex64),
        np.ones(3),
        None,
    ]
    assert not_finite(kinds, [], {}) == (
        "input 4: 1 of 12 values, input 5: 1 of 12 values, input 6: 1 of 12 values"
    )


def test_a_model_on_the_meta_device_says_what_to_do() -> None:
    model = mlp().to("meta")
    with pytest.raises(
        ValueError, match=r"'0\.weight' is on the meta device.*model\.to_empty\(device="
    ):
        propkit.measure(model, torch.randn(8, 12))
    half = nn.Sequential(mlp(classes=12), nn.BatchNorm1d(12, device="meta", affine=False))
    with pytest.raises(ValueError, match=r"'1\.running_mean' is on the meta device"):
        propkit.measure(half, torch.randn(8, 12))
    report = propkit.compatibility(model, torch.randn(8, 12, device="meta"))
    assert report.problems == ()  # what applies where is known without values


def test_a_model_without_parameters_is_not_called_frozen() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Flatten())
    found = propkit.measure(model, torch.randn(8, 12), loss=lambda output: output.sum())
    assert (
        "the loss requires no gradient: the model has no parameters"
        in found.run.attributes["notes"]
    )
    found = propkit.measure(mlp().requires_grad_(False), torch.randn(8, 12), loss=lambda o: o.sum())
    assert "all parameters are frozen" in found.run.attributes["notes"][-1]
