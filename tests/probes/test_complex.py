"""Probes of complex layers, against the definitions."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from propkit.probes.activation import activation
from propkit.probes.filter_correlation import filter_correlation
from propkit.probes.weight import weight
from propkit.spectra.matrix import spectral_norm


@pytest.mark.parametrize("shape", [(4, 3), (3, 7), (600, 520)])
def test_weights(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    w = torch.randn(shape, dtype=torch.complex64)
    values = np.linalg.svd(w.numpy().astype(complex), compute_uv=False)
    found = weight(w, nn.Linear(shape[1], shape[0]))
    assert float(found["norm"]) == pytest.approx(np.sqrt((values**2).sum()), rel=1e-6)
    # above order 512 by Lanczos steps
    assert float(found["spectral_norm"]) == pytest.approx(
        values[0], rel=2e-3 if 600 in shape else 1e-6
    )
    gram = w.numpy().conj() @ w.numpy().T  # of the filters, which are rows
    assert float(found["orthonormality"]) == pytest.approx(
        np.linalg.norm(gram - np.eye(shape[0])), rel=1e-5
    )


def test_spectral_norm_without_a_gram_matrix() -> None:
    torch.manual_seed(0)
    w = torch.randn(5, 4, dtype=torch.complex128)
    assert float(spectral_norm(w)) == pytest.approx(float(torch.linalg.matrix_norm(w, 2)))


def test_correlation_of_filters() -> None:
    torch.manual_seed(0)
    w = torch.randn(4, 3, dtype=torch.complex128)
    unit = w / torch.linalg.vector_norm(w, dim=1, keepdim=True)
    cosines = (unit.conj() @ unit.mT).real.numpy()[np.triu_indices(4, 1)]
    found = filter_correlation(w, nn.Linear(3, 4))
    assert float(found["correlation"]) == pytest.approx(cosines.mean())
    assert float(found["pairs"]) == 6


def test_outputs() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 4, dtype=torch.complex64)
    x[:, 1] = 0
    found = {k: float(v) for k, v in activation(x, nn.Linear(4, 4)).items()}
    sizes = np.abs(x.numpy().astype(complex))
    assert found["mean_square"] == pytest.approx((sizes**2).mean(), rel=1e-6)
    assert found["mean_abs"] == pytest.approx(sizes.mean(), rel=1e-6)
    assert (found["zeros"], found["dead"]) == pytest.approx((0.25, 0.25))
    assert math.isnan(found["mean"])
    assert math.isnan(found["max"])
