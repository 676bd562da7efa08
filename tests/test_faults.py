"""What cannot be written: the training goes on, nothing is lost that need not be, and errors say what to do."""

import contextlib
import errno
import os
from pathlib import Path

import numpy as np
import pytest

import propkit
from propkit.notices import PropkitWarning
from propkit.recording import outbox, patience
from propkit.schema import Group, Variable
from propkit.store.run import open as open_run
from propkit.testing import mlp
from tests.test_recovery import _fast_disk  # noqa: F401 - a fixture
from tests.test_resume import Training
from tests.written import (
    LOSS,
    MOMENT,
    block,
    create,
    failing,
    fill,
)


class FullDisk:
    """Every write of rows fails while it is full."""

    def __init__(self, monkeypatch) -> None:
        self.full = False
        real = os.pwrite

        def pwrite(*arguments):
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments)

        monkeypatch.setattr(os, "pwrite", pwrite)


def test_a_full_disk_loses_nothing_once_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setattr(outbox, "FLUSH_ROWS", 2)
    disk, training = FullDisk(monkeypatch), Training("mlp")
    path = tmp_path / "run.zarr"
    recorder = propkit.attach(training.model, path, probes="error_moment")
    training.train(recorder, 4)
    recorder.flush()
    disk.full = True
    with pytest.warns(PropkitWarning, match=r"No space left.*free some space.*run\.zarr") as said:  # noqa: PT031
        training.train(recorder, 6)
        recorder.flush()
    assert len(said) == 1
    assert propkit.open(path)["error_moment"].sizes["step"] == 4
    disk.full = False
    training.train(recorder, 4)
    recorder.detach()
    run = propkit.open(path)
    assert run.state == "complete"
    assert run["error_moment"].step.values.tolist() == list(range(14))
    assert run["log"].loss.notnull().all()
    assert any("No space left" in note for note in run.attributes["notes"])
    twin = Training("mlp")
    with propkit.attach(twin.model, probes="error_moment") as other:
        twin.train(other, 14)
    np.testing.assert_array_equal(run["error_moment"].output, other.run["error_moment"].output)


def test_whatever_fails_is_done_later_in_order(tmp_path, small_chunks):
    for calls in range(200):
        writer = create(tmp_path / f"{calls}.zarr")
        patient = patience.PatientWriter(writer)
        with failing(after=calls) as disk:
            patient.define(LOSS)
            patient.define(MOMENT)
            fill(patient, range(5))
            patient.commit()
            patient.append("log", np.arange(3), {"loss": np.arange(3.0)})
            patient.define(Group("log", (Variable("accuracy"),)))
            patient.append("log", np.arange(3, 12), {"accuracy": np.arange(9.0)})
            patient.commit()
        assert (patient.trouble is None) == (disk.left >= 0)
        patient.commit()
        assert patient.trouble is None
        run = open_run(writer.path)
        np.testing.assert_array_equal(run["error_moment"].output, block(range(5)))
        np.testing.assert_array_equal(run["log"].step, range(12))
        np.testing.assert_array_equal(run["log"].accuracy, [np.nan] * 3 + [*range(9)])
        patient.close("complete")
        if disk.left >= 0:
            break
    assert calls > 30


def test_a_disk_that_stays_full_ends_the_recording_not_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(outbox, "FLUSH_ROWS", 2)
    monkeypatch.setattr(patience, "HELD_BYTES", 200)
    disk, training = FullDisk(monkeypatch), Training("mlp")
    recorder = propkit.attach(training.model, tmp_path / "run.zarr", probes="error_moment")
    disk.full = True
    with pytest.warns(PropkitWarning) as said:  # noqa: PT031
        training.train(recorder, 20)
        recorder.detach()
    texts = [str(w.message) for w in said]
    assert sum("recording ended at step" in text for text in texts) == 1
    assert len(texts) <= 3, texts
    assert propkit.open(tmp_path / "run.zarr").state == "running"


