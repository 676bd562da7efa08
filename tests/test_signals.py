"""Gradients of tensors, where autograd gives them at another tensor than the one that was hooked."""

from types import SimpleNamespace

import pytest
import torch

from propkit.hooks.signals import on_gradient

VIEWS = {
    "same order": lambda t: t.view(2, 3, 4, 5),
    "transposed": lambda t: t.view(2, 3, 20).transpose(1, 2),
    "permuted": lambda t: t.view(2, 3, 4, 5).permute(3, 0, 2, 1),
}


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("name", VIEWS)
def test_the_gradient_of_a_view_has_the_views_order(name: str, changed: bool) -> None:
    x = torch.randn(6, 20, requires_grad=True)
    found: list[torch.Tensor] = []
    receiver = SimpleNamespace(arrived=lambda signal, grad: found.append(grad))
    base = x * 2
    view = VIEWS[name](base)
    weights = torch.randn(view.shape)
    on_gradient(view, receiver, "grad_output")
    if changed:
        view.relu_()
    (view.relu() * weights).sum().backward()
    expected = weights * (VIEWS[name]((x * 2).detach()) > 0)
    assert len(found) == 1
    # Changed in place, the base's gradient is that of its value before the change; at the view: after the last use.
    torch.testing.assert_close(found[0], expected)
