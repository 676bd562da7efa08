"""When weights are measured: before they change, and where nothing else has to be fetched into the caches for it."""

import contextlib
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import propkit


def _case() -> tuple[nn.Sequential, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), torch.randn(8, 4)


def _norms(model: nn.Sequential) -> list[float]:
    return [float(torch.linalg.matrix_norm(model[i].weight.detach().double())) for i in (0, 2)]


def _recorded(recorder: propkit.Recorder) -> list[list[float]]:
    return recorder.run["weight"]["norm"].values.tolist()


def test_before_the_optimizer_steps_and_not_in_the_forward() -> None:
    model, x = _case()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    seen = []

    @propkit.probe
    def grown(weight):
        """Whether the gradient is there by now."""
        seen.append(model[0].weight.grad is not None)
        return weight.norm()

    expected = []
    with propkit.attach(model, probes=[grown, "weight"]) as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            for part in x.split(4):
                model(part).square().mean().backward()
            expected.append(_norms(model))
            optimizer.step()
    assert seen == [True] * 6  # once per layer and step
    torch.testing.assert_close(_recorded(recorder), expected)
    assert (recorder.run["weight"]["update_ratio"].values > 0).all()


def test_a_closure_that_runs_in_the_step() -> None:
    model, x = _case()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    expected = []
    with propkit.attach(model, probes="weight") as recorder:
        for _ in range(2):
            expected.append(_norms(model))
            optimizer.step(closure)
    torch.testing.assert_close(_recorded(recorder), expected)


def test_a_step_that_is_skipped_has_its_weights() -> None:
    model, x = _case()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    expected = []
    with propkit.attach(model, probes="weight") as recorder:
        for step in range(4):
            optimizer.zero_grad()
            loss = model(x).square().mean() * (float("inf") if step == 1 else 1)
            scaler.scale(loss).backward()
            expected.append(_norms(model))
            scaler.step(optimizer)
            scaler.update()
    torch.testing.assert_close(_recorded(recorder), expected)
    assert expected[1] == expected[2]


def test_after_a_skipped_step_weights_are_measured_before_the_step_again() -> None:
    """Most trainings in float16 begin with a step that is skipped."""
    model, x = _case()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    seen = []

    @propkit.probe
    def grown(weight):
        """Whether the gradient is there by now."""
        seen.append(model[0].weight.grad is not None)
        return weight.norm()

    with propkit.attach(model, probes=grown, include="0", scaler=scaler):
        for step in range(4):
            optimizer.zero_grad()
            loss = model(x).square().mean() * (float("inf") if step == 0 else 1)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    # The step after the skipped one cannot be sure of the optimiser and is measured in the forward.
    assert seen == [True, False, True, True]


@pytest.mark.parametrize("idle_optimizer", [False, True])
def test_weights_that_are_changed_by_hand(idle_optimizer: bool) -> None:
    """An optimiser that is there but unused is found out in the first step, which has the weights after the change."""
    model, x = _case()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5) if idle_optimizer else None
    expected = []
    with propkit.attach(model, probes="weight") as recorder:
        for _ in range(3):
            expected.append(_norms(model))
            model(x).square().mean().backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.5 * p.grad
                    p.grad = None
            recorder.step()
    del optimizer
    found = _recorded(recorder)
    torch.testing.assert_close(found[1:], expected[1:])
    torch.testing.assert_close(found[0], expected[1 if idle_optimizer else 0])


@pytest.mark.parametrize("every", [1, 2])
def test_weights_exchanged_for_an_evaluation_are_not_those_of_the_step(every: int) -> None:
    """As where an average of the weights is evaluated between two steps."""
    model, x = _case()
    optimizer, norms = torch.optim.SGD(model.parameters(), lr=0.1), []
    with propkit.attach(model, probes="weight", every=every) as recorder:
        for _ in range(5):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            norms.append(_norms(model))
            optimizer.step()
            kept = {k: v.clone() for k, v in model.state_dict().items()}
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(0.1)
                model(x)
            model.load_state_dict(kept)
    np.testing.assert_allclose(_recorded(recorder), norms[::every], rtol=1e-6)
    assert (recorder.run["weight"]["update_ratio"] < 0.5).all()


