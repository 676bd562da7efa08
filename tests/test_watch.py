"""`python -m propkit watch`: what is on the screen, through everything that happens to a run."""

import contextlib
import io
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from rich.console import Console

import propkit
from propkit import __main__ as cli
from propkit.schema import Group, Variable
from propkit.store.writer import ZarrWriter
from propkit.watch import loop
from propkit.watch.choice import NothingToShowError
from propkit.watch.frame import read_frame, render
from propkit.watch.loop import Watcher, watch
from propkit.watch.strip import RAMP, Scale, line, pooled


def start(path, layers=4, label="net", **attributes):
    writer = ZarrWriter.create(path, {"label": label, **attributes})
    coords = {
        "site": np.array([f"layer{i}" for i in range(1, layers + 1)]),
        "depth": np.arange(1, layers + 1),
        "type": np.array(["Conv2d"] * layers),
        "output_shape": np.array(["(8, 4, 6, 6)"] * layers),
    }
    writer.define(Group("error_moment", (Variable("input"), Variable("output")), coords))
    writer.define(Group("activation", (Variable("zeros"), Variable("dead")), coords))
    writer.define(Group("log", (Variable("loss"),)))
    writer.commit()
    return writer


def write(writer, steps, layers=4, q=None):
    """q grows tenfold from layer to layer."""
    q = np.tile(10.0 ** np.arange(layers), (len(steps), 1)) if q is None else q
    writer.append("error_moment", np.array(steps), {"input": np.ones_like(q), "output": q})
    writer.append(
        "activation", np.array(steps), {"zeros": np.full_like(q, 0.25), "dead": np.zeros_like(q)}
    )
    writer.append("log", np.array(steps), {"loss": np.array([1.0 / (1 + s) for s in steps])})
    writer.commit()


def screen(console=None):
    return console or Console(
        file=io.StringIO(), width=100, height=30, force_terminal=True, color_system="truecolor"
    )


def shown(watcher, height=30):
    console = Console(file=io.StringIO(), width=100)
    console.print(watcher.render(100, height))
    return " ".join(console.file.getvalue().split())


@given(
    nps.arrays(
        float,
        st.integers(1, 30),
        elements=st.one_of(st.floats(1e-12, 1e12), st.sampled_from([0.0, np.inf, np.nan])),
    )
)
def test_more_ink_is_a_larger_value(values):
    scale = Scale.of(values)
    characters = scale.characters(values)
    finite = values[np.isfinite(values)]
    for value, character in zip(values, characters, strict=True):
        if np.isnan(value):
            assert character == " "
        elif np.isinf(value):
            assert character == "!"
        elif scale.log and value == 0:
            assert character == "0"
        else:
            assert character in RAMP
    pairs = [(v, c) for v, c in zip(values, characters, strict=True) if c in RAMP]
    levels = [RAMP.index(c) for _, c in sorted(pairs)]
    assert levels == sorted(levels)
    if finite.size and scale.high > scale.low:
        kept = finite[finite > 0] if scale.log else finite
        assert (scale.low, scale.high) == (kept.min(), kept.max())
        assert {RAMP[0], RAMP[-1]} <= set(characters)
    spoilt = scale.characters(values, spoilt=True)
    assert np.array_equal(spoilt == "!", ~np.isfinite(values))


def test_levels_are_equal_factors():
    values = 10.0 ** np.linspace(-9, 9, 90)
    characters = Scale.of(values).characters(values).tolist()
    counts = [characters.count(c) for c in RAMP]
    assert max(counts) - min(counts) <= 1
    assert Scale.of(np.array([1.0, 20.0])).log is False


def brightness(color):
    return sum(w * int(color[i : i + 2], 16) for w, i in ((0.299, 1), (0.587, 3), (0.114, 5)))


