"""`run.live()` in a real kernel, and what it says where it cannot work."""

import io
import subprocess
import sys
import textwrap
import time

import matplotlib.image
import numpy as np
import pytest

import propkit
from propkit.live import Live
from propkit.live.draw import Artist, DrawingError, NotYetError, draw
from propkit.schema import Group, Variable
from propkit.store.hold import alive
from propkit.store.memory import MemoryWriter
from propkit.store.run import Run
from propkit.store.writer import ZarrWriter

# Records for some seconds, in a process of its own; `go` is made by the notebook.
WRITER = """
import pathlib, sys, time
import numpy as np
from propkit.schema import Group, Variable
from propkit.store.writer import ZarrWriter

writer = ZarrWriter.create(sys.argv[1], {"label": "<b>run"})
coords = {
    "site": np.array(["a", "b"]), "depth": np.array([1, 2]), "type": np.array(["Conv2d"] * 2),
    "fan_out": np.array([4, 4]),
}
writer.define(Group("error_moment", (Variable("output"),), coords))
writer.commit()
print("ready", flush=True)
for step in range(1000):
    if pathlib.Path(sys.argv[2]).exists():
        break
    writer.append("error_moment", np.array([step]), {"output": np.array([[1.0 + step, 2.0]])})
    writer.commit()
    time.sleep(0.2)
writer.close("complete")
"""

SETUP = """
import subprocess, sys, time, pathlib
import matplotlib as mpl
import propkit
writing = subprocess.Popen([sys.executable, {script!r}, {path!r}, {go!r}], stdout=subprocess.PIPE, text=True)
assert writing.stdout.readline() == "ready\\n"
settings = dict(mpl.rcParams)
run = propkit.open({path!r})
"""

START = "view = run.live('fig3', interval=0.1, dpi=50)"

# The longest time for which the kernel's own thread did not run, while at least two drawings were made.
RESPONSIVE = """
worst, until = 0.0, time.monotonic() + 100
while view.updates < 3 and time.monotonic() < until:
    began = time.thread_time(), time.perf_counter()
    sum(range(1000))
    worst = max(worst, time.perf_counter() - began[1])
    time.sleep(0.01)
print("updates", view.updates >= 3, "running", view.running, "worst", worst)
"""

FINISH = """
pathlib.Path({go!r}).touch()
writing.wait(60)
print("ended", view.wait(60), "state", run.refresh().state, repr(view))
print("settings", dict(mpl.rcParams) == settings, "pyplot", "matplotlib.pyplot" in sys.modules)
"""

BROKEN = """
other = run.live("fig2", interval=0.1)
until = time.monotonic() + 100
while not other.error and time.monotonic() < until:
    time.sleep(0.05)
print("alive", other.error[:32], "running", other.running)
other.stop()
print("stopped", other.wait(60), "updates", other.updates)
"""


def outputs(cell, kind):
    return [o for o in cell.outputs if o.output_type == kind]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the packages that start the kernel
def test_in_a_kernel(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="needs pip install nbclient ipykernel")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    (tmp_path / "writer.py").write_text(WRITER)
    places = {
        "script": str(tmp_path / "writer.py"),
        "path": str(tmp_path / "run.zarr"),
        "go": str(tmp_path / "go"),
    }
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    cells = [nbformat.v4.new_code_cell(textwrap.dedent(c)) for c in (
        SETUP.format(**places), START, RESPONSIVE, BROKEN, FINISH.format(**places),
    )]  # fmt: skip
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = nbclient.NotebookClient(notebook, timeout=150, kernel_name="python3")
    pictures = []

    def keep(cell, cell_index, **_):
        pictures.extend(o["data"].get("image/png") for o in outputs(cells[1], "display_data"))

    client.on_cell_executed = keep
    client.execute()
    said = "".join(o.text for c in cells[2:] for o in outputs(c, "stream") if o.name == "stdout")
    words = said.split()
    assert said.startswith("updates True running True worst ")
    assert float(words[words.index("worst") + 1]) < 1.0
    assert "ended True state complete <propkit live fig3 of '<b>run': ended, " in said
    assert "settings True pyplot False" in said
    assert "alive fig2 needs 'filter_correlation', running True" in said
    assert "stopped True updates 0" in said
    errors = "".join(o.text for c in cells for o in outputs(c, "stream") if o.name == "stderr")
    assert not errors
    # One display, whose picture changed in place, and which stands at the last step in the end.
    (display,) = outputs(cells[1], "display_data")
    assert len({p for p in pictures if p}) >= 2
    assert display["data"]["image/png"] == pictures[-1]
    (missing,) = outputs(cells[3], "display_data")
    assert missing["data"]["text/plain"].startswith("fig2: fig2 needs 'filter_correlation'")


