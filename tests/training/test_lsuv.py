import pytest
import torch
from torch import nn

from propkit.models import plain
from propkit.testing import TinyResNet
from propkit.training import initialize, lsuv_, orthonormal_


def batch(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def variances(model, x):
    """Of each layer's output, found by a pass of its own."""
    found = {}
    for name, m in model.named_modules():
        if isinstance(m, nn.Conv2d | nn.Linear):
            m.register_forward_hook(
                lambda _m, _i, out, n=name: found.__setitem__(n, float(out.var(correction=0)))
            )
    with torch.no_grad():
        model(x)
    return found


@pytest.mark.parametrize("kind", ["deep", "batch norm", "residual"])
def test_every_output_has_variance_one(kind):
    if kind == "deep":
        model = nn.Sequential(*[m for _ in range(20) for m in (nn.Linear(30, 30), nn.Tanh())])
        x = 7 * batch(50, 30)
    elif kind == "batch norm":
        model, x = plain(14), batch(8, 3, 8, 8)
    else:
        model, x = TinyResNet(), batch(8, 3, 7, 5)
    lsuv_(model, x, tolerance=0.01)
    found = variances(model, x)
    assert len(found) == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules())
    assert all(abs(v - 1) <= 0.0101 for v in found.values())


def test_weights_are_orthonormal_ones_scaled():
    model = lsuv_(
        nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5)),
        batch(20, 8),
        generator=torch.Generator().manual_seed(3),
    )
    generator = torch.Generator().manual_seed(3)
    for layer in (model[0], model[2]):
        expected = orthonormal_(torch.empty_like(layer.weight), generator=generator)
        scale = layer.weight / expected
        torch.testing.assert_close(scale, scale.mean().expand_as(scale))
        assert not layer.bias.any()


def test_without_orthonormal_weights_those_there_are_scaled_and_biases_kept():
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 5))
    nn.init.constant_(model[0].bias, 0.3)
    before = [p.detach().clone() for p in model.parameters()]
    lsuv_(model, batch(20, 8), orthonormal=False, tolerance=1e-3)
    for p, q in zip(model.parameters(), before, strict=True):
        ratio = p.detach() / q
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio))
    assert torch.equal(model[0].bias.detach(), before[1])


def test_buffers_mode_and_random_state_are_as_before():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    state = torch.random.get_rng_state()
    lsuv_(model, batch(4, 3, 6, 6), generator=torch.Generator())
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(b, buffers[n]) for n, b in model.named_buffers())
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())


def test_a_layer_called_twice_is_scaled_at_its_first_call():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.first = None

        def forward(self, x):
            out = self.layer(x)
            self.first = float(out.var(correction=0))
            return self.layer(torch.relu(out))

    model = lsuv_(Twice(), 3 * batch(40, 4), tolerance=0.01)
    with torch.no_grad():  # that the second call has not changed the weight
        model(3 * batch(40, 4))
    assert model.first == pytest.approx(1, abs=0.011)


def test_failures_say_why_and_leave_no_hooks():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"output of 0 has variance 0.0; give a batch"):
        lsuv_(model, torch.ones(5, 4) * 0)
    with pytest.raises(ValueError, match="variance nan"):
        lsuv_(model, torch.full((5, 4), float("nan")))
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(ValueError, match="no convolution and no linear"):
        lsuv_(nn.ReLU(), batch(2, 2))
    initialize(model)


def test_without_a_bias_one_division_makes_the_variance_one_exactly():
    """Of six numbers, so that dividing by five would show."""
    x = batch(2, 4)
    once = lsuv_(nn.Linear(4, 3, bias=False), x, tolerance=1e-4, max_iterations=1)
    assert variances(nn.Sequential(once), x)["0"] == pytest.approx(1, abs=1e-6)


def test_as_many_divisions_as_allowed_and_none_of_what_is_near():
    """A bias is not divided, so that each division leaves an error, which the next one sees."""
    x, rows = batch(30, 6), torch.tensor([[3.0], [-2.0]])

    def scaled(divisions, tolerance):
        layer = nn.Linear(6, 2)
        with torch.no_grad():
            layer.weight.copy_(torch.full((2, 6), 0.5) * rows)
            layer.bias.copy_(torch.tensor([0.4, -0.4]))
        lsuv_(layer, x, orthonormal=False, max_iterations=divisions, tolerance=tolerance)
        return float(layer.weight.detach()[0, 0])

    expected = [1.5]
    for _ in range(4):
        w = expected[-1] * torch.ones(2, 6) * rows / 3.0
        out = (x @ w.T + torch.tensor([0.4, -0.4])).numpy()
        expected.append(expected[-1] / float(out.std()))
    for divisions, value in enumerate(expected):
        assert scaled(divisions, 1e-12) == pytest.approx(value, rel=1e-5)
    assert scaled(10, 1e9) == 1.5


def test_the_default_tolerance_is_a_tenth():
    x = batch(400, 5)
    for variance, stays in ((1.09, True), (0.91, True), (1.11, False), (0.89, False)):
        layer = nn.Linear(5, 5, bias=False)
        weight = torch.eye(5) / x.std(0, correction=0).mean()
        layer.weight.data.copy_(weight * (variance / float((x @ weight).var(correction=0))) ** 0.5)
        before = layer.weight.detach().clone()
        lsuv_(layer, x, orthonormal=False)
        assert torch.equal(layer.weight, before) == stays


def test_grouped_convolutions_are_orthonormal_within_their_groups():
    layer = lsuv_(nn.Conv1d(4, 6, 1, groups=2), batch(9, 4, 5))
    for part in layer.weight.detach().flatten(1).split([2, 1, 2, 1]):
        gram = part @ part.T
        torch.testing.assert_close(gram, gram[0, 0] * torch.eye(len(part)))


def test_an_infinite_variance_is_refused():
    with pytest.raises(ValueError, match=r"variance (inf|nan)"):
        lsuv_(nn.Linear(4, 4), torch.full((5, 4), 3e38) * batch(5, 4).sign())


def test_a_layer_that_cannot_be_brought_to_one_is_divided_ten_times():
    class Stubborn(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return 2 * x

    layer = Stubborn(4, 4, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1)
    x = batch(9, 4)
    lsuv_(layer, x, orthonormal=False)
    assert layer.calls == 1 + 10
    expected = (2 * x).double().std(correction=0) ** -10.0
    torch.testing.assert_close(layer.weight.detach().double().mean(), expected, rtol=1e-5, atol=0)