def test_a_strict_recording_raises_in_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(outbox, "FLUSH_ROWS", 2)
    disk, training = FullDisk(monkeypatch), Training("mlp")
    path = tmp_path / "run.zarr"
    recorder = propkit.attach(training.model, path, probes="error_moment", strict=True)
    training.train(recorder, 4)
    recorder.flush()
    disk.full = True
    with (  # noqa: PT012, PT031 - in whichever step it shows
        pytest.raises(OSError, match=r"No space left.*free some space.*run\.zarr"),
        pytest.warns(PropkitWarning, match="could not be closed"),
    ):
        for _ in range(10):
            training.train(recorder, 1)
            recorder.flush()
    training.train(recorder, 1)  # it is over
    assert propkit.open(path)["error_moment"].sizes["step"] == 4


def test_errors_name_the_path_and_the_remedy(tmp_path, monkeypatch):
    model = mlp()
    file = tmp_path / "file"
    file.write_text("thesis")
    folder = tmp_path / "folder"
    folder.mkdir()
    newer = tmp_path / "newer.zarr"
    create(newer, schema_version=99, propkit_version="9.0").close("complete")
    damaged = tmp_path / "damaged.zarr"
    writer = create(damaged)
    writer.define(LOSS)
    writer.append("log", np.arange(3), {"loss": np.arange(3.0)})
    writer.close("complete")
    (damaged / "log/step/c.0").write_bytes(b"12345")
    for path, kind, words in (
        (file, ValueError, "is a file, not the directory of a run"),
        (folder, ValueError, "is not a propkit run"),
        (newer, ValueError, "pip install 'propkit>=9.0'"),
        (damaged, OSError, "the steps of its 3 rows are damaged"),
    ):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(kind, match=words) as error:
            propkit.attach(model, path, probes="weight", resume=True)
        assert str(path) in str(error.value)
        assert sorted(tmp_path.rglob("*")) == before

    def read_only(self, *arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(OSError, match=r"Read-only file system\); choose another place.*new\.zarr"):
        propkit.attach(model, tmp_path / "new.zarr", probes="weight")
    with pytest.raises(FileExistsError, match=r"resume=True|overwrite=True"):
        propkit.attach(model, newer, probes="weight")


@pytest.mark.parametrize("length", [0, 100, 10**6])
def test_a_damaged_chunk_is_named(tmp_path, length):
    writer = create(tmp_path / "run.zarr")
    writer.define(MOMENT)
    fill(writer, range(3))
    writer.close("complete")
    chunk = writer.path / "error_moment/output/c.0.0"
    run = open_run(writer.path)
    assert run["error_moment"].output.notnull().all()
    os.truncate(chunk, length)
    with pytest.raises(OSError, match=r"damaged: expected \d+ bytes.*restore.*c\.0\.0"):
        open_run(writer.path)["error_moment"].output.load()
    assert open_run(writer.path)["error_moment"].input.notnull().all()  # the rest can be read
    chunk.unlink()
    assert open_run(writer.path)["error_moment"].output.isnull().all()


def _fails(*_, **__):
    raise ArithmeticError("a bug")


@pytest.mark.parametrize("store", ["memory", "directory"])
@pytest.mark.parametrize("where", ["outbox.write_flush", "layout.Layout.new_groups"])
@pytest.mark.parametrize("strict", [False, True])
def test_a_failure_of_the_last_flush_is_said_and_strictly_raised(
    store, where, strict, tmp_path, monkeypatch
):
    training = Training("mlp")
    path = tmp_path / "run.zarr" if store == "directory" else None
    recorder = propkit.attach(training.model, path, probes="error_moment", strict=strict)
    training.train(recorder, 2)
    recorder.flush()
    monkeypatch.setattr(f"propkit.recording.{where}", _fails)
    training.train(recorder, 2)
    raised = pytest.raises(ArithmeticError) if strict else contextlib.nullcontext()
    with (
        pytest.warns(PropkitWarning, match=r"the last rows.*ArithmeticError: a bug") as said,
        raised,
    ):
        recorder.detach()
    assert len(said) == 1
    recorder.detach()  # nothing more
    run = recorder.run
    assert run.state == "failed"
    assert "a bug" in run.attributes["reason"]
    assert run["error_moment"].sizes["step"] == 2
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in training.model.modules())


