"""Writers refuse what does not fit, and a write that fails changes nothing."""

import dataclasses
from contextlib import suppress

import numpy as np
import pytest
import xarray as xr

import propkit.store.run
from propkit.schema import Group, Variable
from propkit.store.memory import MemoryWriter
from propkit.store.protocol import Writer
from propkit.store.run import Run
from tests.written import (
    COORDS,
    LOSS,
    MOMENT,
    SITES,
    SIZES,
    block,
    create,
    failing,
    fill,
    spectra,
    spectral_rows,
)


def test_what_does_not_continue_a_group_is_refused(tmp_path):
    for writer in (create(tmp_path / "run.zarr"), MemoryWriter({})):
        writer.define(spectra(3))
        other = dataclasses.replace
        shuffled = {"site": np.array(["bb", "a", "c"]), "row_size": SIZES[:3]}
        resized = {"site": spectra(4).coords["site"], "row_size": np.array([2, 1, 3, 1])}
        for group in (
            spectra(3),
            spectra(2),
            other(spectra(4), coords=resized),
            other(spectra(3), coords=shuffled, variables=(Variable("new"),)),
            other(spectra(4), axes={"singular_value": None, "quantile": np.array([0.0, 1.0, 2.0])}),
            other(spectra(4), coords={"site": spectra(4).coords["site"]}),
        ):
            with pytest.raises(ValueError, match="'spectra' is defined already"):
                writer.define(group)
        with pytest.raises(ValueError, match=r"value: expected shape \(1, 5\), found \(1, 6\)"):
            writer.append("spectra", np.array([0]), {"value": np.ones((1, 6))})
        writer.define(spectra(4))
        writer.append("spectra", np.array([0]), {"value": np.ones((1, 6))})


def test_a_group_whose_growth_fails_grows_again(tmp_path, small_chunks):
    """Whatever call fails, readers go on reading what they read, and the growth can be tried again."""
    writer = create(tmp_path / "run.zarr")
    writer.define(spectra(2))
    writer.append("spectra", np.arange(11), spectral_rows(range(11), 2))
    writer.commit()
    before = propkit.store.run.open(writer.path)["spectra"].load()
    for calls in range(1000):
        done = False
        with failing(after=calls), suppress(OSError):
            writer.define(spectra(4))
            done = True
        xr.testing.assert_identical(propkit.store.run.open(writer.path)["spectra"].load(), before)
        if done:
            break
    assert calls > 10
    writer.append("spectra", np.arange(11, 20), spectral_rows(range(11, 20), 4))
    writer.close("complete")
    after = propkit.store.run.open(writer.path)["spectra"]
    for name, expected in spectral_rows(range(20), 4).items():
        np.testing.assert_array_equal(after[name][11:], expected[11:])
        old = spectral_rows(range(11), 2)[name]
        np.testing.assert_array_equal(after[name][:11, : old.shape[1]], old)
        assert after[name][:11, old.shape[1] :].isnull().all()
    assert after.site.values.tolist() == ["a", "bb", "c", "dddd"]


def test_a_commit_that_fails_changes_nothing_and_is_tried_again(tmp_path, small_chunks):
    path = tmp_path / "run.zarr"
    writer = create(path)
    writer.define(MOMENT)
    writer.define(LOSS)
    fill(writer, range(5))
    writer.commit()
    fill(writer, range(5, 30))
    for calls in range(1000):
        before = (path / "zarr.json").read_bytes()
        done = False
        with failing(after=calls) as disk, suppress(OSError):
            writer.commit()
            done = True
        assert done == (disk.left >= 0)
        if done:
            break
        assert (path / "zarr.json").read_bytes() == before
        assert propkit.store.run.open(path)["error_moment"].sizes["step"] == 5
        np.testing.assert_array_equal(
            propkit.store.run.open(path)["error_moment"].output, block(range(5))
        )
        assert [file.name for file in tmp_path.iterdir()] == ["run.zarr"]
    assert calls > 20
    np.testing.assert_array_equal(propkit.store.run.open(path)["error_moment"].step, range(30))
    np.testing.assert_array_equal(
        propkit.store.run.open(path)["error_moment"].output, block(range(30))
    )


def test_a_curve_whose_definition_fails_is_defined_again(tmp_path, small_chunks):
    writer = create(tmp_path / "run.zarr")
    writer.define(LOSS)
    writer.append("log", np.arange(3), {"loss": np.arange(3.0)})
    writer.commit()
    accuracy = Group("log", (Variable("accuracy"),))
    for calls in range(3):
        with failing(after=calls), pytest.raises(OSError, match="No space"):
            writer.define(accuracy)
        writer.commit()
        assert list(propkit.store.run.open(writer.path)["log"].data_vars) == ["loss"]
    writer.define(accuracy)
    writer.append("log", np.array([3]), {"accuracy": np.array([0.5])})
    writer.commit()
    log = propkit.store.run.open(writer.path)["log"]
    np.testing.assert_array_equal(log.accuracy, [np.nan] * 3 + [0.5])


