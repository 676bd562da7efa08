"""Every figure of runs that are odd: one clear error, or a figure that can be drawn and written."""

import inspect
import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb

import propkit
from propkit.figures import registry
from propkit.figures.runs import FigureError
from propkit.figures.style import STYLES, use_style

FIGURES = propkit.figures.names()
PARTS = [name for name in FIGURES if name != "overview"]
"""An overview consists of them, and is tested in its own file."""
UNLABELLED = {"spectra", "procrustes_grid"}
"""Figures of many runs that do not name each of them."""
NEEDS_TWO = {"fig3", "fig4", "mean_field"}
"""Ratios of layers to one another."""


def png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=25)
    return buffer.getvalue()


def nan(values):
    return np.full_like(values, np.nan)


def zero(values):
    return np.zeros_like(values)


def extreme(values):
    return values * np.resize([1e305, 1e-300], values.shape)


def mixed(values):
    values = values.copy()
    values.flat[::3] = np.nan
    values.flat[1::3] = np.inf
    values.flat[2::7] = -1.0
    return values


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("change", [nan, zero, extreme, mixed])
def test_odd_values_are_drawn(recorded, name, change):
    figure = registry.find(name)(recorded(steps=(0, 3, 7), layers=3, change=change))
    assert png(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize("name", PARTS)
def test_one_step(recorded, name):
    registry.find(name)(recorded(steps=(0,))).draw_without_rendering()


@pytest.mark.parametrize("name", PARTS)
def test_one_layer(recorded, name):
    run = recorded(layers=1)
    if name in NEEDS_TWO:
        with pytest.raises(ValueError, match="two layers"):
            registry.find(name)(run)
    else:
        registry.find(name)(run).draw_without_rendering()


@pytest.mark.parametrize("name", PARTS)
def test_a_thousand_layers(recorded, name):
    registry.find(name)(recorded(layers=1000, steps=(0, 5))).draw_without_rendering()


@pytest.mark.parametrize("name", FIGURES)
def test_a_run_without_rows_is_refused_in_one_line(recorded, name):
    with pytest.raises(FigureError, match=r"no row of .* yet") as caught:
        registry.find(name)(recorded(steps=()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FIGURES)
def test_a_run_without_the_quantity_is_refused_and_told_how_to_record_it(recorded, name):
    run = recorded(without=tuple(recorded().groups))
    with pytest.raises(
        FigureError, match=r"needs '\w+', which run 'all' does not have \(it has: nothing\)"
    ):
        registry.find(name)(run)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("style", STYLES)
def test_every_artist_has_the_colours_of_the_style(recorded, name, style):
    with use_style(style):
        figure = registry.find(name)(recorded(layers=3))
    dark = sum(to_rgb(figure.get_facecolor())) < 1
    assert dark == (style == "dark")
    for ax in figure.axes:
        assert (sum(to_rgb(ax.get_facecolor())) < 1) == dark
    for ax in figure.axes:
        for line in ax.lines:
            shown = sum(to_rgb(line.get_color()))
            assert shown > 0.75 if dark else shown < 2.4, (line.get_gid(), line.get_color())


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match="expected one of screen, paper, dark"), use_style("x"):
        pass


@pytest.mark.parametrize("name", PARTS)
def test_a_size_in_inches_is_kept(recorded, name):
    figure = registry.find(name)(recorded(layers=3), size=(5.0, 4.0))
    assert figure.get_size_inches().tolist() == [5.0, 4.0]


@pytest.mark.parametrize("name", PARTS)
def test_many_runs_fit(recorded, name):
    figure = registry.find(name)([recorded(layers=3) for _ in range(6)])
    figure.draw_without_rendering()
    if name not in UNLABELLED:
        texts = {t.get_text() for ax in figure.axes for t in [*ax.texts, ax.title, ax._left_title]}
        for ax in (figure, *figure.axes):
            for legend in filter(None, [*getattr(ax, "legends", []), getattr(ax, "legend_", None)]):
                texts |= {t.get_text() for t in legend.get_texts()}
        assert any("all (6)" in text for text in texts)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("option", ["steps", "layers"])
def test_a_selection_of_nothing_is_refused(recorded, name, option):
    if option not in inspect.signature(registry.find(name)).parameters:
        pytest.skip(f"no {option}")
    value, said = {"steps": ([], "steps is empty"), "layers": ("x", "matches .* no layer")}[option]
    with pytest.raises(FigureError, match=said):
        registry.find(name)(recorded(layers=3), **{option: value})
