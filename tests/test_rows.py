"""Combining the values of a step, against loops in NumPy."""

import gc
import random
import sys
import threading
import types
import weakref
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from propkit.hooks.taps import EVALUATION, NEUTRAL, TRAINING
from propkit.recording.curves import Curves
from propkit.recording.rows import Values, combine, make_row, scalars_to_host, to_host
from propkit.store import pauses

RULES = ["mean", "sum", "norm", "max", "min"]
VALUES = st.lists(
    st.tuples(st.integers(0, 5), st.floats(-1e3, 1e3), st.integers(1, 50)), min_size=0, max_size=30
)


@given(
    st.lists(VALUES, max_size=4),
    st.lists(st.sampled_from(RULES), min_size=6, max_size=6),
)
def test_combine_equals_a_loop(rows, rules) -> None:
    made = []
    for step, values in enumerate(rows):
        slots = np.array([v[0] for v in values], dtype=np.int64)
        numbers = np.array(
            [abs(v[1]) if rules[v[0]] == "norm" else v[1] for v in values], dtype=float
        )
        made.append(Values(step, slots, numbers, np.array([v[2] for v in values], dtype=float)))
    combined = combine(made, rules)
    assert combined.shape == (len(rows), len(rules))
    for (_, slots, numbers, weights, _), found in zip(made, combined, strict=True):
        for slot, rule in enumerate(rules):
            here, own = numbers[slots == slot], weights[slots == slot]
            if not len(here):
                assert np.isnan(found[slot])
                continue
            if len(here) == 1:
                assert found[slot] == here[0]
                continue
            expected = {
                "mean": lambda v: np.average(v, weights=own),  # noqa: B023
                "sum": np.sum,
                "norm": np.linalg.norm,
                "max": np.max,
                "min": np.min,
            }[rule](here)
            np.testing.assert_allclose(found[slot], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_nan_and_inf_carry_through(rule) -> None:
    slots = np.array([0, 0, 1, 1])
    row = Values(0, slots, np.array([1.0, np.nan, np.inf, 1.0]), np.ones(4))
    (found,) = combine([row], [rule, rule])
    assert np.isnan(found[0])
    assert found[1] == (1.0 if rule == "min" else np.inf)


@pytest.mark.parametrize("rule", ["mean", "sum", "norm", "max", "min"])
def test_an_empty_signal_counts_only_where_there_is_no_other(rule) -> None:
    """As of an expert that got no token in one of two micro-batches."""
    nan = float("nan")
    row = Values(
        0, np.array([0, 0, 1, 1]), np.array([nan, 3.0, nan, nan]), np.array([0.0, 4, 0, 0])
    )
    found = combine([row], [rule, rule])
    assert found[0, 0] == 3
    assert np.isnan(found[0, 1])


def test_rows_keep_training_values_and_drop_evaluation() -> None:
    def value(slot, number, origin):
        return (slot, torch.tensor(number), 1.0, origin)

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
    row = make_row(0, [(i, v, 1.0, TRAINING) for i, v in enumerate(values)])
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


@pytest.mark.parametrize(
    "name",
    ["", "a/b", "a\\b", ".a", "__a", "zarr.json", "a\0b", "a\nb", "\ud800", "x" * 201, "ä" * 101],
)
def test_a_name_that_no_store_could_hold_is_refused_at_the_call(name) -> None:
    curves = Curves()
    curves.add(0, None, {"loss": 1.0})
    with pytest.raises(ValueError, match=r"a name is a variable of the run.*write '[\w.]+'"):
        curves.add(1, None, {name: 1.0})
    assert [v.name for v in curves.take(None)[1].variables] == ["loss"]


@pytest.mark.parametrize("step", [torch.tensor(2), np.int64(2), np.uint8(2), np.array(2)])
def test_any_integer_may_be_a_step(step) -> None:
    curves = Curves()
    for s in (0, 1, True, step, 2):
        curves.add(0, s, {"loss": 1.0})
    assert _steps(curves) == [0, 1, 2]
    assert all(type(s) is int for s in (*curves._open, curves._written))


@pytest.mark.parametrize(
    ("step", "kind", "match"),
    [
        (1.5, TypeError, r"log\(step=...\): expected the number of a step.*found float 1\.5"),
        (1.0, TypeError, "found float"),
        ("a", TypeError, "found str 'a'"),
        (torch.tensor(1.0), TypeError, "found Tensor"),
        (torch.tensor([1, 2]), TypeError, "found Tensor"),
        (2**63, ValueError, r"expected a step below 2\*\*63"),
        (np.uint64(2**63), ValueError, r"expected a step below 2\*\*63"),
        (-1, ValueError, "in the order of steps"),
    ],
)
def test_what_is_no_step_is_refused_at_the_call(step, kind, match) -> None:
    curves = Curves()
    curves.add(0, 0, {"loss": 1.0})
    with pytest.raises(kind, match=match):
        curves.add(0, step, {"loss": 1.0})
    assert _steps(curves) == [0]


def test_steps_increase_whatever_several_threads_log() -> None:
    curves, taken, done = Curves(), [], threading.Event()

    def log() -> None:
        while not done.is_set():
            with suppress(ValueError):  # written already
                curves.add(0, random.randrange(len(taken) + 100), {"loss": 1.0})

    threads = [threading.Thread(target=log) for _ in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for t in threads:
            t.start()
        for before in range(0, 3000, 10):
            taken += _steps(curves, before)
    finally:
        done.set()
        sys.setswitchinterval(interval)
        for t in threads:
            t.join()
    taken += _steps(curves)
    assert taken == sorted(set(taken))


@pytest.mark.parametrize("value", [torch.zeros(2), "1", None])
def test_only_scalars_are_logged(value) -> None:
    with pytest.raises(TypeError, match=r"log\(loss=...\): expected a number"):
        Curves().add(0, None, {"loss": value})


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(0.1),
        torch.tensor([[0.1]]),
        torch.tensor(0.1, dtype=torch.bfloat16),
        torch.tensor(1e-300, dtype=torch.float64),
        torch.tensor(2**40 + 1),
        torch.tensor(True),
        torch.nn.Parameter(torch.tensor(0.1)),
        np.float32(0.1),
        np.int64(7),
        float("inf"),
        True,
    ],
)
def test_a_logged_value_is_exact(value) -> None:
    curves = Curves()
    for step in range(2):  # the first time, and when the name is known
        curves.add(step, step, {"loss": value})
    expected = value.double().item() if isinstance(value, torch.Tensor) else float(value)
    assert curves.take(None)[0].columns()["loss"].tolist() == [expected] * 2


