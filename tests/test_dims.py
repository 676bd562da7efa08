"""Probes whose variables have a dimension of their own, from the hooks to the run, against NumPy."""

import copy

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import propkit
from propkit.hooks.taps import TRAINING, Key
from propkit.notices import PropkitWarning
from propkit.recording import outbox
from propkit.recording.flush import append_rows
from propkit.recording.health import Health
from propkit.recording.layout import Layout
from propkit.recording.ranks import Shares, join
from propkit.recording.rows import combine_spectra, make_row, rows_to_host
from propkit.sites import find_sites
from propkit.store.memory import MemoryWriter
from tests.conftest import cross_entropy, make_case, sgd

QUANTILES = (0.0, 0.25, 1.0)


def kernels(**options) -> propkit.Probe:
    """Ragged (one value per filter), fixed (quantiles) and plain (a number) variables."""

    @propkit.probe(
        name="kernels",
        sites="filters",
        dims={"value": "kernel", "quantiles": "quantile"},
        coords={"quantile": QUANTILES},
        units={"value": "weight", "quantiles": "weight", "largest": "weight"},
        reduce=options.pop("reduce", {"value": "max"}),
        **options,
    )
    def kernels(weight, output):
        """Norms of the filters."""
        norms = weight.double().flatten(1).norm(dim=1)
        q = torch.tensor(QUANTILES, dtype=norms.dtype)
        return {"value": norms, "quantiles": norms.quantile(q), "largest": norms.max()}

    return kernels


def norms_of(model: nn.Module) -> dict[str, np.ndarray]:
    return {
        name: np.linalg.norm(m.weight.detach().double().flatten(1).numpy(), axis=1)
        for name, m in model.named_modules()
        if isinstance(m, (nn.Conv2d, nn.Linear))
    }


def train(model, loss, recorder_options, steps=3):
    optimizer = sgd(model)
    with propkit.attach(model, **recorder_options) as recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model).backward()
            optimizer.step()
    return recorder


@pytest.mark.parametrize("stored", [True, False])
def test_values_are_those_of_numpy_in_store_and_memory(stored, tmp_path) -> None:
    model, x, y = make_case("plain")
    twins = []

    def loss(net):
        twins.append(copy.deepcopy(net))
        return cross_entropy(x, y)(net)

    options = {"store": tmp_path / "run.zarr"} if stored else {}
    run = train(model, loss, {"probes": [kernels(), "error_moment"], **options}).run
    ds = run["kernels"]
    expected = [norms_of(twin) for twin in twins]
    names = list(expected[0])
    assert ds["site"].values.tolist() == names
    assert ds["row_size"].values.tolist() == [len(expected[0][n]) for n in names]
    assert ds["value"].dims == ("step", "kernel")
    assert (ds["value"].dtype, ds["largest"].dtype) == (np.float32, np.float64)
    assert ds["value"].attrs["units"] == "weight"
    assert ds["value"].attrs["reduce"] == "max"
    for step, values in enumerate(expected):
        flat = np.concatenate([values[n] for n in names])
        np.testing.assert_allclose(ds["value"][step], flat, rtol=1e-6)
        for i, name in enumerate(names):
            np.testing.assert_array_equal(
                ds["value"][step].values[ds["site_index"].values == i],
                values[name].astype(np.float32),
            )
            np.testing.assert_allclose(
                ds["quantiles"][step, i], np.quantile(values[name], QUANTILES), rtol=1e-12
            )
            np.testing.assert_allclose(
                run.spectrum(name, group="kernels", step=step, variable="value"),
                values[name],
                rtol=1e-6,
            )
    assert run["error_moment"].sizes["step"] == 3


def test_store_and_memory_are_identical_and_open_without_a_warning(tmp_path) -> None:
    runs = []
    for options in ({}, {"store": tmp_path / "run.zarr"}):
        torch.manual_seed(0)
        model, x, y = make_case("plain")
        runs.append(train(model, cross_entropy(x, y), {"probes": kernels(), **options}).run)
    memory, stored = (run["kernels"].load() for run in runs)
    xr.testing.assert_identical(memory, stored)
    tree = xr.open_datatree(tmp_path / "run.zarr", engine="zarr")
    assert set(tree["kernels"].coords) == set(memory.coords)
    assert "kernel: 27" in repr(runs[0])
    assert repr(runs[0]).splitlines()[1] == repr(runs[1]).splitlines()[1]


