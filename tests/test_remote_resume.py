# ruff: noqa: F811 - fixtures are imported
"""Runs that go on at a URL, as they do on a disk: no gap, no duplicate, one writer."""

import os
import re
import signal
import socket
import subprocess
import sys
from unittest import mock

import fsspec
import numpy as np
import pytest
import torch
import xarray as xr
import zarr

import propkit
from propkit.notices import PropkitWarning
from propkit.recording import outbox
from propkit.schema import Group, Variable
from propkit.store.memory import MemoryWriter
from propkit.store.object_resume import take_up_objects
from propkit.store.object_writer import ObjectWriter
from propkit.store.objects import Objects
from propkit.store.run import Run
from propkit.store.writer import ZarrWriter
from tests.s3_server import s3, s3_server  # noqa: F401
from tests.test_compact import group
from tests.test_remote import assert_same, record, target  # noqa: F401
from tests.test_resume import OPTIONS, Training

NOBODY = {"host": "elsewhere", "pid": 7}


@pytest.fixture(autouse=True)
def small_chunks():
    with mock.patch("propkit.store.arrays.LONGEST_CHUNK", 256):
        yield
    fsspec.filesystem("memory").store.clear()


def rows(writers, steps, sites=5, seed=1, empty=(), keep=None):
    """The first `keep` of the same rows to several writers; in steps of `empty` there is no value of `norm`."""
    generator = np.random.default_rng(seed)
    steps, sizes = np.asarray(steps), group(sites).sizes
    columns = {
        "value": generator.normal(size=(len(steps), sizes["singular_value"])),
        "quantiles": generator.normal(size=(len(steps), sites, 3)),
        "norm": generator.normal(size=(len(steps), sites)),
    }
    columns["norm"][np.isin(steps, empty)] = np.nan
    steps = steps[:keep]
    for writer in writers:
        writer.append("spectra", steps, {name: c[:keep] for name, c in columns.items()})
        writer.append("log", steps, {"loss": steps + 0.25, "accuracy": -steps})
        writer.commit()


def begun(writer, steps=(), **options):
    """A writer with some rows."""
    writer.define(group(5))
    writer.define(Group("log", (Variable("loss", "nat"), Variable("accuracy"))))
    rows([writer], steps, **options)
    return writer


def first_part(target, steps):
    return begun(ObjectWriter.create(target, {}), steps)


def same_data(run, other):
    assert run.contents == other.contents
    for name in other:
        xr.testing.assert_identical(run[name].load(), other[name].load())


@pytest.mark.parametrize("cut", [0, 65, 100])
def test_cut_and_continued_it_is_what_an_uninterrupted_one_is(target, cut):
    steps = np.arange(100) * 3
    first_part(target, steps).close("failed", "why")
    left = take_up_objects(target)
    assert (left.steps, left.notes) == (298, ())
    at = 3 * cut
    writer = ObjectWriter.resume(left, at, {"state": "running"})
    whole = begun(MemoryWriter({}), steps, keep=cut)
    same_data(run := propkit.open(target), Run.from_memory(whole))
    plain = zarr.open_group(run.store(), mode="r", use_consolidated=False)
    assert (
        plain["spectra/norm"].shape[0] == plain["log/step"].shape[0] == cut
    )  # whoever looks there, too
    # Where there were values there are none now, in whole chunks of them.
    for seed, part in enumerate((np.arange(at, at + 80), np.arange(at + 80, at + 230)), 2):
        rows([writer, whole], part, seed=seed, empty=np.arange(at, at + 150))
        same_data(propkit.open(target), Run.from_memory(whole))
    writer.close("complete")
    run = propkit.open(target)
    same_data(run, Run.from_memory(whole))
    plain = zarr.open_group(run.store(), mode="r", use_consolidated=False)
    np.testing.assert_array_equal(plain["spectra/norm"][:], run["spectra"].norm)
    assert (run.state, run.attributes["commit"]["generation"]) == ("complete", 1)


