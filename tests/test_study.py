"""Studies against a lookup of every single value, and against xarray's own concatenation."""

import itertools

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import propkit
from propkit.notices import PropkitWarning
from propkit.schema import Group, Variable
from propkit.store.alignment import weave
from propkit.store.memory import MemoryWriter
from propkit.store.run import MissingGroupError, Run
from propkit.store.writer import ZarrWriter


def moments(names, *, depth=None, sizes=None):
    coords = {
        "site": np.array(names),
        "depth": np.arange(1, len(names) + 1) if depth is None else np.array(depth),
        "type": np.array(["Linear" if n == "fc" else "Conv2d" for n in names]),
    }
    variables = [Variable("output", "1", "moment"), Variable("input", dtype="float32")]
    axes = {}
    if sizes is not None:
        coords["row_size"] = np.array(sizes)
        variables.append(Variable("value", dim="sv"))
        axes["sv"] = None
    return Group("error_moment", tuple(variables), coords, {"reference": "a"}, axes)


def value(seed, step, name, variable, k=0):
    """A number that no other place has."""
    return float(abs(hash((seed, int(step), name, variable, k))) % 10**9)


def fill(writer, group, steps, seed):
    writer.define(group)
    names = group.coords["site"].tolist()
    columns = {
        v: np.array([[value(seed, s, n, v) for n in names] for s in steps]).reshape(-1, len(names))
        for v in ("output", "input")
    }
    if group.ragged:
        places = [
            (n, k) for n, c in zip(names, group.coords["row_size"], strict=True) for k in range(c)
        ]
        columns["value"] = np.array(
            [[value(seed, s, n, "value", k) for n, k in places] for s in steps]
        )
    writer.append("error_moment", np.array(steps, np.int64), columns)
    writer.commit()


PLAIN8 = ["conv1", "conv2", "fc"]
PLAIN14 = ["conv1", "conv2", "conv3", "conv4", "fc"]


@pytest.fixture
def make(tmp_path):
    """Stores runs below one folder."""

    def made(
        name="a", names=PLAIN8, steps=(0, 10, 20), seed=0, *, close=True, group=None, **attributes
    ):
        attributes = {"label": "plain", "seed": seed, **attributes}
        writer = ZarrWriter.create(tmp_path / "runs" / f"{name}.zarr", attributes)
        if names is not None:
            fill(writer, group or moments(names), steps, seed)
        if close:
            writer.close("complete")
        return writer.path

    return made


def memory(names, steps, seed=0, group=None, **attributes):
    writer = MemoryWriter({"label": "plain", "seed": seed, **attributes})
    if names is not None:
        fill(writer, group or moments(names), steps, seed)
    return Run.from_memory(writer)


def check(dataset, runs, dim="site"):
    """Every value of the dataset is that of the run, NaN where the run has none."""
    steps, labels = dataset["step"].values.tolist(), dataset[dim].values.tolist()
    for name in ("output", "input"):
        found = dataset[name].values
        assert found.shape == (len(runs), len(steps), len(labels))
        for i, run in enumerate(runs):
            own = run["error_moment"]
            rows, columns, values = own["step"].values, own[dim].values, own[name].values
            known = {
                (step, label): values[r, c]
                for (r, step), (c, label) in itertools.product(enumerate(rows), enumerate(columns))
            }
            expected = [[known.get((s, n), np.nan) for n in labels] for s in steps]
            np.testing.assert_array_equal(found[i], np.reshape(expected, found[i].shape))


def test_seeds_are_side_by_side(make):
    paths = [make(f"s{seed}", seed=seed) for seed in (10, 2)]
    study = propkit.open_study(str(paths[0].parent / "*.zarr"))
    assert list(study.runs) == ["plain (seed 2)", "plain (seed 10)"]  # numbers count as numbers
    dataset = study["error_moment"]
    assert dataset["output"].dims == ("run", "step", "site")
    assert dataset["output"].attrs["long_name"] == "moment"
    assert dataset["input"].dtype == np.float32
    assert dataset.attrs == {"reference": "a"}
    assert dataset["seed"].values.tolist() == [2, 10]
    assert dataset["path"].values.tolist() == [str(paths[1]), str(paths[0])]
    assert dataset["depth"].dims == dataset["type"].dims == ("site",)
    assert dataset["depth"].dtype.kind == "i"
    check(dataset, study.runs.values())
    runs = list(study.runs.values())
    oracle = xr.concat([run["error_moment"].load() for run in runs], "run")
    xr.testing.assert_equal(dataset.drop_vars(["run", "seed", "state", "path"]), oracle)