@pytest.mark.parametrize("rule", ["mean", "sum", "norm", "max", "min"])
def test_micro_batches_combine_element_by_element(rule) -> None:
    @propkit.probe(dims={"units": "unit"}, reduce=rule, sites="filters", dtype={"units": "float64"})
    def units(output):
        return output.double().abs().mean(0)

    model, x, _ = make_case("mlp")
    parts = [x[:2], x[2:3], x[3:]]
    with propkit.attach(model, probes=units) as recorder:
        for part in parts:
            model(part).sum().backward()
        recorder.step()
    found = recorder.run.spectrum("0", group="units", step=0)
    values = np.array([model[0](p).detach().double().abs().mean(0).numpy() for p in parts])
    weights = np.array([p.shape[0] for p in parts])
    expected = {
        "mean": np.average(values, axis=0, weights=weights),
        "sum": values.sum(0),
        "norm": np.sqrt((values**2).sum(0)),
        "max": values.max(0),
        "min": values.min(0),
    }[rule]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found.dtype == np.float64


def test_what_a_function_returns_may_be_changed_afterwards() -> None:
    """The optimiser changes the tensor in place before the step ends."""

    @propkit.probe(dims={"bias": "unit"}, sites="filters")
    def bias(module, output):
        return module.bias

    model, x, y = make_case("mlp")
    before = model[0].bias.detach().clone()
    run = train(model, cross_entropy(x, y), {"probes": bias}, steps=1).run
    assert not torch.equal(before, model[0].bias)
    np.testing.assert_array_equal(run.spectrum("0", group="bias", step=0), before)


def test_calls_have_spectra_of_their_own() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x):
            return self.fc(self.fc(x[:, :6]).tanh())

    @propkit.probe(dims={"rows": "row"}, sites="filters")
    def rows(output):
        return output.norm(dim=1)

    model, (_, x, _) = Twice(), make_case("mlp")
    with propkit.attach(model, probes=rows) as recorder:
        out = model(x)
        recorder.step()
    run = recorder.run
    np.testing.assert_allclose(run.spectrum("fc#1", group="rows", step=0), out.detach().norm(dim=1))
    assert run.spectrum("fc", group="rows").shape == (1, 8)


@pytest.mark.parametrize("ragged", [True, False])
def test_a_number_of_values_that_changes_is_a_fault_of_the_probe(ragged) -> None:
    @propkit.probe(
        dims={"rows": "row"}, sites="filters", coords=None if ragged else {"row": range(8)}
    )
    def rows(output):
        return output.norm(dim=1)

    model, x, y = make_case("mlp")
    optimizer = sgd(model)
    with propkit.attach(model, probes=[rows, "error_moment"]) as recorder:
        for step in range(4):
            part = slice(0, 5 if step == 2 else 8)
            if step == 2:
                with pytest.warns(
                    PropkitWarning, match="'rows' failed at step 2.*expected 8 .*found 5"
                ):
                    loss = cross_entropy(x[part], y[part])(model)
            else:
                loss = cross_entropy(x, y)(model)
            loss.backward()
            optimizer.step()
    run = recorder.run
    assert run["rows"]["step"].values.tolist() == [0, 1]
    assert run["error_moment"].sizes["step"] == 4
    expected = "must not change at a site" if ragged else "as many as 'row' has coords"
    assert expected in run.attributes["faults"]["rows"]


@pytest.mark.parametrize(
    ("value", "found"), [(torch.ones(2, 2), r"shape \(2, 2\)"), (torch.ones(()), r"shape \(\)")]
)
def test_other_shapes_are_a_fault(value, found) -> None:
    @propkit.probe(dims={"v": "k"})
    def wrong(output):
        return {"v": value}

    model, x, y = make_case("mlp")
    with pytest.warns(
        PropkitWarning, match=f"expected a 1-d tensor as value of 'v', found {found}"
    ):
        train(model, cross_entropy(x, y), {"probes": [wrong, "weight"]}, steps=1)


def test_nan_in_a_spectrum_is_kept_and_flagged_and_nothing_but_nan_switches_off() -> None:
    @propkit.probe(dims={"some": "k"})
    def some(output):
        return {"some": output.new_tensor([1.0, float("nan"), float("inf")])}

    @propkit.probe(dims={"none": "k"})
    def none(output):
        return {"none": output.new_tensor([float("nan")])}

    model, x, y = make_case("mlp")
    optimizer = sgd(model)
    with propkit.attach(model, probes=[some, none]) as recorder:
        cross_entropy(x, y)(model).backward()
        optimizer.step()
        with pytest.warns(PropkitWarning, match="'none'.*nothing but NaN"):
            run = recorder.run
    np.testing.assert_array_equal(run.spectrum("0", group="some", step=0), [1.0, np.nan, np.inf])
    assert run.attributes["not_finite"]["some"] == "step 0, 0: some is nan"
    assert list(recorder.run.attributes["faults"]) == ["none"]