def test_rows_appended_after_a_failure_are_kept_too(tmp_path):
    writer = create(tmp_path / "run.zarr")
    writer.define(MOMENT)
    fill(writer, range(5))
    with failing(after=2), pytest.raises(OSError, match="No space left"):
        writer.commit()
    fill(writer, range(5, 90))
    with failing(after=0), pytest.raises(OSError, match="No space left"):
        writer.close("complete")
    assert propkit.store.run.open(writer.path).state == "running"
    writer.close("interrupted", "out of space once")
    run = propkit.store.run.open(writer.path)
    assert (run.state, run.attributes["reason"]) == ("interrupted", "out of space once")
    np.testing.assert_array_equal(run["error_moment"].output, block(range(90)))


@pytest.mark.parametrize("kind", ["zarr", "memory"])
def test_wrong_rows_are_refused_and_nothing_of_them_is_kept(tmp_path, kind):
    writer: Writer = create(tmp_path / "run.zarr") if kind == "zarr" else MemoryWriter({})
    with pytest.raises(ValueError, match="no group 'error_moment', only none: define it first"):
        fill(writer, [0])
    writer.define(MOMENT)
    fill(writer, [3, 7])
    one = np.ones((1, SITES))
    for steps in ([7], [2]):
        with pytest.raises(ValueError, match=rf"steps must increase, found \[{steps[0]}\] after 7"):
            writer.append("error_moment", np.array(steps), {"output": one})
    with pytest.raises(ValueError, match="steps must increase"):
        writer.append("error_moment", np.array([8, 8]), {"output": np.ones((2, SITES))})
    with pytest.raises(ValueError, match=r"output: expected shape \(1, 3\), found \(3, 1\)"):
        writer.append("error_moment", np.array([8]), {"output": one.T})
    with pytest.raises(ValueError, match="has no variable 'ouput', only output, input: define it"):
        writer.append("error_moment", np.array([8]), {"ouput": one})
    with pytest.raises(ValueError, match=r"steps of shape \(R,\), found \(\)"):
        writer.append("error_moment", np.array(8), {"output": one})
    with pytest.raises(TypeError, match="int64"):
        writer.append("error_moment", np.array([8.5]), {"output": one})
    with pytest.raises(ValueError, match="'error_moment' is defined already"):
        writer.define(MOMENT)
    writer.append("error_moment", np.array([], int), {"output": np.ones((0, SITES))})
    writer.append("error_moment", np.array([8]), {"output": one})
    with pytest.raises(ValueError, match="complete, interrupted, failed, found 'running'"):
        writer.close("running")
    writer.close("complete")
    writer.close("failed", "is ignored: the run is closed")
    for late in (
        lambda: fill(writer, [9]),
        lambda: writer.define(LOSS),
        lambda: writer.update(a=1),
        writer.commit,
    ):
        with pytest.raises(ValueError, match="is closed: nothing can be added"):
            late()
    run = propkit.store.run.open(writer.path) if kind == "zarr" else Run.from_memory(writer)
    assert run.state == "complete"
    np.testing.assert_array_equal(run["error_moment"].step, [3, 7, 8])
    np.testing.assert_array_equal(run["error_moment"].output[2], one[0])
    assert np.isnan(run["error_moment"].input[2]).all()


@pytest.mark.parametrize("kind", ["zarr", "memory"])
@pytest.mark.parametrize(
    ("group", "match"),
    [
        (Group("log", (Variable("train/loss"),)), "'train/loss' names a file of the store"),
        (Group("", (Variable("loss"),)), "'' names a file"),
        (Group(".log", (Variable("loss"),)), "'.log' names a file"),
        (Group("log", (Variable("step"),)), "step used twice"),
        (Group("g", (Variable("depth"),), COORDS), "depth used twice"),
        (Group("g", (Variable("a"),), {"depth": np.arange(3)}), "expected 'site'"),
        (Group("g", (Variable("a"),), {**COORDS, "depth": np.arange(4)}), "of one length"),
        (Group("g", (Variable("a"),), {"site": np.array([], str)}), "at least 1"),
        (Group("g", (Variable("a", dim="k"),), COORDS), "lies along 'k', which is no axis"),
        (Group("g", (Variable("a", dim="k"),), COORDS, {}, {"k": None}), "'row_size' with it"),
        (
            Group(
                "g",
                (Variable("a", dim="k"),),
                {**COORDS, "row_size": np.arange(3)},
                {},
                {"k": None, "j": None},
            ),
            "one ragged axis at most",
        ),
        (Group("g", (Variable("k", dim="k"),), COORDS, {}, {"k": np.arange(2)}), "k used twice"),
    ],
)
def test_groups_that_cannot_be_stored(tmp_path, kind, group, match):
    writer: Writer = create(tmp_path / "run.zarr") if kind == "zarr" else MemoryWriter({})
    with pytest.raises(ValueError, match=match):
        writer.define(group)
    writer.define(LOSS)
    with pytest.raises(ValueError, match="names a file"):
        writer.define(Group("log", (Variable("a/b"),)))
    writer.append("log", np.array([1]), {"loss": np.array([1.0])})
    writer.close("complete")
    run = propkit.store.run.open(writer.path) if kind == "zarr" else Run.from_memory(writer)
    assert list(run) == ["log"]
    assert list(run["log"].data_vars) == ["loss"]