def test_networks_of_different_depth_by_site(make):
    make("a8", PLAIN8, steps=(0, 10, 20))
    make("b14", PLAIN14, steps=(0, 20, 30))
    study = propkit.open_study(make("a8x", PLAIN8, seed=1).parent)
    dataset = study["error_moment"]
    assert (
        dataset["site"].values.tolist() == PLAIN14
    )  # in the order of execution, not of the alphabet
    assert dataset["step"].values.tolist() == [0, 10, 20, 30]
    check(dataset, study.runs.values())
    deep = dataset["depth"].sel(run=[r for r in study.runs if "b14" in study.runs[r].path.name])
    assert deep.values.tolist() == [[1, 2, 3, 4, 5]]
    np.testing.assert_array_equal(dataset["depth"][0], [1, 2, np.nan, np.nan, 3])
    assert dataset["type"].dims == ("site",)  # the runs agree on it
    inner = study.map(lambda run: run["error_moment"], join="inner")
    assert inner["step"].values.tolist() == [0, 20]
    check(inner, study.runs.values())


def test_by_depth(make):
    runs = [memory(PLAIN8, (0, 1)), memory(PLAIN14, (0, 1), 1)]
    dataset = propkit.open_study(runs, align="depth")["error_moment"]
    assert dataset["output"].dims == ("run", "step", "depth")
    assert dataset["depth"].values.tolist() == [1, 2, 3, 4, 5]
    assert dataset["site"].values.tolist() == [["conv1", "conv2", "fc", "", ""], PLAIN14]
    check(dataset, runs, "depth")


@pytest.mark.parametrize("stored", [True, False])
def test_by_relative_depth(make, stored):
    if stored:
        runs = [
            propkit.open(make("a", PLAIN8, (0, 1))),
            propkit.open(make("b", PLAIN14, (0, 1), 1)),
        ]
    else:
        runs = [memory(PLAIN8, (0, 1)), memory(PLAIN14, (0, 1), 1)]
    dataset = propkit.open_study(runs, align="relative_depth")["error_moment"]
    assert dataset["relative_depth"].values.tolist() == [0, 0.25, 0.5, 0.75, 1]
    # 0.25 is as far from 0 as from 0.5: the earlier one.
    assert dataset["site"].values.tolist() == [["conv1", "conv1", "conv2", "conv2", "fc"], PLAIN14]
    assert dataset["depth"].values.tolist() == [[1, 1, 2, 2, 3], [1, 2, 3, 4, 5]]
    for i, run in enumerate(runs):
        for k, site in enumerate(dataset["site"].values[i]):
            expected = run["error_moment"]["output"].sel(site=site).values
            np.testing.assert_array_equal(dataset["output"][i, :, k], expected)


@pytest.mark.parametrize("align", ["depth", "relative_depth"])
def test_a_depth_that_several_sites_share(align):
    group = moments(PLAIN8, depth=[1, 2, 2])
    study = propkit.open_study([memory(PLAIN8, (0,), group=group), memory(PLAIN8, (0,), 1)])
    with pytest.raises(ValueError, match=r"plain \(seed 0\)' has conv2, fc at depth 2.*study\.map"):
        study.map(lambda run: run["error_moment"], align=align)
    kept = study.map(lambda run: run["error_moment"].isel(site=[0, 1]), align=align)
    assert kept.sizes == {"run": 2, "step": 1, align: 2}