def test_what_is_held_is_bounded_in_bytes(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(outbox, "FLUSH_BYTES", 4 * 27 * 5)
    model, x, y = make_case("plain")
    held = []
    optimizer = sgd(model)
    with propkit.attach(model, tmp_path / "run.zarr", probes=kernels(dtype=None)) as recorder:
        for _ in range(12):
            cross_entropy(x, y)(model).backward()
            optimizer.step()
            held.append(sum(row.nbytes for row in recorder._outbox.rows))
    row = 4 * 27 + 8 * 5 * 3  # float32 values, float64 quantiles
    assert held == [row, 2 * row, 0] * 4
    assert propkit.open(tmp_path / "run.zarr")["kernels"].sizes["step"] == 12


def test_a_probe_without_values_in_a_step_has_no_row_and_takes_no_room() -> None:
    model, x, y = make_case("plain")
    run = train(
        model,
        cross_entropy(x, y),
        {"probes": [kernels(), "error_moment"], "every": {"kernels": 3}},
        steps=7,
    ).run
    assert run["kernels"]["step"].values.tolist() == [0, 3, 6]
    assert run["error_moment"].sizes["step"] == 7


def test_measure_gives_spectra_too() -> None:
    model, x, y = make_case("plain")
    diagnosis = propkit.measure(model, x, y, loss=nn.functional.cross_entropy, probes=[kernels()])
    for name, expected in norms_of(model).items():
        found = diagnosis.run.spectrum(name, group="kernels", variable="value", step=0)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


# -- ranks ------------------------------------------------------------------------------------------------------------


def _share(layout: Layout, p: propkit.Probe, site: str, spectrum, number) -> Shares:
    m = p.measurements[0]
    observed = []
    for variable, value in (("largest", number), ("value", spectrum)):
        value = torch.tensor(value, dtype=torch.float64)
        key = Key(p.name, variable, site, 0)
        slot = layout.slot(key, m, len(value) if value.ndim else None)
        observed.append((slot, value, 1.0, TRAINING))
    return Shares(layout.plan().keys, rows_to_host([make_row(4, observed)]))


def test_ranks_combine_element_by_element_and_one_that_differs_is_a_fault() -> None:
    model, _, _ = make_case("mlp")
    p = kernels(reduce="max")
    layouts = [Layout([p], find_sites(model, [p])[0]) for _ in range(3)]
    shares = [
        _share(layouts[0], p, "0", [1.0, 5.0, 2.0], 1.0),
        _share(layouts[1], p, "0", [3.0, 4.0, 2.5], 7.0),
        _share(layouts[2], p, "0", [9.0, 9.0], 3.0),
    ]
    writer, health = MemoryWriter({}), Health()
    for group in layouts[0].new_groups({}):
        writer.define(group)
    plan = layouts[0].plan()
    unequal = append_rows(writer, plan, join(shares, plan.keys))
    writer.close("complete")
    run = propkit.Run.from_memory(writer)
    assert run.spectrum("0", group="kernels", step=4).values.tolist() == [3.0, 5.0, 2.5]
    assert run["kernels"]["largest"].item() == 7.0
    for slot, length in unequal:
        health.unequal(plan.keys[slot], plan.length(slot), length)
    assert "expected 3 values of 'value' at 0, found 2 on another rank" in health.faults["kernels"]


def test_several_ranks_flush_by_the_schedule_alone() -> None:
    """What the ranks hold may differ, and they must flush together."""
    model, _, _ = make_case("mlp")
    p = kernels()
    layout = Layout([p], find_sites(model, [p])[0])
    assert layout.wide_probes() == {"kernels"}
    box = outbox.Outbox(MemoryWriter({}), layout, False, [], object())
    assert box.due(True)
    assert not box.due(False)


def test_spectra_of_one_slot_stay_as_they_are() -> None:
    one = torch.tensor([1.0, 2.0], dtype=torch.float32)
    row = make_row(0, [(3, one, 1.0, TRAINING)])
    assert row.nbytes == 8
    combined = combine_spectra(rows_to_host([row])[0].spectra, ["mean"] * 4)
    assert combined[3].dtype == np.float32
    assert combined[3].tolist() == [1.0, 2.0]
