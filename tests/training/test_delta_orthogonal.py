import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from propkit.training import delta_orthogonal_, initialize


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (4, 6, 3, 3), (5, 5, 5, 3), (4, 3, 2, 2)])
@pytest.mark.parametrize("gain", [1.0, 1.5])
def test_all_singular_values_of_the_zero_padded_convolution_are_the_gain(shape, gain):
    weight = delta_orthogonal_(torch.empty(shape, dtype=torch.float64), gain, seeded())
    basis = torch.eye(shape[1] * 20, dtype=torch.float64).view(-1, shape[1], 5, 4)
    padded = F.pad(basis, [p for k in (shape[3], shape[2]) for p in ((k - 1) // 2, k // 2)])
    matrix = F.conv2d(padded, weight).flatten(1).T.numpy()
    np.testing.assert_allclose(np.linalg.svd(matrix, compute_uv=False), gain, rtol=1e-12)


def test_initialize_does_groups_one_and_three_axes_and_linear_layers():
    model = nn.Sequential(
        nn.Conv2d(8, 12, 3, groups=4), nn.Conv1d(3, 3, 5), nn.Conv3d(2, 4, 3), nn.Linear(7, 5)
    )
    initialize(model, "delta_orthogonal", seeded())
    for part in model[0].weight[:, :, 1, 1].split(3):
        torch.testing.assert_close(part.T @ part, torch.eye(2))
    assert model[0].weight.count_nonzero() == 12 * 2
    centre = model[1].weight[:, :, 2]
    torch.testing.assert_close(centre @ centre.T, torch.eye(3))
    assert model[2].weight.count_nonzero() == 8
    torch.testing.assert_close(model[3].weight @ model[3].weight.T, torch.eye(5))


def test_uniform_over_rotations_and_reproducible():
    draws = [delta_orthogonal_(torch.empty(2, 2, 3, 3), generator=seeded(s)) for s in range(300)]
    first = torch.stack([d[0, 0, 1, 1] for d in draws])
    assert abs(float((first > 0).float().mean()) - 0.5) < 0.1
    assert torch.equal(draws[7], delta_orthogonal_(torch.empty(2, 2, 3, 3), generator=seeded(7)))


def test_wrong_arguments():
    with pytest.raises(ValueError, match="two or more dimensions"):
        delta_orthogonal_(torch.empty(3))
    with pytest.raises(ValueError, match="3 groups do not divide 4"):
        delta_orthogonal_(torch.empty(4, 2, 3), channel_groups=3)
