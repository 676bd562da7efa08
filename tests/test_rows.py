"""Combining the values of a step, against loops in NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from propkit.hooks.taps import EVALUATION, NEUTRAL, TRAINING
from propkit.recording.curves import Curves
from propkit.recording.rows import Observation, combine, make_row, scalars_to_host, to_host

RULES = ["mean", "sum", "norm", "max", "min"]
VALUES = st.lists(
    st.tuples(st.integers(0, 5), st.floats(-1e3, 1e3), st.integers(1, 50)), min_size=0, max_size=30
)


@given(VALUES, st.lists(st.sampled_from(RULES), min_size=6, max_size=6))
def test_combine_equals_a_loop(values, rules) -> None:
    slots = np.array([v[0] for v in values], dtype=np.int64)
    numbers = np.array([v[1] for v in values])
    numbers = np.array(
        [abs(n) if rules[s] == "norm" else n for s, n in zip(slots, numbers, strict=True)]
    )
    weights = np.array([v[2] for v in values], dtype=float)
    found = combine(slots, numbers, weights, rules)
    for slot, rule in enumerate(rules):
        here = numbers[slots == slot]
        if not len(here):
            assert np.isnan(found[slot])
            continue
        expected = {
            "mean": lambda v: np.average(v, weights=weights[slots == slot]),  # noqa: B023
            "sum": np.sum,
            "norm": np.linalg.norm,
            "max": np.max,
            "min": np.min,
        }[rule](here)
        np.testing.assert_allclose(found[slot], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_nan_and_inf_carry_through(rule) -> None:
    slots = np.array([0, 0, 1, 1])
    found = combine(slots, np.array([1.0, np.nan, np.inf, 1.0]), np.ones(4), [rule, rule])
    assert np.isnan(found[0])
    assert found[1] == (1.0 if rule == "min" else np.inf)


def test_rows_keep_training_values_and_drop_evaluation() -> None:
    def value(slot, number, origin):
        return Observation(slot, torch.tensor(number), 1.0, origin)

    mixed = [value(0, 1.0, EVALUATION), value(1, 2.0, TRAINING), value(2, 3.0, NEUTRAL)]
    row = make_row(7, mixed)
    assert row.step == 7
    assert row.slots.tolist() == [1, 2]
    assert to_host(row.vectors)[0].tolist() == [2.0, 3.0]
    alone = make_row(0, [mixed[0], mixed[2]])
    assert alone.slots.tolist() == [0, 2]


def test_values_of_any_dtype_are_stacked_exactly() -> None:
    values = [
        torch.tensor(1e-60, dtype=torch.float64),
        torch.tensor(0.5, dtype=torch.bfloat16),
        torch.tensor(3),
    ]
    row = make_row(0, [Observation(i, v, 1.0, TRAINING) for i, v in enumerate(values)])
    assert to_host(row.vectors)[0].tolist() == [1e-60, 0.5, 3.0]


def test_scalars_mix_tensors_and_numbers() -> None:
    assert scalars_to_host([1.5, torch.tensor(2.5), 3]).tolist() == [1.5, 2.5, 3.0]
    assert scalars_to_host([]).tolist() == []


def _steps(curves: Curves, before: int | None = None) -> list[int]:
    return curves.take(before)[0].steps


@pytest.mark.parametrize("first", [0, 1])
def test_log_before_or_after_the_step_gives_the_same_steps(first: int) -> None:
    curves = Curves()
    for completed in range(first, first + 4):
        curves.add(completed, None, {"loss": 1.0})
    assert _steps(curves) == [0, 1, 2, 3]


def test_curves_merge_within_a_step_grow_and_keep_their_values() -> None:
    curves = Curves()
    loss = torch.tensor([2.0], requires_grad=True)
    curves.add(0, 0, {"loss": loss})
    with torch.no_grad():
        loss *= 10  # the loop goes on with its tensor
    curves.add(0, 0, {"accuracy": 1})
    curves.add(1, 1, {"loss": np.float32(3.0)})
    rows, group = curves.take(1)
    assert rows.steps == [0]
    assert rows.columns()["loss"].tolist() == [2.0]
    assert [v.name for v in group.variables] == ["loss", "accuracy"]
    rows, group = curves.take(None)
    assert group is None
    assert rows.columns() == {"loss": [3.0]}
    curves.add(3, 3, {"extra": 1.0})
    assert [v.name for v in curves.take(None)[1].variables] == ["loss", "accuracy", "extra"]
    with pytest.raises(ValueError, match=r"log\(step=1\): the steps up to 3 are written"):
        curves.add(4, 1, {"loss": 1.0})


def test_names_that_no_variable_can_have_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"write 'train\.loss'"):
        Curves().add(0, None, {"train/loss": 1.0})


@pytest.mark.parametrize("value", [torch.zeros(2), "1", None])
def test_only_scalars_are_logged(value) -> None:
    with pytest.raises(TypeError, match=r"log\(loss=...\): expected a number"):
        Curves().add(0, None, {"loss": value})
