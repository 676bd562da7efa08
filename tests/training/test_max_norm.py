import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from propkit.training import max_norm, max_norm_


def clipped(rows, c):
    """Keras' formula without ε, row by row in NumPy."""
    out = rows.copy()
    for i, row in enumerate(rows.reshape(len(rows), -1)):
        norm = np.sqrt((row**2).sum())
        out[i] *= np.clip(norm, 0, c) / norm if norm else 1
    return out


@given(
    shape=st.sampled_from([(5, 7), (4, 3, 3), (6, 2, 3, 3), (2, 3, 1, 2, 2)]),
    c=st.floats(0.1, 4),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_clips_each_units_incoming_weights(shape, c, seed):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weight[0] = 0
    expected = clipped(weight.numpy(), c)
    np.testing.assert_allclose(max_norm_(weight, c).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("groups", [1, 2])
def test_unit_of_a_transposed_convolution_is_an_output_channel(groups):
    """The unit's incoming weights, found by what each output channel reacts to."""
    layer = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False).double()

    def incoming():
        basis = torch.eye(4, dtype=torch.float64).view(4, 4, 1, 1)
        return layer(basis).transpose(0, 1).flatten(1).detach().numpy()

    expected = clipped(incoming(), 0.3)
    direct = layer.weight.detach().clone()
    max_norm_(layer, 0.3)
    np.testing.assert_allclose(incoming(), expected, rtol=1e-12)
    max_norm_(direct, 0.3, groups=groups, transposed=True)
    assert torch.equal(direct, layer.weight)


def test_small_weights_keep_their_bits_and_biases_too():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.9)
        model[0].bias.fill_(50)
        model[1].weight.fill_(50)
        model[3].weight[0] *= 100
    before = copy.deepcopy(model)
    assert max_norm_(model, 2.0) is model
    changed = [
        n for n, p in model.named_parameters() if not torch.equal(p, before.get_parameter(n))
    ]
    assert changed == ["3.weight"]
    assert torch.equal(model[3].weight[1], before[3].weight[1])


def test_half_precision_norms_do_not_overflow():
    weight = torch.full((2, 4000), 4e4, dtype=torch.float16)
    norm = max_norm_(weight, 2.0).double().norm(dim=1)
    torch.testing.assert_close(norm, torch.full_like(norm, 2.0), rtol=1e-2, atol=0)


def test_handle_limits_after_each_step_and_leaves_momentum():
    model, byhand = nn.Linear(6, 3), nn.Linear(6, 3)
    byhand.load_state_dict(model.state_dict())
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    optimizers = [torch.optim.SGD(m.parameters(), lr=2.0, momentum=0.9) for m in (model, byhand)]
    with max_norm(model, 0.5) as handle:
        for _ in range(3):
            for m, optimizer in zip((model, byhand), optimizers, strict=True):
                optimizer.zero_grad()
                m(x).square().mean().backward()
                optimizer.step()
            with torch.no_grad():
                byhand.weight.copy_(torch.from_numpy(clipped(byhand.weight.numpy(), 0.5)))
            torch.testing.assert_close(model.weight, byhand.weight)
            assert model.weight.norm(dim=1).max() <= 0.5 + 1e-6
    assert handle.calls == 3
    buffers = [
        o.state[m.weight]["momentum_buffer"]
        for m, o in zip((model, byhand), optimizers, strict=True)
    ]
    torch.testing.assert_close(*buffers)


def test_wrong_arguments():
    for function in (max_norm_, max_norm):
        with pytest.raises(ValueError, match="must be positive, found 0"):
            function(nn.Linear(2, 2), 0)
    with pytest.raises(ValueError, match="two or more dimensions"):
        max_norm_(torch.ones(3))
    with pytest.raises(ValueError, match="a module knows its own"):
        max_norm_(nn.Linear(2, 2), 1.0, transposed=True)
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="weight of the module is computed"):
        max_norm_(layer)


def test_the_limit_is_two_unless_said():
    weight = torch.tensor([[0.0, 5.0], [1.9, 0.0]])
    expected = torch.tensor([[0.0, 2.0], [1.9, 0.0]])
    torch.testing.assert_close(max_norm_(weight.clone()), expected)
    layer = nn.Linear(2, 2)
    layer.weight.data.copy_(weight)
    with max_norm(layer) as handle:
        handle()
    torch.testing.assert_close(layer.weight.data, expected)


def test_handle_counts_every_other_step_of_the_optimizer_it_listens_to():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    ours, other = (torch.optim.SGD(layer.parameters(), lr=0.1) for layer in model)
    model(torch.ones(2, 3)).sum().backward()
    with max_norm(model, 1.0, 2, optimizer=ours) as handle:
        for optimizer in (other, ours, other, other, ours, ours):
            optimizer.step()
    assert (handle.steps, handle.calls) == (3, 1)


def test_which_module_and_what_belongs_to_a_weight():
    with pytest.raises(ValueError, match="a module knows its own"):
        max_norm_(nn.ConvTranspose1d(2, 2, 1, groups=2), 1.0, groups=2)
    inner = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="weight of 1 is computed"):
        max_norm_(nn.Sequential(nn.ReLU(), inner))
