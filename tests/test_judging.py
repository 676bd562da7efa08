"""Judging by columns: against plain loops over the layers, and the same by both of its users."""

import math
import subprocess
import sys
from typing import NamedTuple

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import propkit
from propkit.diagnosis.judging import (
    families,
    judge_layers,
    observations,
    quotient,
    relative_to_first,
    relative_to_last,
)
from propkit.diagnosis.verdict import Thresholds
from propkit.report.layers import read_layers
from tests.conftest import sgd


class Layer(NamedTuple):
    depth: int
    shape: tuple[int, ...]
    observations: int = 64


values = st.one_of(st.floats(1e-6, 1e6), st.sampled_from([0.0, math.inf, math.nan]))
networks = st.lists(st.tuples(st.integers(1, 4), values, st.booleans()), max_size=8)


@given(networks)
def test_values_are_compared_within_outputs_of_as_many_dimensions(network) -> None:
    layers = {f"l{i}": Layer(i, (2,) * dims) for i, (dims, _, _) in enumerate(network)}
    column = {f"l{i}": v for i, (_, v, there) in enumerate(network) if there}
    first, last = relative_to_first(column, layers), relative_to_last(column, layers)
    for site, value in column.items():
        alike = [
            column[s]
            for s in layers
            if s in column and len(layers[s].shape) == len(layers[site].shape)
        ]
        usable = [v for v in alike if math.isfinite(v) and v > 0]
        for ratios, position in ((first, 0), (last, -1)):
            if not usable:
                assert site not in ratios
            else:
                expected = value / usable[position]
                assert ratios[site] == expected or (
                    math.isnan(expected) and math.isnan(ratios[site])
                )
    assert set(first) | set(last) <= set(column)


def test_the_order_is_that_of_the_layers_not_of_the_column() -> None:
    layers = {"a": Layer(1, (2, 3)), "b": Layer(2, (2, 3)), "c": Layer(3, (2, 3, 4, 4))}
    assert families({"c": 1.0, "b": 1.0, "a": 4.0}, layers) == [["a", "b"], ["c"]]
    assert relative_to_last({"b": 2.0, "a": 4.0}, layers) == {"a": 2.0, "b": 1.0}


def test_a_quotient_needs_both_and_a_divisor() -> None:
    assert quotient({"a": 6.0, "b": 1.0, "c": 1.0}, {"a": 3.0, "b": 0.0, "d": 1.0}) == {"a": 2.0}


def test_observations_by_counting() -> None:
    for shape, convolution, units in (
        ((5, 3, 4, 4), True, 3),
        ((5, 3, 7), True, 3),
        ((5, 7, 3), False, 3),
        ((5, 3), False, 3),
        ((5, 3, 2, 2, 2), False, 3),
        ((5,), False, 5),
    ):
        assert observations(shape, convolution) == torch.zeros(shape).numel() // units
    assert observations((), True) == observations((4, 0), False) == 0


def test_what_was_measured_as_nan_explodes_and_what_was_not_measured_does_not() -> None:
    layers = {"a": Layer(1, (8, 16)), "b": Layer(2, (8, 16)), "c": Layer(3, (8, 4))}
    columns = {"error_moment": {"a": math.nan, "b": 1.0}, "mean_cosine": {"b": 1.0, "c": 1.0}}
    found = judge_layers(columns, layers, Thresholds())
    assert list(found) == ["a", "b"]  # of c nothing is known that is judged
    assert found["a"][0].verdict == "exploding"
    assert [f.verdict for f in found["b"]] == ["singular"]


def test_an_output_without_elements_is_not_judged() -> None:
    """As that of an expert that was given no token."""
    layers = {"a": Layer(1, (8, 16)), "idle": Layer(1, (0, 16), 0), "b": Layer(2, (8, 4))}
    columns = {"activation_moment": {"a": 1.0, "idle": math.nan, "b": math.nan}}
    found = judge_layers(columns, layers, Thresholds())
    assert {site: [f.verdict for f in fs] for site, fs in found.items()} == {
        "a": [],
        "b": ["exploding"],
    }


def test_what_a_layer_was_given_is_no_fault_of_it() -> None:
    layers = {"a": Layer(1, (8, 16)), "b": Layer(2, (8, 16)), "c": Layer(3, (8, 4))}
    columns = {
        "activation_moment": {"a": 1.0, "b": math.inf, "c": 1.0},
        "error_moment": {"a": 0.0, "b": 1.0, "c": math.nan},
    }
    found = judge_layers(columns, layers, Thresholds(), finite_input=False)
    assert {site: [f.verdict for f in fs] for site, fs in found.items()} == {"a": ["vanishing"]}


def test_the_last_layer_s_conditioning_is_not_judged() -> None:
    layers = {"a": Layer(1, (8, 16)), "b": Layer(2, (8, 16))}
    columns = {"activation_moment": {"a": 1.0, "b": 1.0}, "effective_rank": {"a": 1.0, "b": 1.0}}
    found = judge_layers(columns, layers, Thresholds())
    assert [[f.verdict for f in fs] for fs in found.values()] == [["singular"], []]


def test_a_second_call_has_the_weight_of_its_site() -> None:
    layers = {"a": Layer(1, (8, 16)), "a#1": Layer(2, (8, 16)), "b": Layer(3, (8, 4))}
    columns = {"activation_moment": {"a": 1.0, "a#1": 0.0}, "dead": {"a": 0.0, "a#1": 1.0}}
    assert judge_layers(columns, layers, Thresholds())["a#1"]
    zero = {**columns, "weight_norm": {"a": 0.0}}
    assert not judge_layers(zero, layers, Thresholds())["a#1"]  # zero weights are on purpose


def test_a_measurement_and_a_recorded_step_of_the_same_batch_are_judged_alike() -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(30):
        layers += [nn.Linear(16, 16), nn.ReLU()]
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 16), *layers)
    x, y = torch.randn(16, 1, 4, 4), torch.arange(16) % 4
    probes = ["error_moment", "activation", "representation", "weight"]
    measured = propkit.measure(model, x, y, loss=F.cross_entropy, probes=probes)
    with propkit.attach(model, probes=probes, every=1) as recorder:
        F.cross_entropy(model(x), y).backward()
        sgd(model).step()
    recorded = {
        layer.site: [f.verdict for f in layer.findings or []]
        for layer in read_layers(recorder.run, "first")
        if layer.findings is not None
    }
    problems = measured.problems
    assert len({f.verdict for found in problems.values() for f in found}) > 1
    assert recorded == {s: [f.verdict for f in problems.get(s, [])] for s in recorded}
    assert set(problems) <= set(recorded)


def test_neither_judging_nor_the_report_loads_torch() -> None:
    code = (
        "import sys, propkit.diagnosis.judging, propkit.report.page, propkit.commands.report\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