names = st.lists(st.sampled_from("abcdefg"), min_size=1, unique=True)
steps = st.lists(st.integers(0, 9), min_size=1, unique=True).map(sorted)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(names, steps), min_size=1, max_size=4),
    st.sampled_from(["inner", "outer"]),
    st.data(),
)
def test_any_runs_and_any_index(several, join, data):
    """Values are those of the runs, and an index gives what it gives of the loaded array."""
    runs = [memory(*one, seed) for seed, one in enumerate(several)]
    dataset = propkit.open_study(runs, join=join)["error_moment"]
    every = [set(s) for _, s in several]
    joined = set.union(*every) if join == "outer" else set.intersection(*every)
    assert dataset["step"].values.tolist() == sorted(joined)
    assert set(dataset["site"].values) == {n for ns, _ in several for n in ns}
    lazy = propkit.open_study(runs, join=join)["error_moment"]["output"]
    check(dataset, runs)
    index = {
        dim: data.draw(
            st.one_of(
                st.integers(0, size - 1),
                st.lists(st.integers(0, size - 1), max_size=4),
                st.slices(size),
            )
        )
        for dim, size in lazy.sizes.items()
        if size
    }
    xr.testing.assert_equal(lazy.isel(index), dataset["output"].load().isel(index))


def test_vectorized_and_transposed():
    runs = [memory(PLAIN8, (0, 1)), memory(PLAIN14, (0, 1), 1)]
    study = propkit.open_study(runs)
    loaded = study["error_moment"]["output"].load()
    points = {d: xr.DataArray([0, 1, 1], dims="point") for d in ("run", "step", "site")}
    xr.testing.assert_equal(study["error_moment"]["output"].isel(points), loaded.isel(points))
    mixed = study.map(
        lambda run: run["error_moment"]["output"].transpose(
            *(("site", "step") if run.attributes["seed"] else ("step", "site"))
        )
    )
    np.testing.assert_array_equal(mixed, loaded)
    turned = study["error_moment"]["output"].transpose("site", "run", "step")
    np.testing.assert_array_equal(turned, loaded.values.transpose(2, 0, 1))


@settings(deadline=None, max_examples=40)
@given(st.lists(names, min_size=1, max_size=5))
def test_weave(sequences):
    woven = weave(sequences)
    assert sorted(woven) == sorted({n for s in sequences for n in s})
    assert [n for n in woven if n in sequences[0]] == sequences[0]
    assert weave([woven, *sequences]) == woven


def test_only_what_is_used_is_read(make, monkeypatch):
    paths = [make(f"s{seed}", PLAIN14, range(4), seed=seed) for seed in range(3)]
    study = propkit.open_study(paths)
    dataset = study["error_moment"]
    first = dataset["output"].isel(run=0)
    for path in paths[1:]:
        (path / "error_moment/output/c.0.0").unlink()
    (paths[0] / "error_moment/input/c.0.0").unlink()
    assert np.isfinite(first).all()
    assert np.isnan(dataset["output"].isel(run=[1, 2])).all()
    assert np.isnan(dataset["input"].isel(run=0)).all()


def test_values_read_are_kept_and_may_be_changed(make):
    path = make()
    dataset = propkit.open_study([path, make("b", seed=1)])["error_moment"]
    before = dataset["output"].values.copy()
    (path / "error_moment/output/c.0.0").unlink()
    np.testing.assert_array_equal(dataset["output"].values, before)
    dataset["output"][0, 0, 0] = -1.0
    assert float(dataset["output"][0, 0, 0]) == -1.0
    dataset["input"][0, 0, 0] = -1.0  # not read yet
    assert float(dataset["input"][0, 0, 0]) == -1.0


def test_with_dask(make):
    pytest.importorskip("dask")
    study = propkit.open_study([make(), make("b", PLAIN14, seed=1)])
    chunked = study["error_moment"].chunk(run=1)
    np.testing.assert_array_equal(
        chunked["output"].mean("run"), study["error_moment"]["output"].mean("run")
    )


# --- ragged and other dimensions --------------------------------------------------------------


def spectra(names, sizes, steps, seed):
    return memory(names, steps, seed, group=moments(names, sizes=sizes))


