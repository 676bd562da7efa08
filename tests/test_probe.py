"""Declaring probes, finding them by name, schedules, sites."""

import pytest
import torch
from torch import nn

import propkit
from propkit import registry
from propkit.probe import SIGNALS
from propkit.schedules import as_schedule, every, log_spaced
from propkit.sites import fans, find_sites, is_kind, type_name, weight_of
from propkit.testing import TinyResNet, mlp


def test_an_unknown_signal_is_refused_with_the_list() -> None:
    with pytest.raises(TypeError, match="'outputs'.*" + ", ".join(SIGNALS)):
        propkit.probe(lambda outputs: outputs)
    with pytest.raises(TypeError, match="no parameter"):
        propkit.probe(lambda: 0)
    with pytest.raises(TypeError, match="'update' is known only after"):
        propkit.probe(lambda update, output: 0)
    with pytest.raises(ValueError, match="reduce='median'"):
        propkit.probe(reduce="median")(lambda output: 0)
    with pytest.raises(ValueError, match="sites='convs'"):
        propkit.probe(sites="convs")


def test_probes_are_found_by_name_and_by_entry_point(monkeypatch) -> None:
    assert set(registry.DEFAULT_PROBES) <= set(registry.probe_names())
    assert registry.find_probe("weight") is propkit.probes.weight

    class Entry:
        name = "third_party"

        def load(self):
            return propkit.probe(name="third_party")(lambda output: output.sum())

    class Wrong(Entry):
        name = "wrong"

        def load(self):
            return print

    def entry_points(group, name=None):
        assert group == "propkit.probes"
        return [e for e in (Entry(), Wrong()) if name in (None, e.name)]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    assert registry.find_probe("third_party").name == "third_party"
    assert registry.probe_names()[-2:] == ["third_party", "wrong"]
    with pytest.raises(TypeError, match=r"not made by @propkit\.probe"):
        registry.find_probe("wrong")


def test_every_probe_declares_itself_well() -> None:
    for name in registry.probe_names():
        p = registry.find_probe(name)
        assert p.name == name
        assert p.reference
        for m in p.measurements:
            assert m.function.__doc__, f"{name}: {m.function.__name__} has no docstring"


def test_schedules() -> None:
    assert [s for s in range(9) if every(4)(s)] == [0, 4, 8]
    due = [s for s in range(10_001) if log_spaced(10)(s)]
    assert due[:5] == [0, 1, 2, 3, 4]
    assert {10, 100, 1000, 10_000} <= set(due)
    assert len([s for s in due if 1000 <= s < 10_000]) == 10
    assert as_schedule(due.__contains__)(100)
    with pytest.raises(ValueError, match="per_decade"):
        log_spaced(0)


def test_sites_by_pattern_and_kind() -> None:
    probes = registry.find_probes(None)
    model = TinyResNet()
    sites, remarks = find_sites(
        model, probes, include=r".*conv\d", exclude=r"blocks\.0\..*", blocks=r"blocks\.\d"
    )
    names = [s.name for s in sites]
    assert names == [
        "blocks.0", "blocks.1", "blocks.1.conv1", "blocks.1.conv2", "blocks.2", "blocks.2.conv1", "blocks.2.conv2",
    ]  # fmt: skip
    assert [p.name for p in sites[0].probes] == ["gradient_norm"]
    assert remarks == []
    _, remarks = find_sites(model, probes, include=r".*bn\d|.*relu")
    assert "probe 'filter_correlation' has no site" in " ".join(remarks)
    own, _ = find_sites(
        model,
        [propkit.probe(sites=lambda m: isinstance(m, nn.BatchNorm2d), name="bn")(lambda output: 0)],
    )
    assert len(own) == 6


def test_kinds_of_modules() -> None:
    class Scale(nn.Module):
        def __init__(self, *shape):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(*shape))

    kinds = {
        nn.Conv1d(2, 3, 1): (True, True, True),
        nn.ConvTranspose2d(2, 3, 1): (True, True, True),
        nn.LSTM(2, 3): (True, False, True),
        nn.MultiheadAttention(4, 2): (True, False, True),
        nn.Embedding(5, 2): (True, False, True),
        nn.LazyLinear(3): (True, True, True),
        nn.GELU(): (False, False, True),
        nn.BatchNorm1d(3): (False, False, False),
        nn.Dropout(): (False, False, False),
        Scale(3): (False, False, False),
        Scale(3, 2): (True, False, True),
        mlp(): (False, False, False),
    }
    for module, expected in kinds.items():
        found = tuple(is_kind(module, k) for k in ("parametric", "filters", "layer"))
        assert found == expected, module


def test_fans_and_weights() -> None:
    assert fans(nn.Conv2d(6, 4, (3, 5), groups=2)) == (45, 4)
    assert fans(nn.Linear(7, 3)) == (7, 3)
    assert fans(nn.ConvTranspose2d(6, 4, 3, groups=2)) == (27, 4)
    assert fans(nn.ReLU()) == (0, 0)
    assert weight_of(nn.BatchNorm2d(3)) is None
    assert weight_of(nn.GRU(2, 3)).shape == (9, 2)


def test_the_type_is_that_of_the_model_as_written() -> None:
    class FSDPish(nn.Linear):
        pass

    assert type_name(nn.Linear(2, 2)) == "Linear"
    assert type_name(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))) == "Linear"
    assert type_name(FSDPish(2, 2)) == "FSDPish"


def test_lazy_layers_are_observed() -> None:
    model = nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.LazyLinear(2))
    with propkit.attach(model) as recorder:
        model(torch.randn(3, 4)).sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert recorder.run["weight"]["fan_in"].values.tolist() == [4, 5]
