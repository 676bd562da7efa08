"""Each probe as a pure function, on the cases that training rarely meets."""

import numpy as np
import pytest
import torch
from torch import nn

from propkit.probes import activation, filter_correlation, weight
from propkit.probes._filters import filter_matrix
from propkit.probes.weight import weight_update


def test_correlation_of_special_banks() -> None:
    conv = nn.Conv2d(2, 4, 3)
    same = torch.ones(4, 2, 3, 3)
    assert float(filter_correlation(same, conv)["correlation"]) == pytest.approx(1)
    orthogonal = torch.eye(4).reshape(4, 4, 1, 1)
    assert float(filter_correlation(orthogonal, conv)["correlation"]) == pytest.approx(0, abs=1e-15)
    simplex = torch.eye(4) - 0.25  # the least correlated filters there are: -1/(M-1)
    assert float(filter_correlation(simplex, conv)["correlation"]) == pytest.approx(-1 / 3)


def test_filters_without_direction_are_left_out() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    found = filter_correlation(bank, nn.Linear(2, 3))
    assert float(found["pairs"]) == 1
    assert float(found["correlation"]) == pytest.approx(0.5**0.5)
    alone = filter_correlation(torch.ones(1, 3), nn.Linear(3, 1))
    assert float(alone["pairs"]) == 0
    assert np.isnan(float(alone["correlation"]))
    broken = filter_correlation(torch.tensor([[1.0, float("nan")], [1.0, 1.0]]), nn.Linear(2, 2))
    assert np.isnan(float(broken["correlation"]))


@pytest.mark.parametrize("groups", [1, 2])
def test_filters_of_a_transposed_convolution(groups: int) -> None:
    """Filter o is what an output channel sees: the kernels that connect it to the inputs of its group."""
    layer = nn.ConvTranspose2d(4, 6, 3, groups=groups)
    w = layer.weight.detach()
    found = filter_matrix(w, layer)
    per_group_in, per_group_out = 4 // groups, 6 // groups
    for o in range(6):
        g, local = divmod(o, per_group_out)
        expected = w[g * per_group_in : (g + 1) * per_group_in, local].double().flatten()
        np.testing.assert_array_equal(found[o], expected)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 6)])
def test_weight_of_wide_and_tall_matrices(shape) -> None:
    w = torch.randn(shape, dtype=torch.float64)
    found = weight(w, nn.Linear(1, 1))
    np.testing.assert_allclose(found["norm"], np.linalg.norm(w))
    np.testing.assert_allclose(found["spectral_norm"], np.linalg.norm(w, 2))
    W = w.numpy().T  # the paper's W: a filter per column
    np.testing.assert_allclose(found["orthonormality"], np.linalg.norm(W.T @ W - np.eye(shape[0])))


def test_the_least_distance_from_orthonormality() -> None:
    """With more filters than dimensions it is sqrt(fan_out - fan_in), reached by orthonormal columns."""
    q, _ = torch.linalg.qr(torch.randn(20, 8, dtype=torch.float64))
    assert float(weight(q, nn.Linear(8, 20))["orthonormality"]) == pytest.approx(12**0.5)


def test_a_diverged_weight_gives_nan_not_an_error() -> None:
    for bad in (float("nan"), float("inf")):
        w = torch.eye(3)
        w[0, 0] = bad
        assert not np.isfinite(float(weight(w, nn.Linear(3, 3))["spectral_norm"]))


def test_dead_units_by_layout() -> None:
    channels = torch.ones(2, 3, 4, 4)
    channels[:, 1] = 0
    channels[0, 2] = 0  # alive in the other sample
    assert float(activation(channels, nn.ReLU())["dead"]) == pytest.approx(1 / 3)
    tokens = torch.ones(2, 5, 4)
    tokens[..., 0] = 0
    assert float(activation(tokens, nn.ReLU())["dead"]) == pytest.approx(1 / 4)
    sequence = torch.ones(2, 5, 4)
    sequence[:, 0] = 0
    assert float(activation(sequence, nn.Conv1d(1, 5, 1))["dead"]) == pytest.approx(1 / 5)
    assert float(activation(sequence, nn.Conv1d(1, 5, 1))["zeros"]) == pytest.approx(1 / 5)
    vector = torch.tensor([0.0, 2.0])
    assert float(activation(vector, nn.ReLU())["dead"]) == pytest.approx(0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "layout", ["dense", "channels_last", "strided", "transposed", "one sample"]
)
def test_statistics_of_large_outputs(layout: str, dtype: torch.dtype) -> None:
    """An output of 2 MB and more is gone through in pieces."""
    x = torch.randn(31, 8, 48, 52).relu_()
    x[:, 3] = 0
    x[:-1, 5] = 0  # alive in the last sample alone
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        x = x[:, :, ::2]
    elif layout == "transposed":
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    elif layout == "one sample":
        x = x[-1:].repeat(1, 1, 8, 8)
    x = x.to(dtype) - (0.25 if layout == "dense" else 0)
    exact = x.double().numpy()
    found = activation(x, nn.ReLU())
    expected = {
        "mean": exact.mean(),
        "mean_square": (exact**2).mean(),
        "mean_abs": np.abs(exact).mean(),
        "max": exact.max(),
        "zeros": (exact == 0).mean(),
        "dead": (exact == 0).all((0, 2, 3)).mean(),
    }
    assert list(found) == list(expected)
    for name, value in expected.items():  # float32 sums over one map at least
        np.testing.assert_allclose(found[name], value, rtol=5e-6, err_msg=name)


@pytest.mark.parametrize("before", [0.0, 2.0, float("nan"), float("inf")])
@pytest.mark.parametrize("change", [0.0, 1.0, float("nan"), float("inf")])
def test_the_relative_size_of_a_step_is_the_quotient_that_tensors_give(
    before: float, change: float
) -> None:
    size, moved = torch.tensor([[before, 0.0]]), torch.tensor([[change, 0.0]])
    expected = moved.norm() / size.norm()
    found = weight_update(size, moved)["update_ratio"]
    assert isinstance(found, float)  # on a CPU
    torch.testing.assert_close(torch.tensor(found), expected, equal_nan=True)