@pytest.mark.parametrize("align", ["site", "depth"])
def test_ragged(align):
    shapes = [(PLAIN8, [3, 2, 1]), (PLAIN14, [3, 4, 0, 2, 1])]
    runs = [spectra(n, s, (0, 1), i) for i, (n, s) in enumerate(shapes)]
    dataset = propkit.open_study(runs, align=align)["error_moment"]
    sizes = {"site": [3, 4, 0, 2, 1], "depth": [3, 4, 1, 2, 1]}[align]
    assert dataset["row_size"].values.tolist() == sizes
    assert dataset["row_size"].dims == (align,)
    assert dataset["site_index"].values.tolist() == np.repeat(np.arange(5), sizes).tolist()
    assert dataset["value"].dims == ("run", "step", "sv")
    starts = np.cumsum(sizes) - sizes
    for i, (names_, own) in enumerate(shapes):
        for place in range(5):
            if align == "site":
                name = PLAIN14[place]
                width = dict(zip(names_, own, strict=True)).get(name, 0)
            else:
                name = names_[place] if place < len(names_) else ""
                width = own[place] if place < len(names_) else 0
            for k in range(sizes[place]):
                found = dataset["value"].values[i, :, starts[place] + k]
                expected = [value(i, s, name, "value", k) if k < width else np.nan for s in (0, 1)]
                np.testing.assert_array_equal(found, expected)


def test_spectra_of_one_site():
    runs = [spectra(PLAIN8, [3, 2, 1], (0, 1), 0), spectra(PLAIN8, [1, 2, 1], (1, 2), 1)]
    found = propkit.open_study(runs).map(lambda run: run.spectrum("conv1", group="error_moment"))
    assert found.name == "value"
    assert found.sizes == {"run": 2, "step": 3, "sv": 3}
    np.testing.assert_array_equal(found[0, 0], [value(0, 0, "conv1", "value", k) for k in range(3)])
    np.testing.assert_array_equal(found[1, 2], [value(1, 2, "conv1", "value", 0), np.nan, np.nan])
    assert found["site"].item() == "conv1"


def test_other_dimensions_are_matched_by_their_values():
    runs = []
    for seed, quantiles in enumerate([(0.0, 0.5), (0.5, 1.0)]):
        writer = MemoryWriter({"seed": seed})
        axes = {"quantile": np.array(quantiles)}
        writer.define(
            Group("q", (Variable("x", dim="quantile"),), {"site": np.array(["a"])}, {}, axes)
        )
        writer.append("q", np.array([0]), {"x": np.array([[[seed, seed + 0.25]]])})
        writer.commit()
        runs.append(Run.from_memory(writer))
    found = propkit.open_study(runs)["q"]["x"].sel(site="a", step=0)
    assert found["quantile"].values.tolist() == [0.0, 0.5, 1.0]
    np.testing.assert_array_equal(found, [[0, 0.25, np.nan], [np.nan, 1, 1.25]])


# --- functions of runs ------------------------------------------------------------------------


def test_map_derived_quantities(make):
    study = propkit.open_study([make("a"), make("b", PLAIN14, seed=1)])
    found = study.map(lambda run: run.derived.end_to_end_ratio())
    assert found.sizes == {"run": 2, "step": 3}
    for i, run in enumerate(study.runs.values()):
        own = run["error_moment"]["output"]
        np.testing.assert_array_equal(found[i], own.sel(site="conv1") / own.isel(site=-2))


def test_map_counts_and_names():
    study = propkit.open_study([memory(PLAIN8, (0,)), memory(PLAIN14, (0, 1), 1)])
    counts = study.map(lambda run: run["error_moment"]["output"].notnull().sum("site"))
    assert counts.dtype.kind == "f"  # an integer has no NaN
    np.testing.assert_array_equal(counts, [[3, np.nan], [5, 5]])
    whole = study.map(lambda run: run["error_moment"]["output"].notnull().sum())
    assert whole.dtype.kind == "i"
    assert whole.values.tolist() == [3, 10]
    with pytest.raises(
        TypeError, match=r"expected a Dataset or DataArray of each run, found float"
    ):
        study.map(lambda run: 1.0)


def test_other_dimensions_in_another_run():
    study = propkit.open_study([memory(PLAIN8, (0,)), memory(PLAIN8, (0,), 1)])
    with pytest.raises(ValueError, match="'output' has dimensions"):
        study.map(
            lambda run: (
                run["error_moment"] if run.attributes["seed"] else run["error_moment"].sum("site")
            )
        )


# --- runs that lack something -----------------------------------------------------------------


