"""What Jupyter shows: read back with an HTML parser, for names and texts that nobody should trust."""

import time
from collections import OrderedDict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import propkit
from propkit.notebook import MOST_CHARACTERS, MOST_ROWS
from propkit.store.datasets import Contents

EVIL = "<script>alert('x')</script> & \"q\""
TAGS = {"div", "p", "b", "code", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "pre"}
TAGS |= {"details", "summary"}


class Page(HTMLParser):
    """Text and tags of a piece of HTML; fails where tags are not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.open: list[str] = []
        self.cells: list[list[str]] = []
        self.feed(page)
        self.close()
        assert not self.open
        self.words = " ".join(" ".join(self.text).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        assert {name for name, _ in attrs} <= {"style"}
        self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        elif tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1][-1] += data


def made(attributes: dict[str, Any], contents: dict[str, Contents]) -> propkit.Run:
    """A run whose values must not be read."""

    def never(*_: object) -> Any:
        raise AssertionError("values were read, or the run was opened again")

    return propkit.Run(attributes, contents, never, never, never)


def train(model: nn.Module, recorder: propkit.Recorder, steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()


def test_a_run_of_many_steps_is_shown_without_reading_it() -> None:
    held = Contents(64_000, 44, ("output", "input"), 63_999)
    run = made({"state": "complete", "label": "l2", "model": "Plain"}, {"error_moment": held})
    began = time.process_time()
    page = Page(run._repr_html_())
    assert time.process_time() - began < 0.1
    assert page.cells[1] == ["error_moment", "64000", "44", "output, input", "63999"]
    assert page.words.startswith("propkit.Run l2 : complete, Plain, in memory")
    assert len(repr(run).splitlines()) == 2


def test_what_went_wrong_is_seen_at_once() -> None:
    attributes = {
        "state": "failed",
        "reason": "OSError: disk full",
        "faults": {"weight": "step 3: ValueError: no"},
        "not_finite": {"activation": "step 2 at fc"},
        "notes": ["fc2 was never called"],
    }
    text = made(attributes, {})._repr_html_().partition("<details>")[0]
    for part in (
        "failed",
        "disk full",
        "weight: step 3: ValueError: no",
        "step 2 at fc",
        "fc2 was",
    ):
        assert part in text


def test_nothing_grows_without_bound() -> None:
    many = {f"key{i}": "x" * 10_000 for i in range(5_000)}
    contents = {f"group{i}": Contents(1, 1, ("value",), 0) for i in range(500)}
    run = made({"state": "complete", "notes": [EVIL] * 1000, **many}, contents)
    page = Page(run._repr_html_())
    assert f"and {500 - MOST_ROWS} more" in page.words
    assert f"and {1000 - MOST_ROWS} more" in page.words
    assert max(map(len, page.text)) == MOST_CHARACTERS + 1
    assert len(run._repr_html_()) < 60_000


text = st.text("a<>&\"'/\n\0é", max_size=8) | st.just(EVIL)
json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from(["state", "label", "reason", "notes", "faults", "x", EVIL]), json
    )
)
def test_any_attributes_can_be_shown(attributes: dict[str, Any]) -> None:
    run = made(attributes, {EVIL: Contents(2, None, (EVIL,), None)})
    page = Page(run._repr_html_())
    if not page.words.startswith("propkit.Run (cannot be shown"):
        assert page.cells[1] == [EVIL, "2", "", EVIL, ""]


def test_a_run_that_cannot_be_shown_says_so() -> None:
    run = made({}, {})
    run.attributes = 3  # type: ignore[assignment]
    page = Page(run._repr_html_())
    assert page.words.startswith("propkit.Run (cannot be shown: AttributeError: 'int' object")


def test_a_recorder_is_shown_while_it_records(tmp_path: Path) -> None:
    model = nn.Sequential(
        OrderedDict({EVIL.replace(".", ""): nn.Linear(3, 3), "head": nn.Linear(3, 2)})
    )

    def broken(output: torch.Tensor) -> torch.Tensor:
        raise ValueError(EVIL)

    broken.__doc__ = "Always fails."
    probe = propkit.probe(sites="layer", reduce="mean", units="1")(broken)
    recorder = propkit.attach(
        model,
        tmp_path / "run.zarr",
        probes=["weight", "activation", probe],
        every={"weight": 5, "activation": propkit.log_spaced(4)},
    )
    with recorder:
        with pytest.warns(UserWarning, match="'broken' failed"):
            train(model, recorder, 2)
        waiting = len(recorder._outbox.rows)
        assert waiting == 2
        page = Page(recorder._repr_html_())
        assert len(recorder._outbox.rows) == waiting  # looking wrote nothing
        assert page.words.startswith("propkit.Recorder recording : step 2, 2 rows not written yet")
        assert page.cells[1:] == [
            ["weight", "every 5 steps", "2", "on"],
            ["activation", "log_spaced(4)", "2", "on"],
            ["broken", "every step", "2", "off"],
        ]
        assert EVIL in page.words  # the fault, as text
        assert "% of the training's time" in page.words
        assert len(repr(recorder).splitlines()) == 1
    assert "detached" in Page(recorder._repr_html_()).words
    recorder._outbox = None  # type: ignore[assignment]
    assert "cannot be shown" in Page(recorder._repr_html_()).words


def deep(names: list[str]) -> nn.Module:
    return nn.Sequential(OrderedDict((name, nn.Linear(3, 3)) for name in names))


def test_a_diagnosis_and_a_table_of_sites_escape_the_names_of_modules() -> None:
    model = deep([EVIL, "head"])
    diagnosis = propkit.measure(model, torch.randn(4, 3), torch.arange(4) % 3, loss=F.cross_entropy)
    sites = propkit.compatibility(model, torch.randn(4, 3))
    for shown in (diagnosis, sites):
        page = Page(shown._repr_html_())
        assert EVIL in [cells[1] for cells in page.cells]


def test_colors_are_those_of_a_browser_and_of_a_terminal() -> None:
    from matplotlib.colors import CSS4_COLORS
    from rich.color import Color

    from propkit.diagnosis import diagnosis
    from propkit.store import study

    for color in {*diagnosis._COLORS.values(), *study._COLORS.values(), "red"}:
        assert color in CSS4_COLORS
        Color.parse(color)
    assert len(set(diagnosis._COLORS.values())) == len(diagnosis._COLORS)
    layers = [m for _ in range(12) for m in (nn.Linear(8, 8), nn.Sigmoid())]
    found = propkit.measure(nn.Sequential(*layers), torch.randn(9, 8), loss=lambda o: o.sum())
    assert "vanishing" in found.verdict
    assert f"color:{diagnosis._COLORS['vanishing']}" in found._repr_html_()


def test_a_diagnosis_of_many_layers_is_short_as_text() -> None:
    model = deep([f"layer{i}" for i in range(300)])
    diagnosis = propkit.measure(
        model, torch.randn(4, 3), torch.arange(4) % 3, loss=F.cross_entropy, probes=["error_moment"]
    )
    assert len(repr(diagnosis).splitlines()) < 40
    began = time.process_time()
    page = Page(diagnosis._repr_html_())
    assert time.process_time() - began < 1.0
    assert len(page.cells) == 301