def test_parameters_that_an_optimiser_gets_later() -> None:
    model, x = _case()
    other = nn.Parameter(torch.zeros(1))
    late = torch.optim.SGD([other], lr=0.1)
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    norms = []
    with propkit.attach(model, probes="weight") as recorder:
        for step in range(4):
            if step == 2:
                late.add_param_group({"params": list(model[2].parameters())})
            model.zero_grad()
            (model(x).square().mean() + other.sum()).backward()
            norms.append(_norms(model))
            late.step()
            first.step()
    np.testing.assert_allclose(_recorded(recorder), norms, rtol=1e-6)
    moved = recorder.run["weight"]["update_ratio"].sel(site="2").values > 0
    assert moved.tolist() == [False, False, True, True]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "computed",
    [
        lambda m: prune.l1_unstructured(m, "weight", 0.3),
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
    ],
    ids=["pruned", "weight norm", "spectral norm"],
)
def test_the_change_of_a_weight_that_the_next_forward_computes_is_not_told_as_0(computed) -> None:
    model, x = _case()
    computed(model[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with propkit.attach(model, probes="weight") as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    change = recorder.run["weight"]["update_ratio"]
    assert change.sel(site="0").isnull().all()
    assert (change.sel(site="2") > 0).all()


def test_a_weight_that_is_drawn_anew_whenever_it_is_read() -> None:
    class Noise(nn.Module):
        def forward(self, w: torch.Tensor) -> torch.Tensor:
            return w + 0.1 * torch.randn_like(w)

    trained = []
    for watched in (True, False):
        model, x = _case()
        parametrize.register_parametrization(model[0], "weight", Noise())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with propkit.attach(model) if watched else contextlib.nullcontext():
            for _ in range(3):
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
        trained.append(model[0].parametrizations.weight.original.detach())
    assert torch.equal(*trained)


class _Read(nn.Module):
    """A parametrisation that counts how often it is computed, and fails when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 0
        self.broken = False

    def forward(self, weight):
        self.times += 1
        if self.broken:
            raise ArithmeticError("no weight today")
        return 2 * weight


def test_a_weight_is_read_once_before_a_step_and_once_after_it() -> None:
    model, x = _case()
    read = _Read()
    parametrize.register_parametrization(model[0], "weight", read)

    @propkit.probe
    def kind(module):
        """What needs no weight reads none."""
        return torch.tensor(float(module.out_features))

    def times(probes) -> int:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        with propkit.attach(model, probes=probes) as recorder:
            model(x).square().mean().backward()
            before = read.times
            optimizer.step()
            found = read.times - before
            assert np.isfinite(recorder.run["kind"]["kind"]).all()
        return found

    assert times([kind]) == 0
    assert times([kind, "filter_correlation"]) == 1
    assert times([kind, "filter_correlation", "weight"]) == 2


def test_a_weight_that_cannot_be_read_switches_its_probes_off_and_no_more() -> None:
    model, x = _case()
    read = _Read()
    parametrize.register_parametrization(model[0], "weight", read)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with propkit.attach(model, probes=["weight", "error_moment"]) as recorder:
        for step in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            read.broken = step == 1
            with (
                pytest.warns(UserWarning, match="no weight today")
                if step == 1
                else contextlib.nullcontext()
            ):
                optimizer.step()
            read.broken = False
    assert recorder.run.state == "complete"
    assert np.isfinite(recorder.run["error_moment"]["output"]).all()
    assert np.isfinite(recorder.run["weight"]["norm"]).all()
    assert recorder.run["weight"]["step"].values.tolist() == [0]


def test_a_sharded_weight_is_gathered_at_every_call_whatever_is_off_here(monkeypatch) -> None:
    model, x = _case()
    model[0].weight.full_tensor = model[0].weight.detach  # as a sharded parameter has
    gathered = []

    def weight_of(module):
        gathered.append(module)
        return module.weight.detach()

    monkeypatch.setattr("propkit.hooks.listener.weight_of", weight_of)

    @propkit.probe(once=True)
    def once(output, weight):
        return weight.norm()

    @propkit.probe
    def broken(output, weight):
        raise ArithmeticError("on this rank alone")

    for probe in (once, broken):
        gathered.clear()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with propkit.attach(model, probes=probe, every=2):
                for _ in range(3):  # of which two are sampled
                    for part in x.split(4):
                        model(part).square().mean().backward()
                    optimizer.step()
        assert gathered.count(model[0]) == 4
