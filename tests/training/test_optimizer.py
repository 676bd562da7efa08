import pytest
import torch
from torch import nn

from propkit.models import plain
from propkit.training import learning_rate_factor, make_optimizer, sgd


def groups(optimizer):
    return {
        decay: sum(
            p.numel()
            for g in optimizer.param_groups
            if g["weight_decay"] == decay
            for p in g["params"]
        )
        for decay in {g["weight_decay"] for g in optimizer.param_groups}
    }


def test_decay_acts_on_the_weights_alone():
    model = plain(20)
    weights = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    spared = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    assert groups(sgd(model)) == {1e-4: weights, 0.0: spared}
    assert spared == 2 * (7 * 16 + 6 * 32 + 6 * 64) + 10


def test_decay_on_everything():
    assert groups(sgd(plain(20), decay="all")) == {1e-4: 269722}


def test_step_by_hand():
    """v ← μv + g + λw, w ← w − ηv."""
    layer = nn.Linear(2, 1)
    w, b = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimizer = sgd(layer, lr=0.5, momentum=0.9, weight_decay=0.01)
    v = torch.zeros_like(w)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        v = 0.9 * v + 1 + 0.01 * w
        w = w - 0.5 * v
    torch.testing.assert_close(layer.weight.detach(), w)
    torch.testing.assert_close(layer.bias.detach(), b - 0.5 * (1 + 1.9 + 2.71))


def test_frozen_parameters_are_not_held():
    model = plain(8)
    model.conv1.weight.requires_grad_(False)
    held = {id(p) for g in sgd(model).param_groups for p in g["params"]}
    assert id(model.conv1.weight) not in held
    assert len(held) == len(list(model.parameters())) - 1


def test_errors():
    with pytest.raises(ValueError, match="'weights' or 'all', found 'bias'"):
        sgd(plain(8), decay="bias")
    with pytest.raises(ValueError, match="no parameters that require gradients"):
        sgd(nn.ReLU())


def test_schedule_of_the_paper():
    factors = [
        learning_rate_factor(s, (32000, 48000)) for s in (0, 31999, 32000, 47999, 48000, 63999)
    ]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert learning_rate_factor(10**6, ()) == 1


def test_warm_up_and_milestones():
    found = [learning_rate_factor(s, (4, 6), 0.5, warm_up=2, warm_up_factor=0.2) for s in range(7)]
    assert found == pytest.approx([0.2, 0.2, 1, 1, 0.5, 0.5, 0.25])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sgd", torch.optim.SGD),
        ("nesterov", torch.optim.SGD),
        ("adagrad", torch.optim.Adagrad),
        ("adadelta", torch.optim.Adadelta),
        ("adam", torch.optim.Adam),
        ("rmsprop", torch.optim.RMSprop),
    ],
)
def test_optimizers_by_name(name, kind):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = make_optimizer(name, model, lr=0.03, momentum=0.8, weight_decay=0.2)
    assert type(optimizer) is kind
    weights, rest = optimizer.param_groups
    assert [p.ndim for p in weights["params"]] == [2]
    assert (weights["weight_decay"], rest["weight_decay"]) == (0.2, 0.0)
    assert weights["lr"] == rest["lr"] == 0.03
    if kind is torch.optim.SGD:
        assert (weights["momentum"], weights["nesterov"]) == (0.8, name == "nesterov")


def test_unknown_optimizer():
    with pytest.raises(ValueError, match=r"one of sgd, nesterov, .*, found 'lion'"):
        make_optimizer("lion", nn.Linear(2, 2))
