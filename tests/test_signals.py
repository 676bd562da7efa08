"""Gradients of tensors, where autograd gives them at another tensor than the one that was hooked."""

import io
import warnings
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
    receiver = SimpleNamespace(offer=lambda signal, grad: found.append(grad))
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


def test_two_leaves_are_the_input_of_one_layer_before_a_backward_pass() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False)
    a, b = (torch.randn(8, 4, requires_grad=True) for _ in range(2))
    with propkit.attach(model, probes=["error_moment", "gradient_norm"]) as recorder:
        (10 * model(a).square().sum() + model(b).square().sum()).backward()
        recorder.step()
    grad = torch.cat([a.grad, b.grad]).double()
    assert recorder.run["error_moment"]["input"].item() == pytest.approx(
        float(grad.square().mean())
    )
    assert recorder.run["gradient_norm"]["input"].item() == pytest.approx(float(grad.norm()))
    assert not a._backward_hooks
    assert not b._backward_hooks


def test_an_observed_output_is_saved_without_a_word() -> None:
    model = nn.Linear(4, 3)
    with propkit.attach(model, probes="error_moment"), warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.save(model(torch.randn(2, 4)), io.BytesIO())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("evaluated", [1, 3])
def test_nested_tensors_of_an_evaluation_are_passed_over(evaluated: int) -> None:
    """`nn.TransformerEncoder` makes them of a mask when no gradient is needed."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2), torch.randn(4, 5, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[0, 3:] = True
    with propkit.attach(model) as recorder:
        for step in range(6):
            optimizer.zero_grad()
            model.train()(x, src_key_padding_mask=mask).square().mean().backward()
            optimizer.step()
            if step == evaluated:
                with torch.no_grad():
                    model.eval()(x, src_key_padding_mask=mask)
            if step == 2:
                recorder.flush()
    assert recorder.run["activation"]["mean"].sizes["step"] == 6
    assert not recorder.run.attributes["faults"]


@pytest.mark.parametrize(
    "made",
    [
        torch.Tensor.to_sparse,
        torch.Tensor.to_mkldnn,
        lambda x: torch.nested.nested_tensor([x, x[:2]], layout=torch.jagged),
        lambda x: x.to(torch.cfloat),
    ],
    ids=["sparse", "mkldnn", "jagged", "complex"],
)
def test_an_unusual_output_does_not_switch_a_probe_off(made) -> None:
    class Unusual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return made(x)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.odd = nn.Linear(5, 3), Unusual()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.odd(x)
            return self.layer(x)

    model = Net()
    with propkit.attach(model, probes="activation", include="layer|odd") as recorder:
        for _ in range(2):
            model(torch.randn(4, 5)).sum().backward()
            recorder.step()
    assert not recorder.run.attributes["faults"]
    assert recorder.run["activation"]["mean"].sel(site="layer").notnull().all()
