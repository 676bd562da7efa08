"""Figures are found by name: files here, entry points elsewhere, nothing imported to list them."""

import importlib
import re
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

import propkit
from propkit.figures import registry


@pytest.fixture
def plugins(monkeypatch, tmp_path):
    (tmp_path / "their_figures.py").write_text(
        '"""Theirs."""\ndef their_figures(run, *more, labels=None): return "drawn"\n'
        "def fig3(run): return 'not this one'\n"
    )
    (tmp_path / "their_broken.py").write_text("raise RuntimeError('no luck')\n")
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        EntryPoint("their_figures", "their_figures", registry.GROUP),
        EntryPoint("fig3", "their_figures", registry.GROUP),
        EntryPoint("broken", "their_broken", registry.GROUP),
        EntryPoint("nameless", "their_figures", registry.GROUP),
    ]
    monkeypatch.setattr(registry, "_entry_points", lambda: {e.name: e for e in points})


def test_figures_are_the_files_with_a_function_of_their_name():
    assert {"fig2", "fig3", "fig4"} <= set(propkit.figures.names())
    assert not {"style", "curves", "runs", "registry"} & set(propkit.figures.names())
    for name in propkit.figures.names():
        function = registry.find(name)
        assert callable(function)
        assert getattr(propkit.figures, name) is function


def test_the_function_stays_the_function_when_its_file_is_imported():
    import propkit.figures.fig3

    assert callable(propkit.figures.fig3)
    assert importlib.import_module("propkit.figures.fig3").fig3 is propkit.figures.fig3
    assert "fig3" in dir(propkit.figures)


def test_every_figure_says_how_to_read_it_and_what_it_needs():
    for name in propkit.figures.names():
        text = registry.describe(name)
        assert text == importlib.import_module(f"propkit.figures.{name}").__doc__.strip()
        assert "How to read this" in text
        assert "Needs: " in text


def test_an_unknown_figure_is_refused_with_close_ones():
    with pytest.raises(
        ValueError, match=r"unknown figure 'fig33'. Did you mean fig3 or .*There are: "
    ):
        registry.find("fig33")
    with pytest.raises(AttributeError, match="no attribute 'fig33'"):
        propkit.figures.fig33  # noqa: B018 - the access is the test


@pytest.mark.usefixtures("plugins")
def test_entry_points_come_after_our_own():
    assert propkit.figures.names()[-3:] == ["broken", "nameless", "their_figures"]
    assert registry.find("their_figures")(None) == "drawn"
    assert registry.find("fig3") is propkit.figures.fig3
    assert registry.describe("their_figures") == "their_figures"
    assert propkit.figures.their_figures(None) == "drawn"
    del propkit.figures.__dict__["their_figures"]


@pytest.mark.usefixtures("plugins")
def test_a_broken_entry_point_is_named():
    with pytest.raises(ImportError, match=r"'broken' cannot be loaded from their_broken.*no luck"):
        registry.find("broken")
    with pytest.raises(ImportError, match="'nameless' cannot be loaded from their_figures"):
        registry.find("nameless")


def test_listing_imports_nothing_heavy():
    code = (
        "import sys\nfrom propkit.figures.__main__ import main\n"
        "assert main(['--list']) == 0\nassert main(['fig3', '--help']) == 0\n"
        "bad = {'numpy', 'torch', 'matplotlib', 'xarray', 'zarr'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.search(r"^fig3 +Error of the first layer", done.stdout, re.MULTILINE)
    assert "How to read this" in done.stdout