def test_it_may_grow_after_it_was_resumed(target):
    """Sites and variables that come late, over and over."""
    there, here = ObjectWriter.create(target, {}), MemoryWriter({})
    record(there, here, rows=70)
    for sites in (6, 8):
        there = ObjectWriter.resume(take_up_objects(target, takeover=True), 10**6, {})
        for writer in (there, here):
            writer.define(group(sites))
        first = here.snapshot.tables["spectra"].step[-1] + 1
        rows([there, here], np.arange(first, first + 40), sites=sites)
    assert_same(propkit.open(target), Run.from_memory(here))


def test_a_flush_that_was_not_committed_leaves_nothing(s3):
    writer = first_part("s3://bucket/run.zarr", np.arange(50))
    before = propkit.open("s3://bucket/run.zarr")
    s3.failing = lambda key: key.endswith("run.zarr/zarr.json")
    with pytest.raises(OSError, match="AccessDenied"):
        rows([writer], np.arange(50, 130))
    s3.failing = lambda _: False
    same_data(propkit.open("s3://bucket/run.zarr"), before)
    left = take_up_objects("s3://bucket/run.zarr", takeover=True)
    writer = ObjectWriter.resume(left, left.steps, {})
    whole = begun(MemoryWriter({}), np.arange(50))
    rows([writer, whole], np.arange(60, 150), seed=3, empty=np.arange(60, 150))
    same_data(propkit.open("s3://bucket/run.zarr"), Run.from_memory(whole))


def test_nor_does_what_such_a_flush_defined(s3):
    """Wider rows and a new variable, whose chunks were put, but not the root; later they come again."""
    url = "s3://bucket/run.zarr"

    def late(writer, steps):
        writer.define(group(40))
        writer.define(Group("log", (Variable("late"),)))
        rows([writer], steps, sites=40, seed=4)
        writer.append("log", steps + len(steps), {"late": steps + 1.0})
        writer.commit()

    old = first_part(url, np.arange(50))
    s3.failing = lambda key: key.endswith("run.zarr/zarr.json")
    with pytest.raises(OSError, match="AccessDenied"):
        late(old, np.arange(50, 90))
    s3.failing = lambda _: False
    new = ObjectWriter.resume(take_up_objects(url, takeover=True), 50, {})
    whole = begun(MemoryWriter({}), np.arange(50))
    rows([new, whole], np.arange(60, 150), seed=3)
    for writer in (new, whole):
        late(writer, np.arange(200, 203))
    same_data(propkit.open(url), Run.from_memory(whole))


# --- one writer -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("writer", "match"),
    [
        (NOBODY, "process 7 on elsewhere.* of which nothing is known here.*takeover=True"),
        ({"host": socket.gethostname(), "pid": os.getpid()}, "which is alive.*takeover=True"),
    ],
)
def test_a_run_that_may_be_being_written_is_refused(writer, match):
    first_part("memory://run.zarr", np.arange(5)).update(**writer)
    run = ObjectWriter.resume(take_up_objects("memory://run.zarr", takeover=True), 5, writer)
    run.commit()
    with pytest.raises(BlockingIOError, match=match):
        take_up_objects("memory://run.zarr")
    left = take_up_objects("memory://run.zarr", takeover=True)
    assert re.match("taken over from process .* without closing", left.notes[0])


def test_one_whose_process_is_gone_is_not():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    writer = first_part("memory://run.zarr", np.arange(5))
    writer.update(host=socket.gethostname(), pid=gone.pid)
    writer.commit()
    assert propkit.open("memory://run.zarr").state == "died"
    assert take_up_objects("memory://run.zarr").notes


def test_whoever_was_taken_over_changes_nothing_any_more(target):
    steps = np.arange(90)
    old = first_part(target, steps)
    new = ObjectWriter.resume(take_up_objects(target, takeover=True), 70, {"label": "new"})
    whole = begun(MemoryWriter({}), steps, keep=70)
    with pytest.raises(FileNotFoundError, match="taken over"):
        rows([old], np.arange(90, 200), seed=5)
    same_data(propkit.open(target), Run.from_memory(whole))
    for part in (np.arange(70, 90), np.arange(90, 200)):
        rows([new, whole], part, seed=part[0], empty=np.arange(70, 300))
        same_data(propkit.open(target), Run.from_memory(whole))
        with pytest.raises(FileNotFoundError, match="taken over"):
            old.commit()
        same_data(propkit.open(target), Run.from_memory(whole))
    assert propkit.open(target).label == "new"


