"""The gallery shows every registered figure, with small images."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from propkit.figures import registry

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "figures.md"
FIGURES = [name for name in registry.names() if registry.MODULES[name].startswith("propkit.")]


@pytest.fixture(scope="module")
def gallery() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gallery", DOCS / "gallery.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["gallery"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_in_the_gallery(name: str) -> None:
    section = PAGE.read_text().partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    assert registry.describe(name).splitlines()[0] in section  # its paper and figure or equation
    assert f"(figures/gallery/{name}.png)" in section
    assert f"\npython -m propkit.figures {name} " in section
    assert len(section.rpartition("```")[2].split()) > 5, "what one sees is missing"


def test_images_are_there_and_small() -> None:
    shown = {DOCS / path for path in re.findall(r"!\[[^]]*\]\(([^)]*)\)", PAGE.read_text())}
    stored = set((DOCS / "figures" / "gallery").iterdir())
    assert shown == stored
    sizes = [path.stat().st_size for path in stored]
    assert max(sizes) < 60_000
    assert sum(sizes) < 1_200_000
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in stored)


def test_the_page_is_what_the_script_writes(gallery: ModuleType) -> None:
    assert PAGE.read_text() == gallery.page()


def test_every_run_that_a_figure_is_drawn_from_is_made(gallery: ModuleType) -> None:
    folders = {store.partition("/")[0] for store in gallery.RUNS if "/" in store}
    for name, entry in gallery.ENTRIES.items():
        assert set(entry.runs.split()) <= {*gallery.RUNS, *folders}, name
