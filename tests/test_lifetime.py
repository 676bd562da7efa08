"""How recordings end: once, whoever ends them, with the program at the latest, and at once in forked processes."""

import os
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import propkit
from propkit.recording import outbox
from propkit.store.memory import MemoryWriter
from tests.conftest import make_case
from tests.test_leaks import _hooks
from tests.test_resume import Training

PATIENCE = 60.0
"""Seconds after which a process hangs."""


def _in_a_child(action: Callable[[], object]) -> None:
    """Do something in a forked process, which must end without an error."""
    with warnings.catch_warnings():
        # newer Pythons: this process has threads
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 1
        try:
            warnings.simplefilter("error")
            action()
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    deadline, ended, status = time.monotonic() + PATIENCE, 0, -1
    while not ended and time.monotonic() < deadline:
        time.sleep(0.01)
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the forked process hangs")
    assert status == 0


def _files(folder: Path) -> dict[Path, tuple[int, bytes]]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


@pytest.mark.parametrize("store", ["memory", "directory"])
@pytest.mark.parametrize("given", [False, True])
def test_a_recording_ends_silently_in_a_forked_process(store, given, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(outbox, "FLUSH_ROWS", 4)
    training = Training("mlp")
    bare = _hooks(training.model)
    path = tmp_path / "run.zarr" if store == "directory" else None
    optimizer = training.optimizer if given else None
    recorder = propkit.attach(training.model, path, optimizer=optimizer)
    training.train(recorder, 2)
    recorder.flush()
    training.train(recorder, 1)
    before = _files(tmp_path)

    def child() -> None:
        assert _hooks(training.model) == bare
        training.train(recorder, 40)  # ten flushes
        recorder.log(loss=1.0)
        recorder.flush()
        assert recorder.run["weight"].sizes["step"] == 2
        with recorder:
            training.train(recorder, 1)
        recorder.detach()
        assert "detached" in repr(recorder)
        recorder._lifetime.at_exit()
        mine = propkit.attach(training.model)
        training.train(mine, 3)
        mine.detach()
        assert mine.run["weight"].sizes["step"] == 3

    _in_a_child(child)
    assert _files(tmp_path) == before
    training.train(recorder, 7)
    _in_a_child(recorder.detach)
    recorder.detach()
    assert recorder.run.state == "complete"
    assert recorder.run["weight"]["step"].values.tolist() == list(range(10))
    assert recorder.run["log"]["step"].values.tolist() == list(range(10))


def test_a_fork_in_the_middle_of_the_end_does_not_hang(tmp_path, monkeypatch) -> None:
    training = Training("mlp")
    recorder = propkit.attach(training.model, tmp_path / "run.zarr")
    training.train(recorder, 2)
    written, forked = threading.Event(), threading.Event()
    write = outbox.write_flush

    def slow(*arguments) -> None:
        written.set()
        assert forked.wait(PATIENCE)
        write(*arguments)

    monkeypatch.setattr(outbox, "write_flush", slow)
    ending = threading.Thread(target=recorder.detach)
    ending.start()
    assert written.wait(PATIENCE)

    def child() -> None:
        recorder.detach()
        recorder.flush()

    _in_a_child(child)
    forked.set()
    ending.join()
    assert recorder.run.state == "complete"
    assert recorder.run["weight"].sizes["step"] == 2


class _Images(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((12,), float(index))


def test_the_workers_of_a_data_loader_do_not_matter(tmp_path) -> None:
    model, _, _ = make_case("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with propkit.attach(model, tmp_path / "run.zarr") as recorder:
            for _ in range(2):
                loader = DataLoader(
                    _Images(), 2, num_workers=2, multiprocessing_context="fork", timeout=PATIENCE
                )
                for x in loader:
                    optimizer.zero_grad()
                    model(x).square().mean().backward()
                    optimizer.step()
                    recorder.flush()
    assert recorder.run.state == "complete"
    assert recorder.run["activation"]["step"].values.tolist() == list(range(8))


def test_several_threads_end_a_recording_once_and_all_see_its_end(monkeypatch) -> None:
    closed, states = [], []
    close = MemoryWriter.close

    def slow(self, state, reason="") -> None:
        closed.append(state)
        time.sleep(0.05)
        close(self, state, reason)

    monkeypatch.setattr(MemoryWriter, "close", slow)
    training = Training("mlp")
    recorder = propkit.attach(training.model)
    training.train(recorder, 3)

    def end() -> None:
        recorder.detach()
        states.append(recorder.run.state)

    threads = [threading.Thread(target=end) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert closed == ["complete"]
    assert states == ["complete"] * 8
    assert recorder.run["weight"].sizes["step"] == 3


@pytest.mark.parametrize(
    ("last", "state"), [("", "complete"), ("raise KeyError('mine')", "failed: KeyError: 'mine'")]
)
def test_a_program_that_ends_ends_its_recordings(last, state, tmp_path) -> None:
    program = f"""
import sys, threading, torch, propkit, zarr
model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
path, folder = sys.argv[1:]
objects = zarr.storage.LocalStore(folder)
recorders = [propkit.attach(model, path), propkit.attach(model, objects)]
def train():
    for step in range(3):
        model(torch.ones(4, 3)).sum().backward()
        optimizer.step()
        for recorder in recorders:
            recorder.log(loss=step)
thread = threading.Thread(target=train)
thread.start()
thread.join()
{last}
"""
    stores = [str(tmp_path / "a.zarr"), str(tmp_path / "b.zarr")]
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *stores],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ("mine" in ended.stderr) == bool(last)
    assert "ropkit" not in ended.stderr.partition("Traceback")[0]
    assert (ended.returncode == 0) == (not last)
    for store in stores:
        run = propkit.open(store)
        assert f"{run.state}: {run.attributes['reason']}".rstrip(": ") == state
        assert run["log"].sizes["step"] == run["weight"].sizes["step"] == 3