@pytest.mark.parametrize("strict", [False, True])
def test_a_failure_of_the_last_flush_leaves_the_block_as_it_ends(strict, tmp_path, monkeypatch):
    for error in (None, KeyError("mine"), KeyboardInterrupt()):
        training = Training("mlp")
        path = tmp_path / f"{type(error).__name__}.zarr"
        expected = type(error) if error else ArithmeticError if strict else None
        raised = pytest.raises(expected) if expected else contextlib.nullcontext()
        with (  # noqa: PT031 - the block is what is tested
            monkeypatch.context() as patch,
            pytest.warns(PropkitWarning, match=r"the last rows could not be written \(Arithmetic"),
            raised as caught,
            propkit.attach(training.model, path, probes="error_moment", strict=strict) as recorder,
        ):
            training.train(recorder, 2)
            patch.setattr(outbox, "write_flush", _fails)
            if error is not None:
                raise error
        assert error is None or caught.value is error
        assert propkit.open(path).state == "failed"


def test_a_disk_that_is_full_at_the_end_raises_strictly(tmp_path, monkeypatch):
    disk, training = FullDisk(monkeypatch), Training("mlp")
    recorder = propkit.attach(training.model, tmp_path / "run.zarr", strict=True)
    training.train(recorder, 2)
    disk.full = True
    with (
        pytest.raises(OSError, match="No space left"),
        pytest.warns(PropkitWarning, match="could not be closed"),
    ):
        recorder.detach()


def test_a_fault_in_each_flush_ends_the_recording_not_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(outbox, "FLUSH_ROWS", 2)
    monkeypatch.setattr("propkit.recording.layout.Layout.new_groups", _fails)
    training = Training("mlp")
    recorder = propkit.attach(training.model, tmp_path / "run.zarr", probes="error_moment")
    with pytest.warns(PropkitWarning, match="fault in propkit: ArithmeticError: a bug"):
        training.train(recorder, 5)
    assert propkit.open(tmp_path / "run.zarr").state == "failed"


def test_a_probe_that_gave_nothing_but_nan_is_named_when_a_short_run_ends(tmp_path):
    @propkit.probe
    def undefined(output):
        return (output.sum() * 0) / 0

    training = Training("mlp")
    with (
        pytest.warns(
            PropkitWarning, match="'undefined' failed at step 3: ValueError: it gave noth"
        ),
        propkit.attach(
            training.model, tmp_path / "run.zarr", probes=[undefined, "weight"]
        ) as recorder,
    ):
        training.train(recorder, 3)
    assert "nothing but NaN" in recorder.run.attributes["faults"]["undefined"]
    assert recorder.run.state == "complete"


@pytest.mark.parametrize("strict", [False, True])
def test_a_schedule_that_raises_switches_its_probes_off(strict):
    def early(step):
        return step < 3 or 1 / 0

    def unclear(step):
        return step < 4 or np.zeros(2)

    asked = []

    def always(step):
        asked.append(step)
        return True

    training = Training("mlp")
    every = {"weight": early, "activation": early, "error_moment": always, "gradient_norm": unclear}
    recorder = propkit.attach(training.model, probes=[*every], every=every, strict=strict)
    training.train(recorder, 2)
    with pytest.warns(PropkitWarning) as said:
        training.train(recorder, 4)
    recorder.detach()
    texts = [str(w.message) for w in said]
    assert [t.partition(" raised")[0] for t in texts] == [
        "the schedule of 'weight', 'activation'",
        "the schedule of 'gradient_norm'",
    ]
    assert "ZeroDivisionError: division by zero at step 3" in texts[0]
    run = recorder.run
    assert run.state == "complete"
    steps = {name: run[name].sizes["step"] for name in every}
    assert steps == {"weight": 3, "activation": 3, "error_moment": 6, "gradient_norm": 4}
    assert run["log"].sizes["step"] == 6
    raised = "its schedule raised ZeroDivisionError: division by zero"
    assert run.attributes["faults"]["weight"] == f"step 3: {raised}"
    assert asked == [0, *range(7)]  # once to see whether it can be asked
