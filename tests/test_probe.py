"""Declaring probes, finding them by name, schedules, sites."""

import doctest
import importlib

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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dims": {"v": "site"}}, "'v' cannot lie along 'site'; give the dimension a name that"),
        ({"dims": {"v": "row_size"}}, "cannot lie along 'row_size'"),
        ({"dims": {"v": "depth"}}, "cannot lie along 'depth'"),
        ({"dims": {"v": "v"}}, "cannot lie along 'v'"),
        ({"dims": {"v": "a b"}}, "cannot lie along 'a b'"),
        ({"dims": {"v": "a", "w": "b"}}, "one ragged dimension per probe, found a, b"),
        ({"coords": {"q": (0.0,)}}, "coords names 'q', which dims={} does not"),
        ({"dims": {"v": "q"}, "coords": {"q": ()}}, r"coords\['q'\] is empty"),
        ({"dims": {"v": "q"}, "dtype": {"w": "float32"}}, "dtype names 'w', which dims="),
        ({"dims": {"v": "q"}, "dtype": {"v": "int8"}}, "dtype='int8': expected 'float32' or"),
        ({"every": 0}, "every=0"),
    ],
)
def test_dimensions_that_contradict_each_other_are_refused(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        propkit.probe(**arguments)(lambda output: output)


def test_the_functions_of_a_probe_share_its_dimensions() -> None:
    @propkit.probe(dims={"v": "k", "q": "quantile"}, coords={"quantile": (0, 1)})
    def first(output):
        return {}

    assert first.axes == {"k": None, "quantile": (0.0, 1.0)}
    with pytest.raises(ValueError, match="one ragged dimension per probe, found k, j"):
        first.also(dims={"w": "j"})(lambda input: input)
    with pytest.raises(ValueError, match="'quantile' has two sets of coords"):
        first.also(dims={"w": "quantile"}, coords={"quantile": (0, 2)})(lambda input: input)
    with pytest.raises(ValueError, match="'k' has two sets of coords"):
        first.also(dims={"w": "k"}, coords={"k": (0, 2)})(lambda input: input)
    assert len(first.measurements) == 1
    first.also(dims={"w": "k"}, dtype={"w": "float64"})(lambda input: input)
    m, n = first.measurements
    assert [m.dtype_of("v"), m.dtype_of("q"), n.dtype_of("w"), n.dtype_of("x")] == [
        *("float32", "float64", "float64", "float64")
    ]


def _sampling(model, **options):
    recorder = propkit.attach(model, **options)
    recorder.detach()
    return recorder.run.attributes["sampling"]


def test_dear_probes_keep_their_own_schedule_unless_they_are_named() -> None:
    @propkit.probe(every=7)
    def dear(output):
        return output.sum()

    @propkit.probe(every=log_spaced(4))
    def dearer(output):
        return output.sum()

    def thirds(step):
        return step % 3 == 0

    model, probes = mlp(), [dear, dearer, "weight"]
    assert _sampling(model, probes=probes) == {"dear": 7, "dearer": "log_spaced(4)", "weight": 1}
    for usual, said in (
        (50, 50),
        (every(50), 50),
        (log_spaced(2), "log_spaced(2)"),
        (thirds, None),
    ):
        found = _sampling(model, probes=probes, every=usual)
        assert (found["dear"], found["dearer"]) == (7, "log_spaced(4)")
        assert found["weight"] == (said or thirds.__qualname__)
    assert _sampling(model, probes=probes, every={"dear": 2}) == {
        **{"dear": 2, "dearer": "log_spaced(4)", "weight": 1}
    }
    # There is no other probe that it could mean.
    assert _sampling(model, probes=[dear, dearer], every=5) == {"dear": 5, "dearer": 5}
    assert _sampling(model, probes=dear) == {"dear": 7}


def test_a_dear_probe_is_measured_on_its_schedule() -> None:
    model = mlp()
    with propkit.attach(model, probes=["representation", "activation"], every=4) as recorder:
        for _ in range(13):
            model(torch.ones(2, 12))
            recorder.step()
    run = recorder.run
    assert run["activation"]["step"].values.tolist() == [0, 4, 8, 12]
    expected = [step for step in range(13) if log_spaced(10)(step)]
    assert run["representation"]["step"].values.tolist() == expected
    assert len(expected) < 13


@pytest.mark.parametrize("name", registry.probe_names())
def test_examples_of_probes_hold(name) -> None:
    """Pytest does not find them: a probe is no function."""
    for m in registry.find_probe(name).measurements:
        module = importlib.import_module(m.function.__module__)
        for example in doctest.DocTestFinder().find(m.function, globs=vars(module).copy()):
            found = doctest.DocTestRunner(verbose=False).run(example)
            assert not found.failed