def test_without_conditional_puts_the_root_is_looked_at(s3, monkeypatch):
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    url = "s3://bucket/run.zarr"
    old = first_part(url, np.arange(5))
    with pytest.raises(FileExistsError):
        ObjectWriter.create(url, {})
    rows([old], np.arange(5, 9))
    new = ObjectWriter.resume(take_up_objects(url, takeover=True), 7, {"label": "new"})
    with pytest.raises(FileNotFoundError, match="taken over"):
        rows([old], np.arange(9, 12))
    rows([new], np.arange(7, 9))
    assert propkit.open(url)["log"].step.values.tolist() == list(range(9))


def test_of_two_that_take_it_up_at_once_one_does(target):
    first_part(target, np.arange(5)).close("complete")
    one, other = take_up_objects(target), take_up_objects(target)
    ObjectWriter.resume(one, 3, {"label": "one"})
    with pytest.raises(BlockingIOError, match="someone else has just continued"):
        ObjectWriter.resume(other, 5, {"label": "other"})
    run = propkit.open(target)
    assert (run.label, run["log"].sizes["step"]) == ("one", 3)


def test_an_object_belongs_to_whoever_has_the_root(s3):
    """Each put is conditional: a look at the root before it would not do."""
    old, new = Objects.at("s3://bucket/run.zarr"), Objects.at("s3://bucket/run.zarr")
    old.create_root(b"old")
    old.put({"a": b"old", "b": b"old", "c": b"old"})
    new.take_root()
    new.replace_root(b"new")
    new.put({"a": b"new", "d": b"new"})
    with pytest.raises(FileNotFoundError):
        old.put({"a": b"older"})
    answers = iter([True, False])

    def meanwhile():
        """The run is taken over, and the object put, after the look at the root."""
        if next(answers):
            s3.put("run.zarr/d", b"newer")
            return True
        return False

    with (
        mock.patch.object(Objects, "_is_mine", side_effect=meanwhile),
        pytest.raises(FileNotFoundError),
    ):
        old.put({"d": b"older"})
    assert {k: v for k, v in s3.objects.items() if k != "run.zarr/b"} == {
        "run.zarr/zarr.json": b"new",
        "run.zarr/a": b"new",
        "run.zarr/c": b"old",
        "run.zarr/d": b"newer",
    }
    new.put({"b": b"new", "d": b"newest"})
    assert (s3.objects["run.zarr/b"], s3.objects["run.zarr/d"]) == (b"new", b"newest")


SCRIPT = """
import sys
import numpy as np
from propkit.schema import Group, Variable
from propkit.store.object_writer import ObjectWriter
writer = ObjectWriter.create("s3://bucket/run.zarr", {})
writer.define(Group("log", (Variable("loss"),)))
for step in range(10**6):
    writer.append("log", np.array([step]), {"loss": np.array([step + 0.5])})
    writer.commit()
    print(step, flush=True)
"""


def test_after_kill_9(s3):
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE)
    try:
        acknowledged = [int(process.stdout.readline()) for _ in range(8)][-1]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        rest = process.stdout.read().split()
        process.stdout.close()
    acknowledged = int(rest[-1]) if rest else acknowledged
    run = propkit.open("s3://bucket/run.zarr")
    assert run.state == "died"
    assert run["log"].sizes["step"] - 1 - acknowledged in (0, 1)
    left = take_up_objects("s3://bucket/run.zarr")
    writer = ObjectWriter.resume(left, 5, {})
    writer.append("log", np.array([5]), {"loss": np.array([-1.0])})
    writer.close("complete")
    assert run.refresh()["log"].loss.values.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, -1.0]


# --- recorders ------------------------------------------------------------------------------------


def kill(recorder):
    """As if its process had ended just now."""
    recorder._outbox._worker.stop()
    recorder._detached = True
    recorder._stop_listening()
    recorder._hooks.remove()


