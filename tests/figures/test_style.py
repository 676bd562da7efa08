"""A figure keeps its look, leaves matplotlib's settings alone, and is shown by notebooks."""

import io
import itertools
import struct
import subprocess
import sys

import matplotlib as mpl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from propkit.figures.style import (
    COLORS,
    LINES,
    MARKERS,
    line_look,
    new_figure,
    step_looks,
    styled,
    use_style,
)


@pytest.fixture
def settings():
    with mpl.rc_context():
        yield dict(mpl.rcParams)


def png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def plot():
    with styled():
        figure = new_figure((3, 2))
        ax = figure.subplots()
        ax.plot([0, 1], [0, 1])
        ax.set_ylabel("y")
    return figure


def test_settings_are_what_they_were(settings):
    png(plot())
    assert dict(mpl.rcParams) == settings


def test_settings_are_what_they_were_after_an_error(settings):
    with pytest.raises(RuntimeError), styled():
        raise RuntimeError
    assert dict(mpl.rcParams) == settings


def test_a_figure_looks_the_same_under_any_settings():
    plain = png(plot())
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "black", "xtick.labelsize": 3}):
        assert png(plot()) == plain
        buffer = io.BytesIO()
        FigureCanvasAgg(plot()).print_figure(buffer, metadata={"Software": None})  # IPython's way
        assert buffer.getvalue() == plain
        figure = plot()
    assert png(figure) == plain  # made under other settings than it is drawn


def test_the_figure_is_its_own_picture_in_a_notebook():
    data, size = new_figure((3, 2), dpi=50)._repr_png_()
    assert struct.unpack(">II", data[16:24]) == (300, 200)
    assert size == {"width": 150, "height": 100}


def test_ipython_shows_it_once():
    formatters = pytest.importorskip(
        "IPython.core.formatters", reason="it is IPython that shows it"
    )
    data, metadata = formatters.DisplayFormatter().format(new_figure((3, 2)))
    assert set(data) == {"text/plain", "image/png"}
    assert metadata["image/png"] == {"width": 300, "height": 200}


def test_no_pyplot_no_seaborn_no_backend():
    code = (
        "import sys, io, propkit.figures.fig3, propkit.figures.fig4, propkit.figures.fig2\n"
        "from propkit.figures.style import new_figure\n"
        "figure = new_figure((3, 2)); figure.subplots(); figure._repr_png_()\n"
        "for form in 'png', 'svg', 'pdf': figure.savefig(io.BytesIO(), format=form)\n"
        "import matplotlib\n"
        "assert matplotlib.rcParams._get('backend') is matplotlib.rcsetup._auto_backend_sentinel\n"
        "bad = {'torch', 'seaborn', 'matplotlib.pyplot'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_the_first_two_lines_are_blue_and_green_and_differ_in_greyscale():
    red, green, blue = to_rgb(line_look(0)["color"])
    assert blue > max(red, green)
    red, green, blue = to_rgb(line_look(1)["color"])
    assert green > max(red, blue)
    assert line_look(0)["linestyle"] != line_look(1)["linestyle"]


def test_no_look_is_used_twice_before_all_pairs_are():
    looks = {(look["color"], str(look["linestyle"])) for look in map(line_look, range(35))}
    assert len(looks) == len(COLORS) * len(LINES) == 35
    assert len(MARKERS) == len(COLORS)


def test_a_figure_keeps_its_style_after_the_block_that_made_it():
    with use_style("dark"):
        figure, expected = plot(), png(plot())
    assert png(figure) == expected
    assert expected != png(plot())


def test_later_steps_are_lighter_in_greyscale_whatever_the_style():
    for style in ("screen", "paper", "dark"):
        with use_style(style):
            grey = [
                sum(c * w for c, w in zip(look["color"], (0.299, 0.587, 0.114), strict=False))
                for look in step_looks(4)
            ]
        assert min(b - a for a, b in itertools.pairwise(grey)) > 0.1, style
