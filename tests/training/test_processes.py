"""What needs no second process; the rest is in test_parallel.py."""

import os
import signal

import pytest
import torch
from torch import nn

from propkit import __main__ as cli
from propkit.training.monitor import Monitor
from propkit.training.processes import Interrupts, Processes, joined, launched


def test_alone_nothing_is_shared():
    processes, model = Processes(), nn.Linear(2, 2)
    assert (processes.rank, processes.size, processes.first, processes.part) == (0, 1, True, (0, 1))
    assert processes.share(model) is model
    values = torch.tensor([1.0, 2.0])
    assert processes.mean(values).tolist() == processes.sum(values).tolist() == [1, 2]
    assert processes.gather("a") == ["a"]
    with pytest.raises(ZeroDivisionError):
        processes.only_first(lambda: 1 / 0)


def test_alone_signals_are_left_as_they_are():
    before = signal.getsignal(signal.SIGINT)
    with Interrupts(Processes()) as interrupts:
        assert signal.getsignal(signal.SIGINT) is before
    assert not interrupts.asked


def test_a_second_signal_stops_at_once(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Processes, "__init__", lambda self: setattr(self, "size", 2))
    with Interrupts(Processes()) as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_without_torchrun_there_is_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not launched()
    with joined("cpu") as device:
        assert device == "cpu"
        assert not torch.distributed.is_initialized()


def test_several_processes_cannot_share_one_gpu(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="'cuda:1' is one GPU; say cuda"), joined("cuda:1"):
        pass


def test_sweeps_refuse_torchrun(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["train", "table2", "-o", str(tmp_path / "x")]) == 2
    assert "use --jobs, not torchrun" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_the_monitor_reads_by_steps_where_processes_must_agree():
    monitor, read = Monitor(0, every=5), []
    for step in range(24):
        monitor.add(torch.tensor([float(step), 0.5, 0.0]))
        if monitor.due:
            loss, accuracy = monitor.read()
            read.append(step)
            assert (loss, accuracy) == (step / 2, 0.5)  # mean of 0 ... step
    assert read == [0, 1, 2, 3, 8, 13, 18, 23]
    monitor.add(torch.tensor([1.0, 0.5, 0.5]))
    with pytest.raises(KeyboardInterrupt):
        monitor.read()
