"""Which convolutions look at images, and that their weights can be folded back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import propkit
from propkit.probes import filters


@given(*[st.integers(1, 4)] * 4)
def test_a_weight_can_be_folded_back(count, channels, height, width) -> None:
    weight = torch.randn(count, channels, height, width)
    found = filters(weight)
    shape = [int(found[name]) for name in ("channels", "height", "width")]
    assert torch.equal(found["value"].reshape(-1, *shape), weight)


@pytest.mark.parametrize(
    ("layer", "seen"),
    [
        (nn.Conv2d(3, 4, 3), True),
        (nn.Conv2d(1, 4, 3), True),
        (nn.Conv2d(4, 4, 3), False),
        (nn.Conv2d(3, 3, 3, groups=3), False),
        (nn.Conv1d(3, 4, 3), False),
        (nn.ConvTranspose2d(3, 4, 3), False),
        (nn.Linear(3, 4), False),
    ],
)
def test_sites_are_convolutions_of_images(layer, seen) -> None:
    assert callable(filters.sites)
    assert filters.sites(layer) == seen


def test_the_first_convolution_is_recorded_now_and_then() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weights = []
    with propkit.attach(model, probes=["filters"]) as recorder:
        for _ in range(12):
            weights.append(model[0].weight.detach().clone())
            optimizer.zero_grad()
            model(torch.randn(2, 3, 6, 6)).square().mean().backward()
            optimizer.step()
    found = recorder.run["filters"]
    assert found["site"].values.tolist() == ["0"]
    assert found["step"].values.tolist() == [0, 1, 2, 4, 6, 10]
    assert found["value"].dtype == "float32"
    for step in (0, 4, 10):
        recorded = torch.tensor(found["value"].sel(step=step).values)
        assert torch.equal(recorded, weights[step].flatten())