def test_colors_are_ordered_in_greyscale_and_characters_stand_out():
    found = line(RAMP)
    assert found.plain == RAMP
    grounds = [re.search("on (#.*)", str(span.style))[1] for span in found.spans]
    grey = [brightness(c) for c in grounds]
    assert len(grounds) == len(RAMP)
    assert grey == sorted(grey)
    for span, ground in zip(found.spans, grey, strict=True):
        ink = 255 if str(span.style).startswith("white") else 0
        assert abs(ink - ground) > 90


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10**6))
def test_pooled_lines_are_medians_of_neighbours(layers, rows, seed):
    generator = np.random.default_rng(seed)
    values = generator.random((3, layers))
    values[generator.random(values.shape) < 0.1] = np.nan
    names = [f"n{i}" for i in range(layers)]
    lines, labels = pooled(values, names, rows)
    assert lines.shape == (3, min(layers, rows)) == (3, len(labels))
    sizes = [1 + int(label.partition(" +")[2] or 0) for label in labels]
    assert sum(sizes) == layers
    assert max(sizes) - min(sizes) <= 1
    begin = 0
    for i, size in enumerate(sizes):
        assert labels[i].partition(" +")[0] == names[begin]
        for t in range(3):
            known = sorted(v for v in values[t, begin : begin + size] if v == v)
            middle = len(known) // 2
            expected = np.nan if not known else (known[middle] + known[-1 - middle]) / 2
            np.testing.assert_allclose(lines[t, i], expected)
        begin += size


def test_one_infinite_layer_is_not_lost_among_its_neighbours():
    lines, _ = pooled(np.array([[1.0, np.inf, 1.0, 1.0, 1.0, 1.0]]), list("abcdef"), 2)
    assert lines.tolist() == [[np.inf, 1.0]]


