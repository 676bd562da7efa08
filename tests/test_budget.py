"""The budget: what is measured is what was spent, and the sampling is widened just as much as it takes."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import propkit
from propkit.recording import budget as budgets
from propkit.recording.budget import BARE, FIXED, USUAL, Budget, Overhead, kind_of
from tests.conftest import cross_entropy, make_case, sgd


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def train(budget, overhead, clock, steps, *, step=1.0, cost=0.1, every=1, dear=0, first=0):
    """A training in which a measured step takes `cost` longer; the steps that were measured."""
    measured = []
    for n in range(first, first + steps):
        due = {"weight"} if n % every == 0 else set()
        if dear and n % dear == 0:
            due.add("representation")
        active = budget.thin(frozenset(due))
        clock.now += step
        clock.now += cost * ("weight" in active) + 50 * cost * ("representation" in active)
        measured += [n] if "weight" in active else []
        overhead.lap(kind_of(active, budget.fixed))
        budget.consider(n + 1)
    return measured


def begin(share=0.02, fixed=("representation",)):
    clock = Clock()
    overhead = Overhead(clock)
    return Budget(share, fixed, overhead), overhead, clock


@pytest.mark.parametrize(
    ("cost", "every", "factor"),
    [(0.3, 1, 16), (0.01, 1, 1), (0.019, 1, 1), (0.3, 5, 4), (0.3, 100, 1), (40.0, 1, 2048)],
)
def test_the_factor_is_the_power_of_two_that_it_takes(cost, every, factor):
    budget, overhead, clock = begin()
    train(budget, overhead, clock, 30_000, cost=cost, every=every)
    assert budget.factor == factor
    before = clock.now, sum(overhead.steps)
    measured = train(budget, overhead, clock, 20_480, cost=cost, every=every, first=30_720)
    assert len(measured) == len(range(0, 20_480, every * factor)) or every > 1
    added = clock.now - before[0] - 20_480
    assert added / 20_480 <= 0.02 + 1e-9
    if factor > 1:
        assert 2 * added / 20_480 > 0.02 * budgets.CALM


def test_steps_are_multiples_of_the_widened_period():
    budget, overhead, clock = begin()
    train(budget, overhead, clock, 3000, cost=0.3, every=5)
    assert budget.factor == 4
    measured = train(budget, overhead, clock, 1000, cost=0.3, every=5, first=3000)
    assert measured == list(range(3000, 4000, 20))


def test_without_other_steps_some_are_left_out_to_compare_with():
    budget, overhead, clock = begin()
    train(budget, overhead, clock, 100, cost=0.01)
    first, second = budget.report()["history"]
    assert (first["factor"], first["share_found"]) == (2, None)
    assert (second["factor"], second["share_found"]) == (1, pytest.approx(0.01 / 2, rel=0.2))
    assert 8 <= first["step"] < second["step"] < 40


def test_it_follows_a_training_that_becomes_slower():
    budget, overhead, clock = begin()
    train(budget, overhead, clock, 2000, cost=0.3)
    assert budget.factor == 16
    train(budget, overhead, clock, 20_000, cost=0.3, step=8.0, first=2000)
    assert budget.factor in (2, 4)
    assert [c["factor"] for c in budget.report()["history"]][:2] == [2, 16]


def test_dear_probes_keep_their_schedule_and_do_not_widen_others():
    budget, overhead, clock = begin()
    train(budget, overhead, clock, 4000, cost=0.01, every=2, dear=10)
    assert budget.factor == 1
    assert overhead.steps[FIXED] == pytest.approx(400, abs=2)
    assert overhead.cost(FIXED) == pytest.approx(0.51)
    report = overhead.report()
    assert report["share"] == pytest.approx((0.51 * 400 + 0.01 * 1600) / 4000, rel=0.01)
    assert report["seconds"] == pytest.approx((0.51 * 400 + 0.01 * 1600) / 2000, rel=0.01)
    assert report["measured_steps"] + report["other_steps"] == sum(overhead.steps) == 3999


def test_pauses_and_flushes():
    overhead = Overhead(clock := Clock())
    for n in range(201):
        if n % 50 == 49:
            clock.now += 300.0  # an evaluation
        if n % 64 == 63:
            clock.now += 0.64
            overhead.flushed(0.64)
        clock.now += 1.1 if n % 2 else 1.0
        overhead.lap(USUAL if n % 2 else BARE)
    assert overhead.step == pytest.approx(1.0)
    assert overhead.cost(USUAL) == pytest.approx(0.1 + 3 * 0.64 / 100)


def test_a_flush_is_no_part_of_the_step_in_which_it_falls():
    overhead = Overhead(clock := Clock())
    for n in range(40):
        clock.now += 1.1 if n % 2 else 1.0
        overhead.lap(USUAL if n % 2 else BARE)
        if n % 2:  # in every step that is not measured
            clock.now += 0.5
            overhead.flushed(0.5)
    assert overhead.step == pytest.approx(1.0)
    assert overhead.cost(USUAL) == pytest.approx(0.6)


def test_every_step_measured():
    overhead = Overhead(clock := Clock())
    for _ in range(20):
        clock.now += 1.0
        began = clock.now
        clock.now += 0.1
        overhead.lap(USUAL, began)
    report = overhead.report()
    assert report["seconds"] == pytest.approx(0.1)
    assert "lower bound" in report["basis"]
    assert Overhead().report()["share"] == 0.0


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.5, 2), min_size=200, max_size=200), st.floats(0.001, 1))
def test_the_same_times_give_the_same_sampling(times, share):
    def once():
        budget, overhead, clock = begin(share)
        chosen = []
        for n, seconds in enumerate(times):
            active = budget.thin(frozenset({"weight"}))
            clock.now += seconds
            overhead.lap(kind_of(active, ()))
            budget.consider(n + 1)
            chosen.append(bool(active))
        return chosen, budget.report()

    assert once() == once()
    factors = [1] + [c["factor"] for c in once()[1]["history"]]
    assert all(f & (f - 1) == 0 for f in factors)


@pytest.mark.parametrize("share", [0, -1, 2, True, "0.02", float("nan")])
def test_no_share(share):
    model, *_ = make_case("mlp")
    with pytest.raises(ValueError, match=r"budget=.*share of the step.*0\.02"):
        propkit.attach(model, budget=share)
    propkit.attach(model).detach()


def loop(model, x, y, steps, pause=0.0):
    optimizer, loss = sgd(model), cross_entropy(x, y)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model).backward()
        time.sleep(pause)
        optimizer.step()


def test_a_recording_with_a_budget():
    """The probe sleeps five times as long as the rest of the step takes."""
    model, x, y = make_case("mlp")

    @propkit.probe
    def slow(output):
        time.sleep(0.005)
        return output.mean()

    with propkit.attach(model, probes=[slow], budget=0.5) as recorder:
        loop(model, x, y, 120)
    found = recorder.run.attributes
    assert found["budget"]["share"] == 0.5
    assert found["budget"]["factor"] >= 4
    factors = [c["factor"] for c in found["budget"]["history"]]
    assert factors[0] == 2
    assert found["budget"]["factor"] == factors[-1]
    steps = recorder.run["slow"].step.values
    assert len(steps) < 60
    late = found["budget"]["history"][-1]["step"]
    assert set(steps[steps > late] % factors[-1]) <= {0}
    sites = recorder.run["slow"].sizes["site"]
    assert 0.005 * sites < found["overhead"]["seconds"] < 0.05 * sites
    assert found["overhead"]["measured_steps"] == pytest.approx(len(steps), abs=1)


def test_the_overhead_is_recorded_without_a_budget(tmp_path):
    model, x, y = make_case("mlp")
    with propkit.attach(model, tmp_path / "run.zarr", every=3) as recorder:
        loop(model, x, y, 30)
    found = propkit.open(tmp_path / "run.zarr").attributes
    assert "budget" not in found
    assert (
        found["overhead"]["measured_steps"] == 9
    )  # ten, but for the first, whose begin nobody saw
    assert found["overhead"]["other_steps"] == 20
    assert found["overhead"]["basis"] == "measured steps against others"
    assert 0 <= found["overhead"]["seconds"] < 1
    assert recorder.steps == 30
    assert torch.get_num_threads() == 1
