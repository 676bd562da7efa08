"""Modulation against what it comes to: backward is linear, so each layer's gradients are scaled afterwards."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import propkit
from propkit.data import ImageSet
from propkit.hooks.factors import mean_factor
from propkit.models import plain
from propkit.training import DivergenceError, generator, initialize, modulate, sgd, train
from propkit.training.modulation_rules import find_rule

RULES = {
    "always": {},
    "decade": {},
    "drift": {},
    "drift-3": {"tau": 3.0},
    "ratio": {},
    "ratio-2": {"tau": 2.0},
    "ratio-10": {"tau": 10.0},
    "never": {},
}


def convolutions(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}


def observe(model, batch, modulation=None):
    """Gradients, and the moments of the errors at the convolutions (first layer first), by tensor hooks of our own."""
    moments = {}

    def hook(name):
        def forward(module, args, output):
            output.register_hook(
                lambda grad: moments.__setitem__(name, float(grad.double().square().mean()))
            )

        return forward

    handles = [m.register_forward_hook(hook(n)) for n, m in convolutions(model).items()]
    model.zero_grad()
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    for handle in handles:
        handle.remove()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    return gradients, [moments[n] for n in convolutions(model)]


@pytest.fixture(scope="module")
def deep():
    """The 110-layer network of the paper, narrow, in float64, with its gradients and moments without modulation."""
    source = torch.Generator().manual_seed(0)
    model = initialize(plain(110, 10, 1, (4, 4, 8)), "orthonormal", generator(0, "init")).double()
    batch = (
        torch.randn(16, 1, 8, 8, generator=source, dtype=torch.float64),
        torch.arange(16) % 10,
    )
    return model, batch, *observe(model, batch)


def expected_factors(raw, rule, tau):
    """c_k, by which layer k's gradients change, from the moments without modulation alone: plain Python."""
    factors = [1.0] * len(raw)
    product, above, top = 1.0, raw[-1], raw[-1]
    for k in reversed(range(len(raw) - 1)):
        q = raw[k] * product**2
        apart = lambda a, b: max(a / b, b / a)  # noqa: E731
        target = {
            "always": above,
            "decade": above if math.floor(math.log10(q)) != math.floor(math.log10(above)) else q,
            "drift": top if apart(q, top) > (tau or 10) else q,
            "ratio": above if apart(q, above) > (tau or 1.5) else q,
            "never": q,
        }[rule]
        product *= math.sqrt(target / q)
        factors[k], above = product, target
    return factors


@pytest.mark.parametrize("key", RULES)
def test_equals_scaling_the_gradients_afterwards(deep, key):
    model, batch, bare, raw = deep
    rule, tau = key.split("-")[0], RULES[key].get("tau")
    with modulate(model, rule, tau=tau):
        gradients, _ = observe(model, batch)
    factors = expected_factors(raw, rule, tau)
    for k, name in enumerate(convolutions(model)):
        norm = name.replace("conv", "bn")
        above = 1.0 if k == len(raw) - 1 else factors[k + 1]
        for weight, factor in ((f"{name}.weight", factors[k]), (f"{norm}.weight", above)):
            wanted = bare[weight] * factor
            assert float((gradients[weight] - wanted).norm()) < 1e-8 * float(wanted.norm())
    assert torch.equal(gradients["fc.weight"], bare["fc.weight"])


def test_always_makes_all_moments_that_of_the_highest_layer(deep):
    model, batch, _, raw = deep
    factors = expected_factors(raw, "always", None)
    assert [f**2 * q for f, q in zip(factors, raw, strict=True)] == pytest.approx([raw[-1]] * 109)
    with modulate(model, "always"):
        _, arriving = observe(model, batch)
        rho = rho_of(model)
    after = [r**2 * q for r, q in zip(rho, arriving, strict=True)]
    assert after == pytest.approx([raw[-1]] * 109, rel=1e-9)


def rho_of(model):
    return [float(mean_factor(m)[0]) for m in convolutions(model).values()]


def test_rules_on_the_network_of_the_paper(deep):
    """As on CIFAR: consecutive moments are too near each other for a ratio of 10, and drift keeps all within τ."""
    model, batch, _, raw = deep
    assert raw[0] / raw[-1] > 1e9
    fired, spread = {}, {}
    for rule, tau in (("decade", None), ("drift", None), ("ratio", 10.0), ("always", None)):
        with modulate(model, rule, tau=tau):
            _, arriving = observe(model, batch)
            rho = rho_of(model)
        fired[rule] = sum(r != 1 for r in rho)
        after = [r**2 * q / raw[-1] for r, q in zip(rho, arriving, strict=True)]
        spread[rule] = max(after), min(after)
    assert fired["ratio"] == 0
    assert fired["always"] == 108
    assert 5 < fired["drift"] < fired["decade"] < 108
    assert 0.1 <= spread["drift"][1] <= spread["drift"][0] <= 10
    assert spread["decade"][0] / spread["decade"][1] < 10


