import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from propkit.training import DivergenceError, procrustes_, project


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 1, stride=2),
        nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=2),
        nn.Flatten(),
        nn.Linear(64, 5),
    )


def trainer(model, **options):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 8, 8, generator=generator)
    optimizer = torch.optim.SGD(
        model.parameters(), **{"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3, **options}
    )

    def step():
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.arange(4)).backward()
        optimizer.step()

    return optimizer, step


def test_is_procrustes_after_every_second_step_by_hand():
    model, byhand = network(), network()
    byhand.load_state_dict(model.state_dict())
    optimizer, step = trainer(model)
    optimizer_by_hand, step_by_hand = trainer(byhand)
    with project(model, every=2, relu="0") as projection:
        for i in range(5):
            step()
            step_by_hand()
            if i % 2:
                procrustes_(byhand[0].weight, 8, relu=True)
                procrustes_(byhand[2].weight, None, 2)
                procrustes_(byhand[3].weight, 4, 2, groups=2)
    assert projection.sizes == {"0": (8, 8), "3": (4, 4)}
    assert (projection.steps, projection.calls) == (5, 2)
    for p, q in zip(model.parameters(), byhand.parameters(), strict=True):
        assert torch.equal(p, q)
    # The optimiser's momentum is that of the same loop: nobody touched it.
    for p, q in zip(model.parameters(), byhand.parameters(), strict=True):
        ours, theirs = optimizer.state[p], optimizer_by_hand.state[q]
        assert torch.equal(ours["momentum_buffer"], theirs["momentum_buffer"])


def test_optimiser_state_is_untouched_by_a_projection():
    model = network()
    optimizer, step = trainer(model)
    projection = project(model)
    step()
    before = copy.deepcopy(optimizer.state_dict())
    weight = model[2].weight.detach().clone()
    projection()
    assert not torch.equal(weight, model[2].weight)
    after = optimizer.state_dict()
    for key, state in before["state"].items():
        assert torch.equal(state["momentum_buffer"], after["state"][key]["momentum_buffer"])
    assert before["param_groups"] == after["param_groups"]
    projection.remove()


def test_removed_it_leaves_no_trace():
    model = network()
    untouched = copy.deepcopy(model)
    with project(model, every=1):
        pass
    projection = project(model, every=1)
    projection.remove()
    projection.remove()
    assert not any(m._forward_pre_hooks for m in model.modules())
    trainer(model)[1]()
    trainer(untouched)[1]()
    for p, q in zip(model.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(p, q)
    assert projection.steps == 0


def test_removed_on_an_exception():
    model = network()
    with pytest.raises(ZeroDivisionError), project(model, every=1) as projection:
        1 / 0  # noqa: B018
    trainer(model)[1]()
    assert projection.steps == 0


def test_the_model_is_still_copied_and_saved():
    model = network()
    names = set(model.state_dict())
    with project(model, every=1) as projection:
        trainer(model)[1]()
        twin = copy.deepcopy(model)
        assert set(model.state_dict()) == names
        before = twin[2].weight.clone()
        steps = projection.steps
        trainer(twin, lr=1.0)[1]()  # an optimiser of another model
        assert projection.steps == steps
        assert not torch.allclose(before, twin[2].weight)


def test_probability_draws_from_its_own_generator_and_resumes():
    def calls(projection, optimizer, n):
        found = []
        for _ in range(n):
            before = projection.calls
            optimizer.step()
            found.append(projection.calls - before)
        return found

    model = nn.Sequential(nn.Conv2d(2, 2, 1))
    optimizer, _ = trainer(model)
    state = torch.random.get_rng_state()
    with project(model, every=0.3, seed=5) as first:
        pattern = calls(first, optimizer, 400)
    assert torch.equal(state, torch.random.get_rng_state())
    assert sum(pattern) / 400 == pytest.approx(0.3, abs=0.07)
    with project(model, every=0.3, seed=5) as again:
        assert calls(again, optimizer, 150) == pattern[:150]
        saved = again.state_dict()
    with project(model, every=0.3, seed=77) as resumed:
        resumed.load_state_dict(saved)
        assert calls(resumed, optimizer, 250) == pattern[150:]
        assert resumed.steps == 400


def test_every_counts_on_after_a_resume():
    model = nn.Sequential(nn.Conv2d(2, 2, 1))
    optimizer, _ = trainer(model)
    with project(model, every=3) as first:
        for _ in range(4):
            optimizer.step()
        saved = first.state_dict()
    with project(model, every=3) as second:
        second.load_state_dict(saved)
        optimizer.step()
        assert second.calls == 1
        optimizer.step()
        assert second.calls == 2


def test_include_takes_linear_layers_that_it_names():
    model = network()
    with project(model, every=1, include="2|5") as projection:
        trainer(model)[1]()
    assert list(projection.layers) == ["2", "5"]
    squares = torch.linalg.svdvals(model[5].weight.detach()).square()
    torch.testing.assert_close(squares, torch.ones(5))
    squares = torch.linalg.svdvals(model[2].weight.detach().flatten(1)).square()
    torch.testing.assert_close(squares, torch.full((8,), 2.0))


def test_rescale_counts_on_the_layers_own_padding():
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, bias=False)).double()
    projection = project(model, rescale=True, sizes={"0": 5})
    projection()
    projection.remove()
    columns = model(torch.eye(100, dtype=torch.float64).view(100, 4, 5, 5)).detach()
    assert float(columns.square().sum()) == pytest.approx(6 * 25)


