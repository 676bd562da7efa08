"""The notebooks of the examples run from top to bottom, with fewer steps than they show."""

import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="the notebooks are not run: needs nbformat")
nbclient = pytest.importorskip("nbclient", reason="the notebooks are not run: needs nbclient")
pytest.importorskip("ipykernel", reason="the notebooks are not run: needs ipykernel")

NOTEBOOKS = sorted((Path(__file__).parent.parent / "examples").glob("*.ipynb"))
STEPS = re.compile(r"^STEPS = \d+$", re.MULTILINE)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} == {"diagnosis", "figures_of_the_paper"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONWARNINGS", "error::UserWarning")
    monkeypatch.chdir(tmp_path)
    notebook = read(path)
    shortened = 0
    for cell in notebook.cells:
        cell.source, found = STEPS.subn("STEPS = 12", cell.source)
        shortened += found
    assert shortened == 1
    client = nbclient.NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    committed = [outputs_of(cell) for cell in read(path).cells]
    for cell, kinds in zip(notebook.cells, committed, strict=True):
        # The same cells give figures, tables and text, whatever the numbers.
        assert outputs_of(cell) == kinds, cell.source


def outputs_of(cell: Any) -> list[str]:
    """What kinds of output a cell has, as far as a page that was written before shows them."""
    kinds = []
    for output in cell.get("outputs", []):
        assert output.output_type != "error"
        held = set(output.get("data", {}))
        kinds.append("figure" if "image/png" in held else "text")
    return kinds


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_fit_to_be_committed(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert path.stat().st_size < 200_000
    text = path.read_text()
    for private in ("/home/", "/tmp/", "/Users/", "/root/", "hostname", "<stderr>"):
        outputs = [
            line for line in text.splitlines() if private in line and "image/png" not in line
        ]
        assert not outputs
    assert all(len(cell.source.splitlines()) <= 20 for cell in notebook.cells)  # short cells
    assert not [
        o for c in notebook.cells for o in c.get("outputs", []) if o.get("name") == "stderr"
    ]
