"""What counts as one step, with one optimiser, several, and none."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import optimizer as torch_optimizer

import propkit
from propkit.hooks.steps import OptimizerSteps
from propkit.testing import mlp


class Counted:
    def __init__(self, model: nn.Module, optimizer=None) -> None:
        self.n = 0
        self.steps = OptimizerSteps(model, self._count, optimizer)

    def _count(self) -> None:
        self.n += 1


def _halves(model: nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim == 1]
    return torch.optim.SGD(matrices, lr=0.1), torch.optim.Adam(rest)


def _backward(model: nn.Module) -> None:
    model(torch.randn(4, 12)).square().sum().backward()


def test_two_optimisers_after_one_backward_make_one_step() -> None:
    model = mlp()
    first, second = _halves(model)
    counted = Counted(model)
    history = []
    for _ in range(4):
        _backward(model)
        first.step()
        history.append(counted.n)
        second.step()
        history.append(counted.n)
    # the first round ends with the first optimiser, all others with the last one
    assert history == [1, 1, 1, 2, 2, 3, 3, 4]
    counted.steps.remove()


def test_a_backward_between_them_makes_two_steps() -> None:
    model = nn.ModuleList([mlp(), mlp()])
    a, b = (torch.optim.SGD(m.parameters(), lr=0.1) for m in model)
    counted = Counted(model)
    for n in range(1, 5):
        _backward(model[0])
        a.step()
        _backward(model[1])
        b.step()
        assert counted.n == 2 * n
    counted.steps.remove()


def test_one_that_steps_more_rarely_does_not_hold_the_other_back() -> None:
    model = mlp()
    often, rarely = _halves(model)
    counted = Counted(model)
    for step in range(12):
        _backward(model)
        often.step()
        if step % 3 == 0:
            rarely.step()
    counted.steps.remove()
    assert 11 <= counted.n <= 12  # the last one still waits for its partner


def test_a_given_optimiser_alone_counts_and_nothing_is_left() -> None:
    model = mlp()
    first, second = _halves(model)
    counted = Counted(model, second)
    for _ in range(3):
        _backward(model)
        first.step()
        second.step()
    assert counted.n == 3
    counted.steps.remove()
    second.step()
    assert counted.n == 3


def test_steps_without_gradients_still_count() -> None:
    """A loop may fill the gradients itself."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    counted = Counted(model)
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert counted.n == 3
    counted.steps.remove()
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def _generator_first(model: nn.ModuleDict, frozen: bool, by_hand: bool) -> int:
    """Four rounds of a GAN whose generator begins; returns the number of steps that were found."""
    optimizers = {k: torch.optim.Adam(model[k].parameters()) for k in "gd"}
    counted = Counted(model)
    for _ in range(4):
        z = torch.randn(8, 3)
        for k, optimizer in optimizers.items():
            model["d"].requires_grad_(k == "d" or not frozen)
            optimizer.zero_grad()
            fake = model["g"](z)
            loss = model["d"](fake if k == "g" else fake.detach()).mean()
            if by_hand:
                parameters = list(model[k].parameters())
                for p, grad in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                    p.grad = grad
            else:
                loss.backward()
            optimizer.step()
    counted.steps.remove()
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    return counted.n


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("by_hand", [True, False])
def test_a_gan_whose_generator_begins_makes_two_steps_a_round(frozen: bool, by_hand: bool) -> None:
    model = nn.ModuleDict({"g": nn.Linear(3, 3), "d": nn.Linear(3, 1)})
    assert _generator_first(model, frozen, by_hand) == 8


def test_a_head_with_its_own_backward_in_a_deep_network() -> None:
    """Not every parameter is watched; the head's are none of those that the first optimiser's step chose."""
    body, head = nn.Sequential(*[nn.Linear(5, 5) for _ in range(39)]), nn.Linear(5, 3)
    model = nn.ModuleDict({"body": body, "head": head})
    of_body, of_head = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (body, head))
    counted, x = Counted(model), torch.randn(8, 5)
    for _ in range(4):
        model.zero_grad()
        head(body(x)).square().mean().backward()
        of_body.step()
        model.zero_grad()
        head(body(x).detach()).square().mean().backward()
        of_head.step()
    assert counted.n == 8
    counted.steps.remove()


def test_optimisers_that_step_in_the_backward_pass_make_one_step() -> None:
    """One optimiser per parameter, which steps as soon as the gradient is there."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    bare = copy.deepcopy(model)
    for m in (model, bare):
        optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in m.parameters()}

        def step(p: torch.Tensor, optimizers=optimizers) -> None:
            optimizers[p].step()
            optimizers[p].zero_grad()

        for p in m.parameters():
            p.register_post_accumulate_grad_hook(step)
    want = []
    with propkit.attach(model, probes=["error_moment", "weight"]) as recorder:
        for _ in range(4):
            x = torch.randn(8, 4)
            before = [layer.weight.detach().clone() for layer in (bare[0], bare[2])]
            model(x).square().mean().backward()
            bare(x).square().mean().backward()
            after = [layer.weight.detach() for layer in (bare[0], bare[2])]
            want.append(
                [((b - a).norm() / a.norm()).item() for a, b in zip(before, after, strict=True)]
            )
    assert recorder.run["error_moment"]["output"].notnull().all()
    assert recorder.run["error_moment"]["step"].values.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(recorder.run["weight"]["update_ratio"].values, want, rtol=1e-5)
    for ours, theirs in zip(model.parameters(), bare.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", ["pre", "post"])
def test_listening_may_end_in_the_middle_of_an_optimisers_step(kind: str) -> None:
    """PyTorch goes through its hooks then, and bears no change of them."""
    register = getattr(torch_optimizer, f"register_optimizer_step_{kind}_hook")
    hooks = (
        torch_optimizer._global_optimizer_pre_hooks,
        torch_optimizer._global_optimizer_post_hooks,
    )
    there = [set(h) for h in hooks]
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = propkit.attach(model, probes="weight")
    end = register(lambda *_: first.detach())
    second = propkit.attach(model, probes="weight")
    before = model[0].weight.detach().clone()
    try:
        _backward(model)
        optimizer.step()
        assert not torch.equal(model[0].weight, before)
    finally:
        end.remove()
        second.detach()
    assert [set(h) for h in hooks] == there
    assert second.steps == 1