def test_rescale_of_a_padding_it_does_not_know_leaves_no_hook():
    model = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(ValueError, match="reflect"):
        project(model, every=1, rescale=True)
    before = model[0].weight.detach().clone()
    optimizer, _ = trainer(model)
    optimizer.step()
    assert torch.equal(before, model[0].weight)


def test_another_optimisers_steps_do_not_count():
    model = network()
    _, step = trainer(model)
    other = torch.optim.SGD(model[0].parameters(), lr=0.0)
    with project(model, every=1, optimizer=other) as projection:
        step()
        assert projection.calls == 0
        other.step()
        assert projection.calls == 1


def test_skipped_steps_of_a_gradient_scaler_do_not_count():
    model = network()
    optimizer, _ = trainer(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    scaler.scale(torch.zeros(()))  # makes its state
    with project(model, every=1, include="2") as projection:
        for value in (float("inf"), 0.0):
            for p in model.parameters():
                p.grad = torch.full_like(p, value)
            scaler.step(optimizer)
            scaler.update()
    assert projection.steps == 1


def test_shared_weights_once_and_parametrised_ones_not():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    model[1].weight = model[0].weight
    nn.utils.parametrizations.weight_norm(model[2])
    with (
        pytest.warns(UserWarning, match="computed from other parameters: 2"),
        project(model) as projection,
    ):
        assert list(projection.layers) == ["0"]


def test_wrong_arguments_say_so():
    model = network()
    with pytest.raises(ValueError, match="no layer that 'conv' matches"):
        project(model, include="conv")
    with pytest.raises(ValueError, match="no convolution"):
        project(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="relu='9' matches none of the projected layers 0, 2, 3"):
        project(model, relu="9")
    with pytest.raises(ValueError, match="not projected: 5"):
        project(model, sizes={"5": 3})
    with pytest.raises(TypeError, match="takes no stride"):
        project(model, stride=2)
    for every in (0, -1, 1.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="every must be"):
            project(model, every=every)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_unknown_map_and_divergence_are_named():
    model = network()
    optimizer, step = trainer(model)
    with project(model, every=1) as projection:
        with pytest.raises(RuntimeError, match=r"the map of 0 is not known.*sizes=\{'0'"):
            optimizer.step()
        step()
        with torch.no_grad():
            model[2].weight[0] = float("nan")
        with pytest.raises(DivergenceError, match="weight of 2 is no longer finite") as caught:
            optimizer.step()
        assert caught.value.step == projection.steps == 3