def test_a_run_without_the_group_or_without_rows(make):
    paths = [make("b", None, seed=1), make("c", PLAIN8, (), seed=2, close=False), make("a")]
    study = propkit.open_study(paths)
    with pytest.warns(PropkitWarning) as said:
        dataset, _ = study["error_moment"], study["error_moment"]
    (text,) = [str(w.message) for w in said]  # once
    assert "run 'plain (seed 1)' has no group 'error_moment', it has none yet" in text
    assert "run 'plain (seed 2)' has no row of it yet" in text
    assert dataset["run"].values.tolist() == ["plain (seed 0)"]
    assert dataset["seed"].values.tolist() == [0]
    assert dataset["path"].values.tolist() == [str(paths[2])]
    assert "error_moment (in 2 of the runs): output, input" in repr(study)
    assert "still being written, as of now: plain (seed 2); refresh() reads on" in repr(study)
    with pytest.raises(MissingGroupError, match="records it"):
        study["gradient_norm"]


def test_no_rows_anywhere(make):
    study = propkit.open_study([make("a", PLAIN8, (), close=False), make("b", PLAIN8, (), seed=1)])
    assert study["error_moment"]["output"].sizes == {"run": 2, "step": 0, "site": 3}


def test_refresh(tmp_path):
    writer = ZarrWriter.create(tmp_path / "a.zarr", {})
    fill(writer, moments(PLAIN8), (0, 1), 0)
    study = propkit.open_study(tmp_path / "*.zarr")
    assert study.coordinates["state"].values.tolist() == ["running"]
    fill_more = {v: np.zeros((1, 3)) for v in ("output", "input")}
    writer.append("error_moment", np.array([2]), fill_more)
    writer.close("complete")
    assert study["error_moment"].sizes["step"] == 2  # as it was opened
    later = study.refresh()
    assert later["error_moment"].sizes["step"] == 3
    assert later.coordinates["state"].values.tolist() == ["complete"]


def test_what_a_pattern_matches_that_is_no_run(make, tmp_path):
    path = make()
    (path.parent / "notes.txt").write_text("x")
    (path.parent / ".hidden.zarr").mkdir()
    study = propkit.open_study(path.parent / "*")
    assert list(study.runs) == ["plain"]
    (remark,) = study.remarks
    assert "notes.txt is a file, not the directory of a run" in remark
    assert remark in repr(study)
    with pytest.raises(FileNotFoundError, match=r"no run matches .*nothing.*"):
        propkit.open_study(tmp_path / "nothing*.zarr")
    with pytest.raises(FileNotFoundError, match=r"what is there is no run: left out: .*notes"):
        propkit.open_study(path.parent / "n*")
    with pytest.raises(FileNotFoundError, match="no run at"):
        propkit.open_study([path, tmp_path / "gone.zarr"])
    with pytest.raises(ValueError, match="no run was given"):
        propkit.open_study([])
    with pytest.raises(TypeError, match="found int"):
        propkit.open_study([path, 3])


def test_ways_to_name_runs(make, tmp_path, monkeypatch):
    a, b = make("a"), make("b[1]", seed=1)
    monkeypatch.chdir(tmp_path)
    everything = {str(a), str(b)}
    for source in (
        "runs/*.zarr",
        "runs",
        "**/*.zarr",
        [a, b],
        (p for p in (str(a), b)),
        ["runs/a*", b],
    ):
        study = propkit.open_study(source)
        assert set(study.coordinates["path"].values) == everything
    assert len(propkit.open_study(b).runs) == 1  # brackets of a name that exists
    assert len(propkit.open_study([propkit.open(a), "runs/b*"]).runs) == 2
    assert len(propkit.open_study(propkit.open(a)).runs) == 1


# --- labels, settings, selection --------------------------------------------------------------


def test_labels(make, tmp_path):
    twice = propkit.open_study([make("a"), make("b")])  # one seed
    assert list(twice.runs) == ["plain (a)", "plain (b)"]
    same = propkit.open_study([make("c"), tmp_path / "runs" / "c.zarr"])
    assert list(same.runs) == ["plain", "plain (2)"]
    kept = propkit.open_study([memory(PLAIN8, (0,), None), memory(PLAIN8, (0,), None)])
    assert list(kept.runs) == ["plain", "plain (2)"]
    assert "seed" not in kept["error_moment"].coords
    assert set(kept["error_moment"]["path"].values) == {""}