def small(seed=0, inplace=False):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(inplace), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4),
        nn.ReLU(inplace), nn.Conv2d(4, 3, 3), nn.ReLU(inplace), nn.Flatten(), nn.Linear(12, 3),
    )  # fmt: skip


def batch_of(seed=1):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(6, 2, 8, 8, generator=source), torch.arange(6) % 3


def gradients(model, batch=None):
    images, labels = batch or batch_of()
    model.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    return [p.grad.clone() for p in model.parameters()]


def test_never_is_bit_identical_to_bare_training():
    def weights(rule):
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        handle = modulate(model, rule) if rule else None
        for seed in range(5):
            gradients(model, batch_of(seed))
            optimizer.step()
        if handle:
            assert handle.steps == 5
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(weights("never"), weights(None))
    assert not torch.equal(weights("always"), weights(None))


def test_in_place_activations():
    with (
        modulate(plain_model := small(), "always"),
        modulate(in_place := small(inplace=True), "always"),
    ):
        for a, b in zip(gradients(plain_model), gradients(in_place), strict=True):
            assert torch.equal(a, b)
    for a, b in zip(gradients(small(inplace=True)), gradients(small()), strict=True):
        assert torch.equal(a, b)


def test_linear_layers_whose_output_is_a_view_changed_in_place():
    def model(inplace):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace), nn.Linear(5, 3), nn.ReLU(inplace))

    x = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(2))

    def first_gradient(net):
        net(x).square().sum().backward()
        return net[0].weight.grad

    bare = first_gradient(model(False))
    found = []
    for inplace in (False, True):
        net = model(inplace)
        with modulate(net, "always"):
            found.append(first_gradient(net))
            rho = mean_factor(net[0])[0]
        torch.testing.assert_close(found[-1], bare * rho.float())
    assert float(rho) != 1
    torch.testing.assert_close(*found)