def test_once(tmp_path, capsys):
    path = tmp_path / "a.zarr"
    writer = start(path, config={"recipe": {"steps": 200}})
    write(writer, range(0, 100))
    assert cli.main(["watch", str(path), "--once"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "net  running"
    assert lines[1].startswith("step 99 of 200 (50%), last written ")
    assert lines[2] == "loss 0.01"
    assert lines[4] == f"error_moment.output, steps 20 to 99   1 {RAMP} 1e+03, log scale"
    width = 80
    for i, character in enumerate((RAMP[0], RAMP[3], RAMP[6], RAMP[8])):
        assert lines[5 + i].split() == [f"layer{i + 1}", character * width, f"{10.0**i:.2g}"]
    assert lines[-1] == "healthy: nothing found at 4 layers"
    assert all(len(text) <= 120 for text in lines)
    writer.close("complete")


def test_what_is_shown_can_be_chosen(tmp_path, capsys):
    path = tmp_path / "a.zarr"
    writer = start(path)
    write(writer, [0, 1])
    writer.close("failed", "loss is NaN")
    assert cli.main(["watch", str(path), "--once", "--probe", "activation"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("net  failed: loss is NaN")
    assert "activation.zeros" in out
    assert cli.main(["watch", str(path), "--variable", "input"]) == 1  # no terminal: one frame
    assert "error_moment.input" in capsys.readouterr().out
    for arguments, message in (
        (["--probe", "wieght"], "no values by layer of 'wieght'; it has error_moment, activation"),
        (["--probe", "log"], "no values by layer of 'log'"),
        (["--probe", "activation", "--variable", "max"], "it has zeros, dead"),
        (["--interval", "0"], "expected a positive number of seconds"),
    ):
        assert cli.main(["watch", str(path), *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_no_run_at_all(tmp_path, capsys):
    assert cli.main(["watch", str(tmp_path / "a.zarr"), "--once"]) == 2
    assert "no run at" in capsys.readouterr().err


def test_a_run_from_before_it_exists_to_its_end(tmp_path):
    path = tmp_path / "a.zarr"
    seen = []
    writer = None

    def pass_time(seconds):
        """What happens between two looks."""
        nonlocal writer
        seen.append(console.file.getvalue())
        console.file.truncate(0)
        turn = len(seen)
        if turn == 1:
            path.mkdir()  # a run in the making
        elif turn == 2:
            path.rmdir()
            writer = start(path)
        elif turn == 3:
            write(writer, range(0, 10))
        elif turn == 4:
            write(writer, range(10, 20), q=np.full((10, 4), np.inf))
        else:
            writer.close("complete")

    console = screen()
    assert watch(path, console=console, sleep=pass_time) == "complete"
    for text, expected in zip(
        [*seen, console.file.getvalue()],
        ("there is no run yet", "is not a propkit run", "no row yet", "step 9", "!!!!", "complete"),
        strict=True,
    ):
        assert expected in " ".join(text.split())
    assert "exploding: 4 of 4 layers" in console.file.getvalue()
    assert "Ctrl-C" in seen[-1]
    assert "Ctrl-C" not in console.file.getvalue().rpartition("complete")[2]


def test_something_that_is_no_run_is_said_after_a_while(tmp_path, monkeypatch):
    now = [0.0]
    watcher = Watcher(tmp_path, clock=lambda: now[0])
    watcher.look(80)
    assert "cannot be read at the moment" in shown(watcher)
    now[0] = loop.PATIENCE + 1
    with pytest.raises(ValueError, match="is not a propkit run"):
        watcher.look(80)


def test_a_run_that_is_cut_back_and_resumed(tmp_path):
    path = tmp_path / "a.zarr"
    writer = start(path)
    write(writer, range(0, 10))
    watcher = Watcher(path)
    watcher.look(80)
    write(writer, range(10, 50))
    watcher.look(80)
    assert "step 49" in shown(watcher)
    assert watcher.rate > 0
    writer.close("interrupted", "stopped")
    watcher.look(80)
    assert watcher.ended
    assert watcher.state == "interrupted"
    shutil.rmtree(path)
    watcher.look(80)  # what is known stays on the screen
    assert "step 49" in shown(watcher)
    assert "is not there any more" in shown(watcher)
    assert not watcher.ended
    writer = start(path)
    write(writer, range(0, 30))
    watcher.look(80)
    assert "step 29" in shown(watcher)
    assert "not there" not in shown(watcher)
    assert watcher.rate is None  # it does not count from the rows that are gone
    writer.close("complete")


def test_a_fault_while_reading_keeps_the_last_frame(tmp_path, monkeypatch):
    path = tmp_path / "a.zarr"
    writer = start(path)
    write(writer, range(0, 10))
    watcher = Watcher(path)
    watcher.look(80)
    write(writer, range(10, 20))
    real = loop.read_frame
    monkeypatch.setattr(loop, "read_frame", lambda *_: (_ for _ in ()).throw(KeyError("gone")))
    watcher.look(80)
    assert "step 9" in shown(watcher)
    assert "cannot be read at the moment: 'gone'" in shown(watcher)
    monkeypatch.setattr(loop, "read_frame", real)
    watcher.look(80)
    assert "step 19" in shown(watcher)
    writer.close("complete")


def test_rate_and_time_to_go(tmp_path):
    path = tmp_path / "a.zarr"
    writer = start(path, config={"steps": 1000})
    watcher = Watcher(path)
    frames = {}
    for step, second in ((0, 0), (100, 10), (300, 20)):
        write(writer, [step])
        frame = read_frame(propkit.open(path), 80)
        frames[step] = frame
        import dataclasses
        import datetime

        moment = datetime.datetime(2026, 1, 1, 0, 0, second, tzinfo=datetime.UTC)
        watcher._count(dataclasses.replace(frame, written=moment))
    assert watcher.rate == 15.0
    console = Console(file=io.StringIO(), width=120)
    console.print(render(frames[300], 120, 30, watcher.rate))
    assert "step 300 of 1,000 (30%), 15 steps/s, 47 s to go" in console.file.getvalue()
    writer.close("complete")


def test_an_unchanged_run_is_not_read_again(tmp_path, monkeypatch):
    path = tmp_path / "a.zarr"
    writer = start(path)
    write(writer, [0])
    watcher = Watcher(path)
    watcher.look(80)
    monkeypatch.setattr(loop, "read_frame", lambda *_: pytest.fail("read again"))
    watcher.look(80)
    monkeypatch.undo()
    watcher.look(40)  # the window is narrower now
    writer.close("complete")


@pytest.mark.parametrize("rows", [30, 3000])
def test_what_is_read_does_not_grow_with_the_run(tmp_path, monkeypatch, rows):
    path = tmp_path / "a.zarr"
    writer = start(path, layers=3)
    write(writer, range(rows), layers=3)
    writer.close("complete")
    frame = read_frame(propkit.open(path), 20)
    assert frame.values.shape == (20, 3)
    assert frame.steps == list(range(rows - 20, rows))


@pytest.mark.parametrize("size", [(40, 12), (100, 30), (200, 80)])
def test_the_frame_fits_the_terminal(tmp_path, size):
    path = tmp_path / "a.zarr"
    writer = start(path, layers=300, label="[red]\x1b[2J" * 9)
    write(writer, range(50), layers=300)
    width, height = size
    console = Console(file=io.StringIO(), width=width)
    console.print(render(read_frame(propkit.open(path), width), width, height, footer="hint"))
    lines = console.file.getvalue().splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert "\x1b" not in console.file.getvalue()
    writer.close("complete")


def test_a_run_without_values_by_layer(tmp_path):
    path = tmp_path / "a.zarr"
    writer = ZarrWriter.create(path, {"label": "bare"})
    writer.define(Group("log", (Variable("loss"),)))
    writer.commit()
    watcher = Watcher(path)
    watcher.look(80)
    assert "waiting; no probe has been recorded yet" in shown(watcher)
    writer.close("complete")
    with pytest.raises(NothingToShowError, match="no probe"):
        watcher.look(80)


class Terminal:
    """The command in a process of its own, in a terminal of its own."""

    def __init__(self, *arguments):
        leader, follower = pty.openpty()
        self.leader, self.text = leader, ""
        environment = os.environ | {"COLUMNS": "100", "LINES": "30", "TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "propkit", "watch", *map(str, arguments)],
            stdin=follower, stdout=follower, stderr=follower, env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(follower)

    def until(self, pattern, seconds=60):
        end = time.monotonic() + seconds
        while not re.search(pattern, self.text) and time.monotonic() < end:
            if select.select([self.leader], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self.leader, 65536).decode(errors="replace")
                except OSError:  # the other end is closed
                    break
        assert re.search(pattern, self.text), self.text[-2000:]

    def end(self):
        """The exit status, after all that is still to be read."""
        end = time.monotonic() + 60
        with contextlib.suppress(OSError):  # the other end is closed
            while time.monotonic() < end:
                if select.select([self.leader], [], [], 0.1)[0]:
                    self.text += os.read(self.leader, 65536).decode(errors="replace")
        return self.process.wait(10)

    def close(self):
        with contextlib.suppress(OSError):
            os.close(self.leader)


@pytest.fixture
def terminal():
    """Makes terminals; no process outlives the test, whatever becomes of it."""
    made = []

    def make(*arguments):
        made.append(Terminal(*arguments))
        return made[-1]

    yield make
    for one in made:
        one.close()
        one.process.kill()
        one.process.wait()


def test_in_a_terminal(tmp_path, terminal):
    path = tmp_path / "a.zarr"
    terminal = terminal(path, "--interval", "0.05")
    terminal.until(r"there\s+is\s+no\s+run")
    writer = start(path)
    write(writer, range(0, 10))
    terminal.until(r"step 9")
    write(writer, range(10, 20))
    terminal.until(r"step 19")
    writer.close("complete")
    terminal.until("complete")
    assert terminal.end() == 0
    assert "\x1b[48;2;" in terminal.text or "\x1b[48;5;" in terminal.text or ";48;" in terminal.text
    assert "\x1b[?25l" in terminal.text
    assert terminal.text.rindex("\x1b[?25h") > terminal.text.rindex(
        "\x1b[?25l"
    )  # the cursor is back


def test_ctrl_c(tmp_path, terminal):
    terminal = terminal(tmp_path / "a.zarr")
    terminal.until(r"there\s+is\s+no\s+run")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 130
    assert "Traceback" not in terminal.text


def test_it_ends_with_its_terminal(tmp_path, terminal):
    terminal = terminal(tmp_path / "a.zarr", "--interval", "0.1")
    terminal.until(r"there\s+is\s+no\s+run")
    terminal.close()
    assert terminal.process.wait(60) == 1


def test_a_group_whose_arrays_are_gone_is_said_to_be_damaged(tmp_path, capsys):
    writer = start(tmp_path / "a.zarr")
    write(writer, range(3))
    writer.close("complete")
    shutil.rmtree(tmp_path / "a.zarr" / "error_moment" / "site")
    assert cli.main(["watch", "--once", str(tmp_path / "a.zarr")]) == 2
    assert "a.zarr is damaged: error_moment/site is missing" in capsys.readouterr().err