def test_settings_as_coordinates():
    def run(seed, **config):
        return memory(PLAIN8, (0,), seed, config=config, device="cpu")

    runs = [
        run(0, recipe={"lr": 0.1, "name": "a"}, wide=True),
        run(1, recipe={"lr": 1, "name": "b"}),
    ]
    dataset = propkit.open_study(runs, by=["lr", "recipe.name", "wide", "device"])["error_moment"]
    assert dataset["lr"].values.tolist() == [0.1, 1.0]
    assert dataset["recipe.name"].values.tolist() == ["a", "b"]
    assert dataset["wide"].values.tolist() == ["True", ""]
    assert dataset["device"].values.tolist() == ["cpu", "cpu"]
    assert dataset["lr"].dims == ("run",)
    assert "lr" in repr(propkit.open_study(runs, by="lr")).splitlines()[1]
    with pytest.raises(
        KeyError, match=r"no run has 'momentum'.*they differ in recipe.lr, recipe.name, wide"
    ):
        propkit.open_study(runs, by="momentum")
    both = run(2, lr_of={"a": {"lr": 1}, "b": {"lr": 2}})
    with pytest.raises(ValueError, match=r"'lr_of\.a\.lr' or 'lr_of\.b\.lr'"):
        propkit.open_study([both], by="lr")


def test_a_curve_that_has_the_name_of_a_setting():
    writer = MemoryWriter({"config": {"lr": 0.1}})
    writer.define(Group("log", (Variable("lr"),)))
    writer.append("log", np.array([0]), {"lr": np.array([0.5])})
    writer.commit()
    study = propkit.open_study(Run.from_memory(writer), by="lr")
    with pytest.warns(PropkitWarning, match="the data has its own 'lr'"):
        assert study["log"]["lr"].values.tolist() == [[0.5]]


def test_select():
    runs = [memory(PLAIN8, (0,), s, config={"lr": lr}) for s in range(3) for lr in (0.1, 0.2)]
    study = propkit.open_study(runs, by="lr", align="depth", join="inner")
    one = study.select(seed=0)
    assert one["error_moment"]["lr"].values.tolist() == [0.1, 0.2]
    assert "depth" in one["error_moment"].dims
    assert study.select(seed=[1, 2], lr=0.2)["error_moment"]["seed"].values.tolist() == [1, 2]
    assert len(study.select(lambda run: run.attributes["seed"] > 0).runs) == 4
    assert len(study.select(label="plain").runs) == 6
    with pytest.raises(ValueError, match=r"no run is left with seed=7; there are 0, 1, 2"):
        study.select(seed=7)
    with pytest.raises(KeyError, match="no run has 'depht'"):
        study.select(depht=3)
    with pytest.raises(ValueError, match="no run is left of plain"):
        study.select(lambda run: False)


@pytest.mark.parametrize(("name", "known"), [("align", "'depth'"), ("join", "'outer', 'inner'")])
def test_choices(name, known):
    runs = [memory(PLAIN8, (0,))]
    with pytest.raises(ValueError, match=f"{name}='name': expected one of .*{known}"):
        propkit.open_study(runs, **{name: "name"})
    with pytest.raises(ValueError, match=f"{name}='name'"):
        propkit.open_study(runs).map(lambda run: run["error_moment"], **{name: "name"})


def test_repr(make, capsys):
    study = propkit.open_study([make("a"), make("b", seed=1, label="<i>")])
    lines = repr(study).splitlines()
    assert lines[0] == "<propkit.Study: 2 runs, aligned by site, outer join of steps>"
    assert lines[1].split() == ["run", "seed", "last", "step", "state"]
    assert lines[2].split() == ["plain", "0", "20", "complete"]
    assert lines[-1] == "  - error_moment: output, input"
    assert "&lt;i&gt;" in study._repr_html_()
    assert "<i>" not in study._repr_html_()
    study.print()
    assert "plain" in capsys.readouterr().out
    assert ("error_moment" in study, list(study), "log" in study) == (True, ["error_moment"], False)