def test_logging_keeps_neither_the_tensor_nor_its_graph() -> None:
    curves = Curves()
    for step, kind in enumerate((lambda t: t, torch.nn.Parameter, lambda t: t[None])):
        leaf = torch.tensor(2.0, requires_grad=True)
        loss = kind(leaf * 3)
        kept = weakref.ref(loss), weakref.ref(leaf)
        curves.add(step, step, {"loss": loss})
        del leaf, loss
        gc.collect()
        assert [reference() for reference in kept] == [None, None]
    assert curves.take(None)[0].columns()["loss"].tolist() == [6.0, 6.0, 6.0]


class Elsewhere(torch.Tensor):
    """A tensor that is not taken for one in this machine's memory: it is copied where it is."""


def test_a_tensor_on_a_device_is_copied_there() -> None:
    curves = Curves()
    loss = torch.tensor(2.0).as_subclass(Elsewhere)
    curves.add(0, 0, {"loss": loss})
    loss *= 10
    curves.add(1, 1, {"loss": torch.zeros((), device="meta", requires_grad=True)})
    first, second = curves.take(None)[0].curves
    assert isinstance(first["loss"], torch.Tensor)
    assert float(first["loss"]) == 2.0
    assert second["loss"].device.type == "meta"
    assert not second["loss"].requires_grad


@pytest.mark.parametrize("value", [torch.tensor(1j), torch.zeros(0), torch.zeros(3, 1), 1j])
def test_what_is_no_number_is_refused_each_time(value) -> None:
    curves = Curves()
    curves.add(0, 0, {"loss": 1.0})
    with pytest.raises(TypeError, match=r"log\(loss=...\): expected a number"):
        curves.add(1, 1, {"loss": value})
    assert _steps(curves) == [0]


def test_only_a_thread_in_the_background_pauses(monkeypatch) -> None:
    slept, times = [], iter([0.0, 1e-5, 1.0, 1.0, 1.00001])
    monkeypatch.setattr(
        pauses,
        "time",
        types.SimpleNamespace(sleep=slept.append, perf_counter=lambda: next(times)),
    )
    pauses.pause()
    assert not slept

    def work() -> None:
        pauses.in_background()
        pauses.pause()  # too soon
        assert not slept
        pauses.pause()
        pauses.pause()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert slept == [pauses.PAUSE]
    pauses.pause()
    assert slept == [pauses.PAUSE]