def test_forward_is_not_touched_and_nothing_stays():
    model, x = small().eval(), batch_of()[0]
    before = model(x)
    keys = list(model.state_dict())
    with modulate(model, "always") as handle:
        assert torch.equal(model(x), before)
        assert list(model.state_dict()) == keys
        loss = F.cross_entropy(model(x), batch_of()[1])
    loss.backward()  # of a graph from before the end
    ended = [p.grad.clone() for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(ended, gradients(model), strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    handle.remove()
    assert not handle.active


def test_copies_are_not_modulated():
    model = small()
    bare = gradients(model)
    with modulate(model, "always"):
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert all(torch.equal(a, b) for a, b in zip(gradients(other), bare, strict=True))
        assert not torch.equal(gradients(model)[0], bare[0])


def test_ends_after_its_steps():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    bare = gradients(model)[0]
    handle = modulate(model, "always", steps=2)
    changed = []
    for _ in range(4):
        changed.append(not torch.equal(gradients(model)[0], bare))
        optimizer.step()
    assert changed == [True, True, False, False]
    assert not handle.active
    modulate(model, "always").remove()  # which is free again


def test_resumes_where_it_was():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    bare = gradients(model)[0]
    first = modulate(model, "always", steps=3)
    gradients(model)
    optimizer.step()
    state = first.state_dict()
    first.remove()
    second = modulate(model, "always", steps=3)
    second.load_state_dict(state)
    changed = []
    for _ in range(3):
        changed.append(not torch.equal(gradients(model)[0], bare))
        optimizer.step()
    assert changed == [True, True, False]


def test_afterwards_layers_have_no_factors_and_it_says_that_it_is_over():
    model = small()
    with modulate(model, "always") as handle:
        gradients(model)
        assert any(mean_factor(layer)[0] != 1 for layer in handle.layers.values())
        assert "active" in repr(handle)
    assert all(mean_factor(layer)[0] == 1 for layer in handle.layers.values())
    assert "over" in repr(handle)


class Pair(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y, y


def test_layers_that_return_several_tensors_are_left_alone():
    model = Pair(3, 2)
    with modulate(model, lambda q, above, top: 4 * q):
        first, _ = model(torch.ones(1, 3))
        first.sum().backward()
    assert torch.equal(model.bias.grad, torch.ones(2))


def test_removed_again_it_leaves_its_successor_alone():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    first = modulate(model, "always", steps=1)
    gradients(model)
    first.remove()
    optimizer.step()
    assert first.steps == 0
    with modulate(model, "always"):
        first.remove()
        with pytest.raises(ValueError, match="is modulated already"):
            modulate(model, "always")


def test_a_layer_called_by_itself_is_its_own_highest():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    with modulate(model, "always"):
        model[0](torch.ones(1, 3)).sum().backward()
    assert torch.equal(model[0].bias.grad, torch.ones(2))


@pytest.mark.parametrize("rule", ["always", lambda q, above, top: 0 * q])
def test_factors_that_are_zero_or_infinite_are_not_applied(rule):
    """The ReLU lets no error through to the lower layer, while the one above has some."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    nn.init.constant_(model[0].bias, -100.0)
    with modulate(model, rule):
        model(torch.ones(1, 2)).sum().backward()
    assert torch.equal(model[0].bias.grad, torch.zeros(2))
    assert torch.equal(model[2].bias.grad, torch.ones(2))


def test_resumed_after_its_end_it_does_nothing():
    model = small()
    bare = gradients(model)[0]
    handle = modulate(model, "always", steps=3)
    handle.load_state_dict({"steps": 3})
    assert torch.equal(gradients(model)[0], bare)
    modulate(model, "always").remove()  # which is free again


def test_a_repeated_backward_begins_at_the_top():
    model = small()
    images, labels = batch_of()
    with modulate(model, "always"):
        once = gradients(model)
        loss = F.cross_entropy(model(images), labels)
        model.zero_grad()
        loss.backward(retain_graph=True)
        (10 * loss).backward()
        twice = [p.grad for p in model.parameters()]
    for a, b in zip(once, twice, strict=True):
        torch.testing.assert_close(11 * a, b)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = small()

        def forward(self, x):
            x = x.requires_grad_()
            first = checkpoint(self.body[:4], x, use_reentrant=reentrant)
            return self.body[4:](first)

    model = small()
    with modulate(model, "always"):
        expected = gradients(model)
    model = Checkpointed()
    model.body.load_state_dict(small().state_dict())
    with modulate(model, "always"):
        found = gradients(model)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_autocast():
    model = small()
    with modulate(model, "always"):
        expected = gradients(model)
        with torch.autocast("cpu", torch.bfloat16):
            found = gradients(model)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        # Biases before batch norm have a gradient of zero, but for rounding.
        assert a.ndim < 2 or float(F.cosine_similarity(a.flatten(), b.flatten(), 0)) > 0.99


def test_errors_of_zero_stay_zero():
    model = small()
    with modulate(model, "always"):
        (model(batch_of()[0]) * 0).sum().backward()
    assert all(float(p.grad.abs().max()) == 0 for p in model.parameters())


@pytest.mark.parametrize("attach_first", [True, False])
def test_recorded_errors_are_those_that_arrive_and_rho_is_recorded(attach_first):
    model, batch = small(), batch_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probes = ["error_moment", "modulation"]
    if attach_first:
        recorder = propkit.attach(model, probes=probes)
        handle = modulate(model, "always", steps=2)
    else:
        handle = modulate(model, "always", steps=2)
        recorder = propkit.attach(model, probes=probes)
    reference = copy.deepcopy(model)
    with recorder, handle:
        for _ in range(3):
            gradients(model, batch)
            optimizer.step()
    run = recorder.run
    rho = run["modulation"]["rho"]
    assert rho.sizes == {"step": 3, "site": 4}
    q = run["error_moment"]["output"]
    after = (rho**2 * q).sel(site=["0", "2", "5"]).values
    assert after[:2] == pytest.approx(after[:2, -1:].repeat(3, 1), rel=1e-9)
    assert rho.sel(site="5").values.tolist() == [1, 1, 1]
    assert rho.sel(site="8").values.tolist() == [1, 1, 1]  # linear, above the convolutions
    assert rho.values[2].tolist() == [1, 1, 1, 1]
    assert run["modulation"]["fired"].values.tolist() == [[1, 1, 0, 0]] * 2 + [[0, 0, 0, 0]]
    raw = observe(reference, batch)[1]
    assert math.sqrt(raw[2] / raw[1]) == pytest.approx(float(rho.sel(site="2")[0]), rel=1e-6)


def test_rho_of_micro_batches_is_their_mean():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with propkit.attach(model, probes="modulation") as recorder, modulate(model, "always"):
        for seeds in ((1,), (2,), (1, 2)):
            for seed in seeds:
                gradients(model, batch_of(seed))
            optimizer.step()
    rho = recorder.run["modulation"]["rho"].sel(site="0").values
    assert rho[2] == pytest.approx((rho[0] + rho[1]) / 2)
    assert rho[0] != pytest.approx(rho[1], rel=1e-3)


def test_own_rule_and_own_layers():
    model, seen = small(), []

    def tenth(q, above, top):
        seen.append((float(q), float(above), float(top)))
        return q / 100

    bare = gradients(small())
    with modulate(model, tenth, include="0|8"):
        found = gradients(model)
    # Conv 0's gradient is scaled by the layer 8 and by itself; the batch norm's by layer 8 alone.
    torch.testing.assert_close(found[0], bare[0] / 100)
    torch.testing.assert_close(found[4], bare[4] / 10)
    assert [s[2] for s in seen] == [seen[0][0]] * 2
    assert seen[1][1] == pytest.approx(seen[0][0] / 100)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute"
)  # PyTorch looks at it where a graph breaks
def test_compiled_afterwards():
    model = small()
    with modulate(model, "always"):
        expected = gradients(model)
        found = gradients(torch.compile(model, backend="aot_eager"))
    torch._dynamo.reset()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("rule", ["never", "decade", "drift", "always"])
def test_the_110_layer_network_trains_with_modulation_alone(rule):
    """arXiv:1703.01827, Sec. 5.3: with orthonormality but no modulation it diverges at once."""
    source = torch.Generator().manual_seed(0)
    labels = torch.arange(48) % 3
    images = torch.rand(48, 1, 8, 8, generator=source) + labels[:, None, None, None]
    data = ImageSet.from_tensors("shades", (images, labels), (images, labels), 3)
    model = initialize(plain(110, 3, 1, (4, 4, 8)), "orthonormal", generator(0, "init"))

    def training():
        train(
            model, data, steps=6, optimizer=sgd(model, 0.1, weight_decay=0), batch_size=24,
            orthonormality=1e-4, progress=False,
        )  # fmt: skip

    with modulate(model, rule):
        if rule == "never":
            with pytest.raises(
                DivergenceError, match="after step 0: the orthonormality regulariser"
            ):
                training()
            return
        training()
    norms = [
        float(m.weight.detach().flatten(1).norm(dim=1).max()) for m in convolutions(model).values()
    ]
    assert max(norms) < 5
    assert min(norms) > 0.9


def test_what_cannot_be_modulated():
    with pytest.raises(ValueError, match="no convolution and no linear layer to modulate"):
        modulate(nn.ReLU())
    with pytest.raises(ValueError, match="no linear layer that 'x' matches"):
        modulate(small(), include="x")
    with pytest.raises(ValueError, match="steps must be at least 1 or None, found 0"):
        modulate(small(), steps=0)
    with pytest.raises(ValueError, match="compiled already"):
        modulate(torch.compile(small()))
    model = small()
    with modulate(model), pytest.raises(ValueError, match="0 is modulated already"):
        modulate(model)


def test_layers_by_default():
    assert list(modulate(small()).layers) == ["0", "2", "5"]
    assert list(modulate(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))).layers) == ["0", "1"]


@pytest.mark.parametrize(
    ("rule", "tau", "message"),
    [
        ("often", None, "rule must be one of decade, always, never, drift, ratio"),
        ("drift", 1.0, "tau must be above 1 and finite, found 1.0"),
        ("ratio", math.nan, "tau must be above 1"),
        ("ratio", math.inf, "tau must be above 1 and finite, found inf"),
        ("decade", 10.0, "tau belongs to the rules"),
        (lambda q, above, top: q, 2.0, "tau belongs to the rules"),
    ],
)
def test_wrong_rules(rule, tau, message):
    with pytest.raises(ValueError, match=message):
        find_rule(rule, tau)


@pytest.mark.parametrize(
    ("rule", "tau", "q", "expected"),
    [  # the layer above has 4.0, the highest 0.5
        ("ratio", None, 4 * 1.55, 4.0),
        ("ratio", None, 4 * 1.45, 4 * 1.45),
        ("ratio", None, 4 / 1.55, 4.0),
        ("ratio", None, 4 / 1.45, 4 / 1.45),
        ("ratio", 3.0, 4 * 2.9, 4 * 2.9),
        ("ratio", 3.0, 4 / 3.1, 4.0),
        ("ratio", 2.0, 8.0, 8.0),  # τ times exactly is not more
        ("ratio", 2.0, 2.0, 2.0),
        ("drift", 4.0, 2.0, 2.0),
        ("drift", 4.0, 0.125, 0.125),
        ("drift", None, 0.5 * 10.2, 0.5),
        ("drift", None, 0.5 * 9.8, 0.5 * 9.8),
        ("drift", None, 0.5 / 10.2, 0.5),
        ("drift", None, 0.5 / 9.8, 0.5 / 9.8),
        ("drift", 1.1, 0.5 * 1.12, 0.5),
        ("decade", None, 9.99, 9.99),
        ("decade", None, 1.01, 1.01),
        ("decade", None, 10.1, 4.0),
        ("decade", None, 0.99, 4.0),
        ("always", None, 4.1, 4.0),
        ("never", None, 4e9, 4e9),
    ],
)
def test_where_each_rule_begins_to_fire(rule, tau, q, expected):
    moments = (torch.tensor(x, dtype=torch.float64) for x in (q, 4.0, 0.5))
    assert float(find_rule(rule, tau)(*moments)) == expected