@pytest.fixture
def path(tmp_path):
    writer = ZarrWriter.create(tmp_path / "a.zarr", {})
    coords = {
        "site": np.array(["a", "b"]),
        "depth": np.array([1, 2]),
        "type": np.array(["Conv2d"] * 2),
    }
    writer.define(Group("error_moment", (Variable("output"),), coords))
    writer.append("error_moment", np.array([0, 1]), {"output": np.ones((2, 2))})
    writer.commit()
    writer.close("complete")
    return tmp_path / "a.zarr"


def test_a_drawing_is_a_picture_of_the_figure(path):
    picture = draw("fig3", str(path), {"size": (4.0, 3.0), "dpi": 50})
    pixels = matplotlib.image.imread(io.BytesIO(picture.png))
    assert pixels.shape[:2] == (300, 400)  # twice as dense as it is shown
    assert (picture.width, picture.height) == (200, 150)
    assert pixels[..., :3].std() > 0.01
    assert picture.seconds > 0


def test_the_drawing_process(path):
    artist = Artist()
    try:
        with pytest.raises(NotYetError, match="fig2 needs 'filter_correlation'"):
            artist.draw("fig2", str(path), {})
        with pytest.raises(NotYetError, match="no run at"):
            artist.draw("fig3", str(path) + "x", {})
        with pytest.raises(DrawingError, match="TypeError"):
            artist.draw("fig3", str(path), {"dpi": "many"})
        with pytest.raises(DrawingError, match="cannot be sent"):
            artist.draw("fig3", str(path), {"dpi": lambda: 1})
        options = {"size": (4.0, 3.0), "dpi": 50}
        assert artist.draw("fig3", str(path), options).png == draw("fig3", str(path), options).png
        artist._process.kill()
        with pytest.raises(DrawingError, match="ended with status -9"):
            artist.draw("fig3", str(path), {})
    finally:
        artist.close()
    assert artist._process.returncode is not None


def test_the_drawing_process_ends_with_its_kernel(path):
    """Killed as a kernel may be, it cannot clean up; the process then has no input any more."""
    kernel = subprocess.run(
        [sys.executable, "-c", "import os; from propkit.live.draw import Artist; a = Artist(); "
         "print(a._process.pid, flush=True); os.kill(os.getpid(), 9)"],
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    number = int(kernel.stdout)
    until = time.monotonic() + 30
    while alive(number) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(number)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("fig33",), {}, "unknown figure 'fig33'. Did you mean fig3"),
        (("fig3",), {"colour": "red"}, "fig3 has no option 'colour'; it has labels, corrected"),
        (("fig3",), {"interval": 0}, "expected a positive number of seconds"),
    ],
)
def test_mistakes(path, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        propkit.open(path).live(*arguments, **options)


def test_a_run_in_memory_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"give attach\(\) a path"):
        Run.from_memory(MemoryWriter({})).live()


def test_outside_a_notebook(path):
    pytest.importorskip("IPython")
    with pytest.raises(RuntimeError, match="python -m propkit watch"):
        propkit.open(path).live()


def test_without_ipython_the_extra_is_named(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", None)
    with pytest.raises(ImportError, match=r"propkit\[jupyter\]"):
        Live(propkit.open(path))
