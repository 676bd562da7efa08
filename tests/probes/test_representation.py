"""Conditioning of representations against NumPy's SVD in float64 and an explicit loop over pairs."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import propkit
from propkit.probes import representation
from propkit.registry import DEFAULT_PROBES


def _oracle(samples: np.ndarray) -> dict[str, float]:
    h = samples.reshape(len(samples), -1).astype(np.float64)
    sigma = np.linalg.svd(h, compute_uv=False)
    p = sigma**2 / (sigma**2).sum()
    p_nonzero = p[p > 0]
    cosines = [
        h[i] @ h[j] / np.linalg.norm(h[i]) / np.linalg.norm(h[j])
        for i in range(len(h))
        for j in range(i + 1, len(h))
        if h[i].any() and h[j].any()
    ]
    full_rank = np.linalg.matrix_rank(h) == len(sigma)
    return {
        "condition_number": sigma[0] / sigma[-1] if full_rank else np.inf,
        "top_share": p[0],
        "effective_rank": np.exp(-(p_nonzero * np.log(p_nonzero)).sum()),
        "mean_cosine": np.mean(cosines) if cosines else np.nan,
    }


def _values(output: torch.Tensor) -> dict[str, float]:
    found = representation(output)
    assert all(v.ndim == 0 and v.dtype == torch.float64 for v in found.values())
    return {name: float(v) for name, v in found.items()}


def _check(output: torch.Tensor, **tolerance: float) -> None:
    expected = _oracle(output.double().numpy())
    found = _values(output)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(
            found[name], value, err_msg=name, **({"rtol": 1e-9, "atol": 1e-12} | tolerance)
        )


@given(st.integers(1, 9), st.lists(st.integers(1, 5), max_size=3), st.integers(0, 2**31))
def test_any_shape(samples: int, rest: list[int], seed: int) -> None:
    _check(torch.randn(samples, *rest, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(40, 8), (8, 40), (6, 3, 4, 4), (17,)])
def test_dtypes(dtype, shape) -> None:
    _check(torch.randn(shape).to(dtype))


@pytest.mark.parametrize("condition", [1e3, 1e9, 1e13])
def test_large_condition_numbers_keep_their_digits(condition: float) -> None:
    """A Gram matrix would lose them beyond 1e8."""
    generator = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.randn(30, 12, dtype=torch.float64, generator=generator))[0]
    v = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64, generator=generator))[0]
    sigma = torch.logspace(0, -np.log10(condition), 12, dtype=torch.float64)
    found = _values(u @ (sigma[:, None] * v))
    # the input itself is rounded: an absolute perturbation of about eps moves sigma_min
    assert found["condition_number"] == pytest.approx(condition, rel=max(1e-9, 1e-15 * condition))


def test_beyond_512_the_gram_matrix_takes_over() -> None:
    x = torch.randn(600, 520, generator=torch.Generator().manual_seed(0))
    _check(x, rtol=1e-7)
    x[:, 7] = 1e-9 * x[:, 7]  # condition number 1e10: full rank for the SVD, beyond a Gram matrix
    assert _values(x)["condition_number"] == np.inf


def test_rank_deficiency_is_infinite() -> None:
    x = torch.randn(10, 4)
    x[:, 2] = 0  # a dead unit
    assert _values(x)["condition_number"] == np.inf
    same = torch.randn(1, 6).expand(5, 6)
    found = _values(same)
    assert found["condition_number"] == np.inf
    np.testing.assert_allclose(
        [found["top_share"], found["effective_rank"], found["mean_cosine"]], 1, rtol=1e-12
    )


def test_orthonormal_samples_are_perfectly_conditioned() -> None:
    q = torch.linalg.qr(torch.randn(12, 5, dtype=torch.float64))[0].mT
    found = _values(q)
    np.testing.assert_allclose(
        list(found.values()), [1, 0.2, 5, 0], rtol=1e-12, atol=1e-12, err_msg=str(list(found))
    )


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_scale_does_not_matter(scale: float) -> None:
    x = torch.randn(9, 5, dtype=torch.float64)
    np.testing.assert_allclose(list(_values(x * scale).values()), list(_values(x).values()))


def test_zero_samples_have_no_direction() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    assert _values(x)["mean_cosine"] == pytest.approx(0.5**0.5)
    alone = _values(torch.tensor([[1.0, 2.0]]))
    assert np.isnan(alone["mean_cosine"])
    assert alone["condition_number"] == 1


@pytest.mark.parametrize(
    "bad",
    [torch.zeros(3, 4), torch.empty(0, 4), torch.empty(3, 0)]
    + [torch.full((3, 4), v) for v in (float("nan"), float("inf"))],
)
def test_no_spectrum_is_nan_not_an_error(bad) -> None:
    assert all(np.isnan(v) for v in _values(bad).values())


def test_complex_representations() -> None:
    x = torch.randn(7, 4, dtype=torch.complex64)
    sigma = np.linalg.svd(x.numpy().astype(np.complex128), compute_uv=False)
    assert _values(x)["condition_number"] == pytest.approx(sigma[0] / sigma[-1])


def test_it_is_recorded_where_it_is_asked_for_and_not_by_default() -> None:
    assert "representation" not in DEFAULT_PROBES
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    x = torch.randn(9, 4)
    with propkit.attach(model, probes=representation) as recorder:
        model(x)
        recorder.step()
    ds = recorder.run["representation"].isel(step=0)
    assert ds["site"].values.tolist() == ["0", "1"]
    for site, output in (("0", model[0](x)), ("1", model(x))):
        for name, value in _oracle(output.detach().double().numpy()).items():
            np.testing.assert_allclose(ds[name].sel(site=site), value, rtol=1e-9)
