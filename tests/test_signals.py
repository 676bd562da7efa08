"""Gradients of tensors, where autograd gives them at another tensor than the one that was hooked."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import propkit
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


def test_hooks_of_others_on_the_same_tensor_keep_their_order() -> None:
    """What was put on an output before is seen, what comes after is not; all of them take part in the training."""
    torch.manual_seed(0)
    x, heard = torch.randn(6, 4), []

    def scaling(factor):
        def put_on(module, args, out):
            out.register_hook(lambda grad: heard.append(factor) or grad * factor)

        return put_on

    def train(observed: bool) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        model[0].register_forward_hook(scaling(2.0))
        recorder = propkit.attach(model, probes="error_moment", include="0") if observed else None
        model[0].register_forward_hook(scaling(3.0))
        arrived = []
        out = model[1](first := model[0](x))
        first.register_hook(lambda grad: arrived.append(grad.clone()))
        model[2](out).square().sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        moment = None if recorder is None else recorder.run["error_moment"]["output"].values[0, 0]
        return [*arrived, *(p.detach() for p in model.parameters())], moment

    bare, _ = train(False)
    assert heard == [2.0, 3.0]
    observed, moment = train(True)
    assert heard == [2.0, 3.0] * 2
    assert all(map(torch.equal, bare, observed))
    assert moment == pytest.approx(float((bare[0] / 3).double().square().mean()), rel=1e-6)
