"""The loops of Numba against NumPy in float64, and that the probes give the same without them."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from propkit.probes import _fused, activation, filter_correlation
from propkit.probes._fused import can_fuse, fused_directions, fused_square_sum, fused_statistics
from propkit.probes._reductions import mean_square

pytestmark = pytest.mark.skipif(not can_fuse(torch.ones(1)), reason="Numba is not installed")

LENGTHS = [1, 7, 31, 32, 33, 1023, 1024, 1025, 70_001]


def _reference(x: np.ndarray) -> list[float]:
    x = x.astype(np.float64)
    return [x.sum(), (x * x).sum(), np.abs(x).sum(), x.max(), np.count_nonzero(x)]


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("kind", ["normal", "relu", "negative", "shifted", "zero", "minus zero"])
def test_statistics_of_any_length(n: int, kind: str) -> None:
    x = torch.randn(n, generator=torch.Generator().manual_seed(n))
    change = {
        "normal": lambda x: x,
        "relu": torch.relu,
        "negative": lambda x: -x.abs() - 0.5,
        "shifted": lambda x: x + 100,
        "zero": torch.zeros_like,
        "minus zero": lambda x: -torch.zeros_like(x),
    }
    x = change[kind](x)
    expected = _reference(x.numpy())
    found = fused_statistics(x, 0)
    scale = max(expected[2], 1e-30)  # a sum of both signs is as exact as the sum of sizes
    assert abs(found.total - expected[0]) <= 1e-6 * scale
    np.testing.assert_allclose(found[1:3], expected[1:3], rtol=1e-6)
    assert list(found[3:]) == [*expected[3:], n - expected[4]]  # each value a unit
    np.testing.assert_allclose(fused_square_sum(x), expected[1], rtol=1e-6)


@pytest.mark.parametrize("where", [0, 5, 1023, 1024, 4999])
def test_one_value_decides(where: int) -> None:
    x = torch.full((5000,), -2.0)
    x[where] = -1
    assert fused_statistics(x, 0).largest == -1
    x[where] = 3
    assert fused_statistics(x, 0).largest == 3
    for bad in (float("nan"), -float("nan")):
        x[where] = bad
        assert np.isnan(fused_statistics(x, 0).squares)
        assert np.isnan(fused_square_sum(x))
    x[where] = float("inf")
    assert fused_statistics(x, 0).largest == fused_square_sum(x) == float("inf")


@given(st.tuples(*[st.integers(1, 5)] * 4), st.floats(0, 1), st.booleans(), st.integers(0, 2**31))
def test_units_that_are_zero(shape, share: float, last: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(shape, generator=generator) < share).float() * -1.5
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    expected = (x.numpy() == 0).all((0, 2, 3)).sum()
    assert fused_statistics(x, 1).dead == expected


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 200])
def test_a_unit_that_lives_in_one_row(rows: int) -> None:
    for row in {0, rows // 2, rows - 1}:
        x = torch.zeros(rows, 3)
        x[:, 0] = 1
        x[row, 1] = -1
        assert fused_statistics(x, 1).dead == 1
        assert fused_statistics(x.T.contiguous(), 0).dead == 1


def test_other_layouts_are_left_to_pytorch() -> None:
    x = torch.randn(4, 3, 6, 5)
    assert fused_statistics(x[:, :, ::2], 1) is None
    assert fused_statistics(x.transpose(2, 3), 1) is None
    assert not can_fuse(x.double())
    assert not can_fuse(x.bfloat16())


def test_memory_that_does_not_hold_the_values() -> None:
    """A view that negates when it is read, and a subclass, which may keep its values anywhere."""
    negated = torch._neg_view(torch.ones(2, 3))
    assert negated.is_neg()
    assert float(activation(negated, nn.ReLU())["mean"]) == -1
    assert float(mean_square(negated)) == 1

    class Elsewhere(torch.Tensor):
        pass

    subclass = torch.ones(2, 3).as_subclass(Elsewhere)
    assert not can_fuse(subclass)
    assert fused_square_sum(subclass) is None
    assert float(mean_square(subclass)) == 1
    assert can_fuse(nn.Parameter(torch.ones(2, 3)))


def test_many_threads_share_out_what_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert can_fuse(torch.empty(1 << 18))
    assert not can_fuse(torch.empty((1 << 18) + 1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(8, 3, 5, 5),
        lambda: torch.randn(8, 3, 5, 5).relu_().contiguous(memory_format=torch.channels_last),
        lambda: torch.zeros(4, 6),
        lambda: torch.randn(4, 6, 7) * 1e-25,  # squares that float32 does not hold
        lambda: torch.randn(4, 6, 7) * 1e25,
        lambda: torch.randn(4, 3, 6, 5)[:, :, ::2],
        lambda: torch.tensor([[0.0, float("nan")], [0.0, 1.0]]),
        lambda: torch.full((2, 3, 4, 4), float("nan")),
        lambda: torch.tensor([float("-inf"), 2.0]),
        lambda: torch.tensor(1.5),
        lambda: torch.empty(0, 3),
    ],
)
def test_the_same_without_numba(make, monkeypatch: pytest.MonkeyPatch) -> None:
    x = make()
    fused = activation(x, nn.ReLU())
    monkeypatch.setattr(_fused, "_kernels", lambda: None)
    plain = activation(x, nn.ReLU())
    assert list(fused) == list(plain)
    for name, value in plain.items():
        scale = float(x.abs().nan_to_num(0, 0).max()) if x.numel() else 0
        np.testing.assert_allclose(fused[name], value, rtol=2e-6, atol=1e-7 * scale, err_msg=name)


def test_a_map_with_nan_is_not_dead() -> None:
    found = activation(torch.full((2, 3, 4, 4), float("nan")), nn.ReLU())
    assert float(found["dead"]) == float(found["zeros"]) == 0
    assert np.isnan(float(found["mean"]))


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "propkit.probes._kernels")
    monkeypatch.delattr("propkit.probes._kernels")
    _fused._kernels.cache_clear()
    try:
        assert not can_fuse(torch.ones(3))
        assert float(activation(torch.ones(2, 3), nn.ReLU())["mean"]) == 1
    finally:
        _fused._kernels.cache_clear()


def test_nowhere_to_keep_what_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the package and the home are read-only: compiled again in each process, but it works."""
    numba = pytest.importorskip("numba")
    from propkit.probes import _kernels

    cfunc = numba.cfunc

    def refusing(*args, cache=False, **kwargs):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return cfunc(*args, **kwargs)

    monkeypatch.setattr(numba, "cfunc", refusing)
    signature = numba.types.float64(numba.types.float64)
    assert _kernels._compile(signature)(lambda x: x + 1).ctypes(2.0) == 3


