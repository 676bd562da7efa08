"""Correlations of gradients at two inputs, against simulated networks and the paper's closed forms."""

import numpy as np
import pytest

from propkit.spectra.shattered_gradients import (
    idealised_gradient_correlation,
    residual_gradient_correlation,
)


def test_published_residual_value() -> None:
    assert residual_gradient_correlation(8)[0] == pytest.approx(0.187, abs=6e-4)
    np.testing.assert_allclose(residual_gradient_correlation(5, c=1.0), 1)
    assert residual_gradient_correlation(1).tolist() == [0.75]


def test_a_wide_residual_network() -> None:
    width, depth = 1200, 5
    found = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((2, width))
        masks, weights = [], []
        for _ in range(depth):
            weights.append(rng.standard_normal((width, width)) * np.sqrt(2 / width))
            masks.append(x > 0)
            x = x + (x * masks[-1]) @ weights[-1]
        delta = np.tile(rng.standard_normal(width), (2, 1))
        correlation = []
        for w, mask in zip(reversed(weights), reversed(masks), strict=True):
            delta = delta + (delta @ w.T) * mask
            correlation.append(delta[0] @ delta[1] / np.sqrt(np.prod((delta**2).sum(1))))
        found.append(correlation[::-1])
    np.testing.assert_allclose(np.mean(found, 0), residual_gradient_correlation(depth), atol=0.03)


def test_the_paper_s_idealisation() -> None:
    assert idealised_gradient_correlation(3) == 1 / 8
    assert idealised_gradient_correlation(3, "residual") == (3 / 4) ** 3
    # beta = 1: (1 + 1/(2l))/(1 + 1/l) for l = 1, 2, ...
    expected = (3 / 2 / 2) * (5 / 4 / (3 / 2)) * (7 / 6 / (4 / 3))
    assert idealised_gradient_correlation(3, "residual_batch_norm") == pytest.approx(expected)
    long = idealised_gradient_correlation(10_000, "residual_batch_norm") * np.sqrt(10_000)
    assert long == pytest.approx(2 / np.sqrt(np.pi), rel=1e-3)
    assert idealised_gradient_correlation(4, "residual_batch_norm", beta=0.0) == 1


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="depth >= 1"):
        residual_gradient_correlation(0)
    with pytest.raises(ValueError, match="between -1 and 1"):
        residual_gradient_correlation(2, 1.5)
    with pytest.raises(ValueError, match="unknown network"):
        idealised_gradient_correlation(2, "resnet")  # type: ignore[arg-type]
