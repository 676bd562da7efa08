import copy

import pytest
import torch
from torch import nn

from propkit.models import plain
from propkit.training import (
    DivergenceError,
    add_orthonormality_gradient_,
    check_orthonormality_stability,
    initialize,
    orthonormality,
    orthonormality_stability_limit,
)


def linear(W):
    layer = nn.Linear(W.shape[1], W.shape[0], bias=False, dtype=W.dtype)
    layer.weight.data.copy_(W)
    return layer


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def value(*arguments):
    return float(orthonormality(*arguments).detach())


def mixed():
    """Every kind of layer, fan_in above and below fan_out, biases, norms, a grouped convolution."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3),
        nn.BatchNorm2d(5),
        nn.Conv2d(5, 20, 1),
        nn.Conv2d(20, 8, 3, groups=4),
        nn.Conv1d(2, 3, 3),
        nn.Conv3d(1, 30, 3),
        nn.Linear(6, 4),
        nn.LayerNorm(4),
    ).double()


def test_value_is_equation_3_in_the_papers_layout():
    W = gaussian(4, 7)
    paper = W.T  # fan_in x fan_out
    expected = 0.3 / 2 * torch.linalg.matrix_norm(paper.T @ paper - torch.eye(4)) ** 2
    torch.testing.assert_close(orthonormality(linear(W), 0.3).detach(), expected)


def test_sum_over_layers_by_an_explicit_loop():
    model = initialize(plain(8), "he", torch.Generator().manual_seed(0)).double()
    total = 0.0
    for p in model.parameters():
        if p.ndim >= 2:
            rows = p.detach().flatten(1).numpy()
            for i in range(len(rows)):
                for j in range(len(rows)):
                    total += float((rows[i] @ rows[j] - (i == j)) ** 2)
    assert float(orthonormality(model).detach()) == pytest.approx(1e-4 / 2 * total, rel=1e-10)


@pytest.mark.parametrize("groups", ["ceil", "literal"])
def test_gradient_form_is_autograd_of_the_scalar(groups):
    model, copied = mixed(), mixed()
    for p in (*model.parameters(), *copied.parameters()):
        p.grad = torch.full_like(p, 0.5)
    orthonormality(model, 0.7, groups).backward()
    add_orthonormality_gradient_(copied, 0.7, groups)
    for (name, p), q in zip(model.named_parameters(), copied.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-12, atol=1e-12, msg=name)
    changed = [n for n, p in copied.named_parameters() if not (p.grad == 0.5).all()]
    assert changed == ["0.weight", "2.weight", "3.weight", "4.weight", "5.weight", "6.weight"]


def test_gradient_formula():
    W = gaussian(4, 7)
    layer = linear(W)
    add_orthonormality_gradient_(layer, 0.2)
    torch.testing.assert_close(layer.weight.grad, 2 * 0.2 * (W @ W.T - torch.eye(4)) @ W)


def test_gradient_passes_gradcheck():
    layer = linear(gaussian(3, 5))

    def function(weight):
        return torch.func.functional_call(_Penalty(layer), {"layer.weight": weight}, ())

    assert torch.autograd.gradcheck(function, layer.weight.detach().clone().requires_grad_())


class _Penalty(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self):
        return orthonormality(self.layer, 0.4)


def test_zero_on_orthonormal_kernels():
    model = initialize(mixed(), "orthonormal", torch.Generator().manual_seed(0))
    assert value(model, 1.0) < 1e-20
    add_orthonormality_gradient_(model, 1.0)
    assert all(p.grad.abs().max() < 1e-12 for p in model.parameters() if p.ndim >= 2)


@pytest.mark.parametrize(("scale", "kernels"), [(2.0, 4), (0.5, 3), (3.0, 1)])
def test_closed_form_for_scaled_orthonormal_kernels(scale, kernels):
    """W = s·Q: the penalty is λ/2·M·(s² − 1)²."""
    Q = torch.linalg.qr(gaussian(6, kernels)).Q.T
    expected = 0.5 / 2 * kernels * (scale**2 - 1) ** 2
    assert value(linear(scale * Q), 0.5) == pytest.approx(expected)


@pytest.mark.parametrize(("fan_out", "fan_in"), [(5, 9), (20, 8), (9, 9)])
def test_descent_reaches_the_minimum_zero_with_groups(fan_out, fan_in):
    layer = linear(0.3 * gaussian(fan_out, fan_in))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        add_orthonormality_gradient_(layer, 1.0)
        optimizer.step()
    assert value(layer, 1.0) < 1e-9


def test_minimum_without_groups_is_the_surplus_of_kernels():
    """More kernels than inputs in one group cannot be orthonormal: ‖WWᵀ − I‖² ≥ fan_out − fan_in.

    The groups are what makes the minimum zero; here the bound is met by descent on the plain formula.
    """
    W = 0.3 * gaussian(20, 8)
    for _ in range(600):
        W = W - 0.05 * 2 * (W @ W.T - torch.eye(20)) @ W
    assert float(((W @ W.T - torch.eye(20)) ** 2).sum()) == pytest.approx(12, abs=1e-6)
    assert value(linear(W), 2.0) < 12


def test_shared_weights_count_once():
    first = linear(gaussian(3, 3))
    second = linear(gaussian(3, 3))
    second.weight = first.weight
    tied = nn.Sequential(first, second)
    assert value(tied) == value(first)
    add_orthonormality_gradient_(tied, 0.1)
    alone = linear(first.weight.detach())
    add_orthonormality_gradient_(alone, 0.1)
    torch.testing.assert_close(first.weight.grad, alone.weight.grad)


def test_frozen_weights_are_left_alone_and_missing_gradients_made():
    model = nn.Sequential(linear(gaussian(3, 4)), linear(gaussian(2, 3)))
    model[0].weight.requires_grad_(False)
    add_orthonormality_gradient_(model)
    assert model[0].weight.grad is None
    assert model[1].weight.grad is not None


def test_reduced_precision_is_computed_in_float32():
    W = gaussian(8, 16)
    half = linear(W).to(torch.bfloat16)
    exact = orthonormality(linear(half.weight.detach().double()), 1.0)
    found = orthonormality(half, 1.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)
    single = linear(W).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = orthonormality(single, 1.0)
    torch.testing.assert_close(inside, orthonormality(single, 1.0), rtol=1e-6, atol=0)


def test_channels_last_weights():
    model = nn.Conv2d(4, 6, 3)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    assert value(last) == pytest.approx(value(model))
    add_orthonormality_gradient_(model)
    add_orthonormality_gradient_(last)
    torch.testing.assert_close(last.weight.grad, model.weight.grad)


def test_nothing_to_regularise():
    with pytest.raises(ValueError, match="no convolution and no linear layer"):
        orthonormality(nn.BatchNorm2d(3))


@pytest.mark.parametrize(("lr", "coefficient"), [(0.1, 1e-4), (0.5, 0.01)])
def test_limit_separates_converging_from_diverging_steps(lr, coefficient):
    """The scalar map s ← s(1 − 2ηλ(s² − 1)) just below and above the limit."""
    limit = orthonormality_stability_limit(lr, coefficient)

    def after(squared, steps=40):
        layer = linear(torch.full((1, 1), squared**0.5, dtype=torch.float64))
        optimizer = torch.optim.SGD(layer.parameters(), lr=lr)
        for _ in range(steps):
            optimizer.zero_grad()
            add_orthonormality_gradient_(layer, coefficient)
            optimizer.step()
        return abs(float(layer.weight.detach()))

    assert after(0.99 * limit) < limit**0.5
    assert not after(1.01 * limit) < 10 * limit**0.5


def test_check_names_the_layer_and_its_norm():
    model = initialize(plain(8), "orthonormal", torch.Generator().manual_seed(0))
    check_orthonormality_stability(model, lr=0.1)
    with torch.no_grad():
        model.layer2[0].conv1.weight.mul_(400)  # squared spectral norm 160000 > 100001
    with pytest.raises(DivergenceError, match=r"1e\+05; found layer2.0.conv1 1.6e\+05\."):
        check_orthonormality_stability(model, lr=0.1)
    check_orthonormality_stability(model, lr=0.01)
    check_orthonormality_stability(model, lr=0.1, coefficient=0.0)
    with pytest.warns(UserWarning, match="layer2.0.conv1"):
        check_orthonormality_stability(model, lr=0.1, action="warn")


def test_check_is_exact_where_the_bound_is_not():
    """The row-sum bound is above the limit, the spectral norm below."""
    W = torch.tensor([[3.0, 0.0], [0.4, 3.0]], dtype=torch.float64)
    squared = float(torch.linalg.matrix_norm(W, 2) ** 2)
    bound = float((W @ W.T).abs().sum(1).max())
    limit = (squared + bound) / 2
    assert squared < limit < bound
    check_orthonormality_stability(linear(W), lr=1.0, coefficient=1 / (limit - 1))
    with pytest.raises(DivergenceError):
        check_orthonormality_stability(linear(W), 1.0, 1 / (0.99 * squared - 1))


def test_check_finds_weights_that_are_not_finite():
    layer = linear(gaussian(3, 3))
    layer.weight.data[0, 0] = float("nan")
    with pytest.raises(DivergenceError, match="found 0 nan"):
        check_orthonormality_stability(nn.Sequential(layer), lr=0.1)
    check_orthonormality_stability(nn.ReLU(), lr=0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradient_in_reduced_precision_is_that_of_float32_rounded_once(dtype):
    """In float16 the Gram matrix of 300s would overflow."""
    layer = linear(gaussian(4, 9)).to(dtype)
    layer.weight.data[0] = 300
    W = layer.weight.detach().double()
    add_orthonormality_gradient_(layer, 1e-6)
    assert layer.weight.grad.dtype == dtype
    expected = 2e-6 * (W @ W.T - torch.eye(4)) @ W
    tolerance = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(layer.weight.grad.double(), expected, rtol=tolerance, atol=1e-6)
    penalty = orthonormality(layer, 1.0)
    assert penalty.dtype == torch.float32
    assert float(penalty.detach()) == pytest.approx(
        float(((W @ W.T - torch.eye(4)) ** 2).sum()) / 2, rel=1e-5
    )


def test_the_default_coefficient_is_the_papers_in_both_forms():
    W = gaussian(3, 5)
    layer = linear(W)
    add_orthonormality_gradient_(layer)
    torch.testing.assert_close(layer.weight.grad, 2e-4 * (W @ W.T - torch.eye(3)) @ W)
    expected = 0.5e-4 * float(((W @ W.T - torch.eye(3)) ** 2).sum())
    assert value(linear(W)) == pytest.approx(expected)
