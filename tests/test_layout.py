"""Columns of sites that first give a value after rows were written: they are there, in order, NaN before."""

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import propkit
from propkit.hooks.taps import Key, Place
from propkit.recording import outbox
from propkit.recording.layout import Layout
from propkit.sites import find_sites
from tests.conftest import sgd


class Chosen(nn.Module):
    """Layers of which each forward uses some; the head always runs."""

    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(layers))
        self.head = nn.Linear(6, 3)
        self.chosen: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in self.chosen:
            x = self.layers[i](x).tanh()
        return self.head(x)


@propkit.probe(sites="filters", dims={"norms": "unit"}, reduce="max")
def norms(output):
    """Norms of the units over the batch, and the largest."""
    found = output.norm(dim=0)
    return {"norms": found, "largest": found.max()}


def train(model, choices, **options) -> propkit.Run:
    optimizer = sgd(model)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    with propkit.attach(model, **options) as recorder:
        for chosen in choices:
            model.chosen = list(chosen)
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    return recorder.run


CHOICES = [(0, 2), (0, 2), (2,), (0, 1, 2), (0,), (0, 0, 2), (0, 1, 2)]


@pytest.fixture(params=[1, 2, 3])
def flush(request, monkeypatch):
    monkeypatch.setattr(outbox, "FLUSH_ROWS", request.param)


@pytest.mark.parametrize("stored", [True, False])
def test_late_columns_are_those_of_a_run_that_is_written_once(
    flush, stored, tmp_path, monkeypatch
) -> None:
    """Rows written one by one give the values of rows written together."""
    monkeypatch.setattr(outbox, "DISCOVERY_FLUSHES", 100)
    runs = []
    for store in (tmp_path / "run.zarr" if stored else None, None):
        torch.manual_seed(0)
        if store is None and runs:
            outbox.FLUSH_ROWS = 64
        probes = ["error_moment", "activation", "weight", norms]
        runs.append(train(Chosen(), CHOICES, store=store, probes=probes))
    late, once = runs
    for group in ("error_moment", "activation", "weight"):
        ours, whole = late[group].load(), once[group]
        assert ours["site"].values.tolist() == whole["site"].values.tolist()
        assert sorted(ours) == sorted(whole)
        for name in whole.data_vars:
            np.testing.assert_array_equal(ours[name], whole[name])
    assert once["activation"]["site"].values.tolist() == [
        *("layers.0", "layers.1", "layers.0#1", "layers.2", "head")
    ]
    for site in once["norms"]["site"].values.tolist():  # ragged: in the order in which they came
        np.testing.assert_array_equal(
            late.spectrum(site, group="norms"), once.spectrum(site, group="norms")
        )
        np.testing.assert_array_equal(
            late["norms"]["largest"].sel(site=late["norms"]["site"] == site).squeeze(),
            once["norms"]["largest"].sel(site=once["norms"]["site"] == site).squeeze(),
        )
    assert not any("left out" in note for note in late.attributes["notes"])


def test_the_store_is_plain_zarr_with_late_columns_at_the_end(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(outbox, "FLUSH_ROWS", 1)
    run = train(Chosen(), CHOICES, store=tmp_path / "run.zarr", probes="activation")
    stored = xr.open_zarr(tmp_path / "run.zarr", group="activation")
    assert stored["site"].values.tolist() == [
        *("layers.0", "layers.2", "head", "layers.1", "layers.0#1")
    ]
    order = stored.attrs["site_order"]
    assert stored["site"].values[order].tolist() == run["activation"]["site"].values.tolist()
    assert "site_order" not in run["activation"].attrs


def test_places_are_looked_for_until_all_sites_were_seen_but_not_for_ever(monkeypatch) -> None:
    monkeypatch.setattr(outbox, "FLUSH_ROWS", 1)
    early = train(Chosen(3), [(0,), (0, 1)], probes="activation")["activation"]
    assert early["output_shape"].values.tolist() == ["(5, 6)", "(5, 6)", "(5, 3)"]
    assert early["depth"].values.tolist() == [1, 2, 3]
    choices = [(0,)] * (outbox.DISCOVERY_FLUSHES + 1) + [(0, 1, 2)]
    late = train(Chosen(3), choices, probes="activation")["activation"]
    assert late["site"].values.tolist() == ["layers.0", "layers.1", "layers.2", "head"]
    assert late["output_shape"].values.tolist() == ["(5, 6)", "", "", "(5, 3)"]


def test_sites_that_never_run_have_no_column_and_are_named() -> None:
    run = train(Chosen(), [(0,)] * 3, probes=["activation", norms])
    assert run["activation"]["site"].values.tolist() == ["layers.0", "head"]
    assert any("layers.1, layers.2, layers.3: not called" in n for n in run.attributes["notes"])


def _layout() -> tuple[Layout, propkit.Probe]:
    sites, _ = find_sites(Chosen(3), [norms])
    return Layout([norms], sites), norms


def test_a_ragged_value_without_room_is_a_stray() -> None:
    """The site has its columns already, and others' values lie on both sides."""
    layout, p = _layout()
    m = p.measurements[0]
    places = {(f"layers.{i}", 0): Place(i, i, "", "") for i in range(3)}
    layout.slot(Key("norms", "largest", "layers.0", 0), m)
    layout.slot(Key("norms", "norms", "layers.1", 0), m, 6)
    (group,) = layout.new_groups(places)
    assert group.coords["row_size"].tolist() == [0, 6]
    layout.slot(Key("norms", "norms", "layers.0", 0), m, 6)
    layout.slot(Key("norms", "norms", "layers.2", 0), m, 4)
    (group,) = layout.new_groups(places)
    assert group.coords["row_size"].tolist() == [0, 6, 4]
    assert [key.site for key in layout.plan().strays] == ["layers.0"]
    slots = layout.plan().slots["norms"]
    assert [t.where for t in slots.values()] == [0, slice(0, 6), slice(6, 10)]
    assert layout.new_groups(places) == []


def test_a_late_variable_is_added(monkeypatch) -> None:
    """No gradient is there in the first rows, so that only outputs are measured."""
    monkeypatch.setattr(outbox, "FLUSH_ROWS", 1)

    @propkit.probe(sites="filters")
    def both(output):
        return {"mean": output.mean()}

    @both.also()
    def of_gradient(grad_output):
        return {"gradient": grad_output.norm()}

    model = Chosen()
    with propkit.attach(model, probes=both) as recorder:
        for training in (False, True):
            with torch.set_grad_enabled(training):
                out = model(torch.ones(2, 6)).sum()
            if training:
                out.backward()
            recorder.step()
    ds = recorder.run["both"]
    assert list(ds.data_vars) == ["mean", "gradient"]
    assert np.isfinite(ds["mean"].values).all()
    assert np.isfinite(ds["gradient"].values).tolist() == [[False], [True]]


def test_lengths_are_checked() -> None:
    layout, p = _layout()
    m = p.measurements[0]
    layout.slot(Key("norms", "norms", "head", 0), m, 3)
    layout.slot(Key("norms", "norms", "head", 1), m, 5)  # another call is another site
    with pytest.raises(
        ValueError, match=r"expected 3 values of 'norms' at head, found 5: .*'unit'"
    ):
        layout.slot(Key("norms", "norms", "head", 0), m, 5)
