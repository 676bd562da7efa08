"""What counts as one step, with one optimiser, several, and none."""

import torch
from torch import nn

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