@pytest.mark.parametrize("numba", [True, False])
def test_dead_channels_of_a_convolution_without_a_batch(numba: bool, monkeypatch) -> None:
    if not numba:
        monkeypatch.setattr(sys.modules["propkit.probes.activation"], "can_fuse", lambda _: False)
    x = torch.randn(4, 6, 6)
    x[1:3] = 0
    for layer in (nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(2, 4, 3)):
        assert float(activation(x, layer)["dead"]) == 0.5
        assert float(activation(x[None], layer)["dead"]) == 0.5
    assert float(activation(x[:, 0], nn.Conv1d(2, 4, 3))["dead"]) == 0.5


@given(
    st.integers(1, 9),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.sampled_from([1e-42, 1e-25, 1.0, 1e25]),
    st.sets(st.integers(0, 8)),
    st.integers(0, 2**31),
)
def test_correlation_is_the_mean_cosine_of_pairs(filters, shape, size, zero, seed: int) -> None:
    """Against each pair's cosine, in float64, at any size of numbers; filters of zero norm have no direction."""
    w = torch.randn(filters, *shape, generator=torch.Generator().manual_seed(seed)) * size
    w[[i for i in zero if i < filters]] = 0
    rows = [v for v in w.double().flatten(1).numpy() if v.any()]
    cosines = [
        a @ b / np.sqrt((a @ a) * (b @ b)) for i, a in enumerate(rows) for b in rows[i + 1 :]
    ]
    found = filter_correlation(w, nn.Identity())
    assert fused_directions(w) is not None
    assert found["pairs"] == len(cosines)
    expected = np.mean(cosines) if cosines else float("nan")
    np.testing.assert_allclose(found["correlation"], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_correlation_of_a_layer_that_has_diverged(bad: float) -> None:
    w = torch.randn(4, 3, 2, 2)
    w[1, 0, 1, 0] = bad
    assert np.isnan(float(filter_correlation(w, nn.Conv2d(3, 4, 2))["correlation"]))


def test_correlation_of_weights_that_lie_otherwise(monkeypatch) -> None:
    w = torch.randn(6, 4, 3, 3)
    layers = {
        "channels last": (w.to(memory_format=torch.channels_last), nn.Conv2d(4, 6, 3)),
        "transposed": (w, nn.ConvTranspose2d(6, 4, 3)),
        "transposed, groups": (w, nn.ConvTranspose2d(6, 8, 3, groups=2)),
        "slices": (w[::2], nn.Conv2d(4, 3, 3)),
        "float64": (w.double(), nn.Conv2d(4, 6, 3)),
        "half": (w.half(), nn.Conv2d(4, 6, 3)),
        "as it is": (nn.Parameter(w), nn.Conv2d(4, 6, 3)),
    }
    found = {name: filter_correlation(*of) for name, of in layers.items()}
    monkeypatch.setattr(_fused, "_kernels", lambda: None)
    for name, of in layers.items():
        without = filter_correlation(*of)
        assert found[name]["pairs"] == without["pairs"], name
        np.testing.assert_allclose(
            found[name]["correlation"], without["correlation"], rtol=1e-12, err_msg=name
        )