def test_a_training_goes_on_at_a_url(monkeypatch):
    monkeypatch.setattr(outbox, "FLUSH_ROWS", 2)
    whole = Training("mlp")
    with propkit.attach(whole.model, **OPTIONS) as recorder:
        whole.train(recorder, 15)
    expected = recorder.run
    url, training = "memory://parts.zarr", Training("mlp")
    recorder = propkit.attach(training.model, url, **OPTIONS)
    training.train(recorder, 3)
    recorder.flush()
    checkpoint = training.state()
    training.train(recorder, 6)  # and these are done again
    kill(recorder)
    training = Training("mlp")
    training.load(checkpoint)
    with pytest.raises(BlockingIOError, match="takeover=True"):
        propkit.attach(training.model, url, resume=True, step=3, **OPTIONS)
    with pytest.warns(PropkitWarning, match=r"memory://parts\.zarr: resumed at step 3: ") as said:
        again = propkit.attach(training.model, url, resume=True, step=3, takeover=True, **OPTIONS)
    assert [
        ("taken over" in str(w.message), "rows of steps from 3" in str(w.message)) for w in said
    ] == [
        (True, False),
        (False, True),
    ]
    training.train(again, 7)
    again.detach()
    with propkit.attach(training.model, url, resume=True, **OPTIONS) as recorder:
        assert recorder.steps == 10
        training.train(recorder, 5)
        assert len(recorder.run.attributes["notes"]) == 2
    run = propkit.open(url)
    assert (run.state, run.attributes["steps"]) == ("complete", 15)
    same_data(run, expected)
    assert [s["first_step"] for s in run.attributes["segments"]] == [0, 3, 10]


def test_a_run_of_something_else_is_not_continued():
    url = "memory://run.zarr"
    propkit.attach(torch.nn.Linear(4, 3), url, probes="weight").detach()
    store = fsspec.filesystem("memory").store
    before = {k: v.getvalue() for k, v in store.items()}
    for model, options in (
        (torch.nn.Linear(4, 5), {"probes": ["weight", "activation"]}),
        (torch.nn.Sequential(torch.nn.Linear(4, 3)), {"probes": "weight"}),
    ):
        with pytest.raises(ValueError, match=r"memory://run\.zarr cannot be continued"):
            propkit.attach(model, url, resume=True, **options)
    assert {k: v.getvalue() for k, v in store.items()} == before


def test_where_there_is_none_it_begins_one():
    model = torch.nn.Linear(4, 3)
    with pytest.raises(FileNotFoundError, match=r"resume=True without step= begins one"):
        propkit.attach(model, "memory://new.zarr", resume=True, step=3)
    propkit.attach(model, "memory://new.zarr", resume=True, probes="weight").detach()
    propkit.attach(model, "memory://new.zarr", resume=True, step=0, probes="weight").detach()
    assert len(propkit.open("memory://new.zarr").attributes["segments"]) == 2


# --- runs that come from elsewhere ----------------------------------------------------------------


@pytest.mark.parametrize("form", ["live", "compact"])
def test_a_copy_of_a_run_on_a_disk_goes_on(tmp_path, form):
    writer, whole = ZarrWriter.create(tmp_path / "run.zarr", {}), MemoryWriter({})
    record(writer, whole, rows=90)
    writer.close("complete")
    if form == "live":
        fsspec.filesystem("memory").put(str(tmp_path / "run.zarr"), "/run.zarr", recursive=True)
    else:
        propkit.open(tmp_path / "run.zarr").export("memory://run.zarr")
    writer = ObjectWriter.resume(take_up_objects("memory://run.zarr"), 10**6, {})
    rows([writer, whole], np.arange(1000, 1100))
    same_data(propkit.open("memory://run.zarr"), Run.from_memory(whole))


def test_shards_do_not_grow(tmp_path):
    with mock.patch("propkit.store.packing.ROWS", 16):
        writer = ZarrWriter.create(tmp_path / "run.zarr", {})
        record(writer, rows=90)
        propkit.open(tmp_path / "run.zarr").export("memory://run.zarr")
    with pytest.raises(ValueError, match=r"compact copy of a long run.*continue it there"):
        take_up_objects("memory://run.zarr", takeover=True)
