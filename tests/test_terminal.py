"""Tables in a terminal: what matters can be read at any width, numbers are whole, what is left out is named."""

import functools
import io
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from torch import nn

import propkit
from propkit.diagnosis.render import Sheet
from propkit.diagnosis.terminal import broken, column_widths

NUMBER = re.compile(r"-?[\d.]+(e[-+]\d+)?")


def shown(thing: object, width: int) -> str:
    buffer = io.StringIO()
    Console(file=buffer, width=width).print(thing)
    return buffer.getvalue()


@functools.cache
def network() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return propkit.models.plain(20), torch.randn(16, 3, 16, 16), torch.arange(16) % 10


@functools.cache
def diagnosis():
    model, x, y = network()
    return propkit.measure(model, x, y, loss=F.cross_entropy)


@functools.cache
def compatibility():
    model, x, _ = network()
    return propkit.compatibility(model, x)


@pytest.mark.parametrize("width", [60, 79, 80, 81, 100, 120, 200])
def test_a_diagnosis_is_read_at_any_width(width: int) -> None:
    found = diagnosis()
    lines = shown(found, width).splitlines()
    assert max(map(cell_len, lines)) <= width
    whole = set(found._sheet().text().split()) | {
        cell for row in found._sheet().rows for cell in row
    }
    rule = next(i for i, line in enumerate(lines) if set(line) == {"─"})
    rows = lines[rule + 1 : rule + 1 + found.table.sizes["site"]]
    depths, verdicts = found.table["depth"].values, found.table["verdict"].values
    for row, depth, site, verdict in zip(
        rows, depths, found.table["site"].values, verdicts, strict=True
    ):
        cells = row.split()
        assert cells[:2] == [str(depth), site]
        assert not verdict or cells[-1] == verdict
        assert {cell for cell in cells[2:] if NUMBER.fullmatch(cell)} <= whole
    rest = " ".join(lines[rule + len(rows) + 1 :])
    names = ["q out", "q error", "to last", "to next", "out/in", "dead", "cond", "rank", "cosine"]
    heads = " ".join(lines[1:rule])
    missing = [n for n in names if not set(n.split()) <= set(heads.split())]
    assert bool(missing) == (width < 109)
    assert ("left out at" in rest) == bool(missing)
    assert all(name in rest for name in missing)
    if missing:
        assert "109 columns show all" in rest
        assert ".table has them" in rest


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_probes_are_not_broken_within_a_word(width: int) -> None:
    lines = shown(compatibility(), width).splitlines()
    rule = next(i for i, line in enumerate(lines) if set(line) == {"─"})
    words = {"depth", "site", "type", "calls", "error_moment", "error_", "moment", "gradient_norm"}
    words |= {"gradient_", "norm", "activation", "filter_correlation", "filter_", "correlation"}
    assert {word for line in lines[1:rule] for word in line.split()} <= words | {"weight"}
    expected = ["2", "layer1.0.conv1", *(["Conv2d"] if width > 80 else [])]
    assert expected in [line.split()[: len(expected)] for line in lines]
    assert "partly: conv1 without error_moment.input" in " ".join(lines)


def test_long_names_and_many_problems_are_broken_not_cut() -> None:
    sites = ["encoder.layers.11.self_attention.output_projection", "x" * 70, "[red]a"]
    verdicts = ["exploding, dead, vanishing, singular", "healthy", "dead"]
    rows = [["123456", s, "Linear", "-1.23e-05", v] for s, v in zip(sites, verdicts, strict=True)]
    sheet = Sheet(
        "net",
        ["depth", "site", "type", "q", "verdict"],
        rows,
        ["red", "", "blue"],
        [True, False, False, True, False],
        ranks=[0, 0, 2, 1, 0],
    )
    for width in (60, 80, 150):
        text = shown(sheet.rich(), width)
        assert max(map(cell_len, text.splitlines())) <= width
        assert text.count("123456") == 3
        assert text.count("-1.23e-05") in (0, 3)
        for piece in ("exploding", "vanishing", "singular", "self_", "projection", "[red]a"):
            assert piece in text
        assert text.count("x") == 70 + 1  # that of "exploding"
    assert "left out at 60 columns: type, q; " in " ".join(shown(sheet.rich(), 60).split())
    assert "left out" not in shown(sheet.rich(), 150)


@given(
    st.lists(st.tuples(st.text("ab_. ", max_size=50), st.integers(0, 10**9)), max_size=4),
    st.integers(60, 200),
)
def test_columns_fit_and_numbers_are_whole(cells: list[tuple[str, int]], width: int) -> None:
    columns = ["first", *(f"number {i}" for i in range(8)), "last"]
    rows = [[text, *[str(number)] * 8, text] for text, number in cells]
    numeric = [False, *[True] * 8, False]
    widths = column_widths(Sheet("", columns, rows, [""] * len(rows), numeric), width)
    assert {0, 9} <= set(widths)
    assert sum(widths.values()) + 2 * (len(widths) - 1) <= width
    for i, wide in widths.items():
        assert not numeric[i] or all(len(row[i]) <= wide for row in rows)
    assert list(widths)[1:-1] == list(range(1, len(widths) - 1))  # the last ones go first


@given(st.text("ab_. ", max_size=60), st.integers(8, 40))
def test_breaking_loses_nothing(text: str, width: int) -> None:
    assert "".join(broken(text, width).split()) == "".join(text.split())
