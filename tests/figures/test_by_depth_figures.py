"""The figures with quantities by depth: activations, conditioning, norm_ratios, bn_spectra, isometry."""

import importlib

import numpy as np
import pytest

import propkit
from propkit.figures.runs import FigureError


def module(name):
    return importlib.import_module(f"propkit.figures.{name}")


def drawn(ax, gid="curve"):
    return [line for line in ax.lines if line.get_gid() == gid]


def texts(figure):
    return [t.get_text() for legend in figure.legends for t in legend.get_texts()]


# The run `recorded` has the value (1 + n + s) times a factor at the n-th of the steps 0, 1, 10, 100 and the s-th layer.


def test_activations_are_those_of_nonlinearities_to_the_largest(recorded):
    data = module("activations").prepare(recorded(), steps=[0, 10])
    assert data["depth"].values.tolist() == [2, 4, 6]
    np.testing.assert_allclose(data["mean_abs"], [[1, 2, 3], [2, 3, 4]])
    np.testing.assert_allclose(data["normalized"], [[1 / 3, 2 / 3, 1], [1 / 2, 3 / 4, 1]])


def test_layers_are_chosen_by_their_whole_names(recorded):
    data = module("activations").prepare(recorded(), steps=[0], layers="layer[01]")
    np.testing.assert_allclose(data["mean_abs"], [[0.5, 1.0]])
    with pytest.raises(
        FigureError, match=r"matches the whole name of no layer; there are layer0, "
    ):
        module("activations").prepare(recorded(), layers="layer")
    with pytest.raises(FigureError, match="is no regular expression"):
        module("activations").prepare(recorded(), layers="(")


def test_activations_has_a_normalised_panel_and_a_logarithmic_one(recorded):
    figure = propkit.figures.activations(recorded(), steps=[0, 10])
    top, bottom = figure.axes
    assert (top.get_yscale(), bottom.get_yscale()) == ("linear", "log")
    assert [line.get_ydata().tolist() for line in drawn(bottom)] == [[1, 2, 3], [2, 3, 4]]
    assert drawn(top)[1].get_ydata().tolist() == [0.5, 0.75, 1.0]
    assert drawn(top)[1].get_xdata().tolist() == [2, 4, 6]
    assert texts(figure) == ["iteration 0", "iteration 10"]
    assert [ax.get_xlabel() for ax in figure.axes] == ["", "layer index"]


def test_runs_have_columns_of_panels_or_lines_where_each_shows_one_iteration(recorded):
    runs = [recorded(attributes={"label": label}) for label in ("a", "b")]
    figure = propkit.figures.activations(*runs, steps=[0, 10])
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["a", "b", "", ""]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    assert texts(figure) == ["iteration 0", "iteration 10"]
    figure = propkit.figures.activations(*runs, steps=[10])
    assert len(figure.axes) == 2
    assert figure.axes[0].get_title(loc="left") == "iteration 10"
    assert texts(figure) == ["a", "b"]


def test_runs_of_other_iterations_have_a_legend_each(recorded):
    figure = propkit.figures.activations(recorded(), recorded(steps=(0, 7, 9)))
    assert [ax.get_legend() is not None for ax in figure.axes] == [True, True, False, False]
    assert not figure.legends


def test_conditioning_has_a_panel_per_measure_and_marks_infinite_numbers(recorded):
    def singular(values):
        return np.where(values == 30.0, np.inf, values)

    run = recorded(change=singular, layers=4)
    data = module("conditioning").prepare(run, steps=[0, 1])
    np.testing.assert_allclose(data["condition_number"], [[20, 40], [np.inf, 50]])
    np.testing.assert_allclose(data["effective_rank"], [[2, 4], [3, 5]])
    figure = propkit.figures.conditioning(run, steps=[0, 1])
    labels = [" ".join(ax.get_ylabel().split()) for ax in figure.axes]
    assert labels[0] == "condition number"
    assert labels[1:] == [
        "effective rank",
        "share of the top singular value",
        "mean cosine of samples",
    ]
    assert figure.axes[0].get_yscale() == "log"
    marks = [line for line in drawn(figure.axes[0], "infinite") if len(line.get_xdata())]
    assert [line.get_xdata().tolist() for line in marks] == [[2.0]]
    assert marks[0].get_color() == drawn(figure.axes[0])[1].get_color()
    assert texts(figure) == ["iteration 0", "iteration 1"]  # also where a line has no value


def test_norm_ratios_are_output_to_input_with_transitions_marked(recorded):
    run = recorded()
    data = module("norm_ratios").prepare(run, steps=[0, 100])
    assert (data["ratio"] == 2.0).all()
    assert data["depth"].values.tolist() == [1, 2, 3, 4, 5, 6]
    assert data["transition"].values.tolist() == [False, False, True, False, False, True]
    figure = propkit.figures.norm_ratios(run)
    (ax,) = figure.axes
    assert ax.get_yscale() == "log"
    assert [line.get_xdata()[0] for line in drawn(ax, "transition")] == [3, 6]
    assert "output to input" in ax.get_ylabel()
    above, below = (t for t in ax.texts if t.get_text() in ("vanishing", "exploding"))
    assert (above.get_text(), below.get_text()) == ("vanishing", "exploding")  # not as in fig3
    assert above.xyann[1] > below.xyann[1]
    chosen = module("norm_ratios").prepare(run, layers="layer[35]")
    assert chosen["depth"].values.tolist() == [4, 6]


def test_norm_ratios_over_a_window_are_geometric_means_of_what_is_finite(make_run):
    output = [[1.0, 4.0], [8.0, 0.0], [64.0, 16.0]]
    groups = {"gradient_norm": {"output": output, "input": np.ones((3, 2))}}
    run = make_run([0, 1, 2], groups, ["Block", "Block"])
    data = module("norm_ratios").prepare(run, steps=[0, 2], window=2)
    np.testing.assert_allclose(data["ratio"], [[1, 4], [np.sqrt(8 * 64), 16]])
    wide = module("norm_ratios").prepare(run, steps=[2], window=99)
    np.testing.assert_allclose(wide["ratio"], [[8, 8]])
    with pytest.raises(FigureError, match="window=0: expected"):
        module("norm_ratios").prepare(run, window=0)


def test_bn_spectra_has_a_band_from_the_smallest_to_the_largest(recorded):
    data = module("bn_spectra").prepare(recorded(layers=3), steps=[1])
    np.testing.assert_allclose(data["rho_mean"], [[2, 3, 4]])
    figure = propkit.figures.bn_spectra(recorded(layers=3), steps=[1])
    top, bottom = figure.axes
    (band,) = [c for c in top.collections if c.get_gid() == "band"]
    ends = band.get_paths()[0].vertices
    assert sorted(set(ends[ends[:, 0] == 2.0, 1])) == [1.5, 6.0]
    np.testing.assert_allclose(drawn(bottom)[0].get_ydata(), [0.2, 0.3, 0.4])


def test_isometry_has_the_root_mean_square_and_its_band(recorded):
    run = recorded(layers=3)
    data = module("isometry").prepare(run, steps=[0])
    np.testing.assert_allclose(data["rms"] ** 2, [[1, 2, 3]])
    figure = propkit.figures.isometry(run, steps=[0])
    (band,) = [c for c in figure.axes[0].collections if c.get_gid() == "band"]
    ends = band.get_paths()[0].vertices
    assert sorted(set(ends[ends[:, 0] == 2.0, 1])) == [2.0, 8.0]
    assert [line.get_gid() for line in figure.axes[0].lines if line.get_gid() == "one"]
    np.testing.assert_allclose(drawn(figure.axes[1])[0].get_ydata(), [0.5, 1.0, 1.5])


def test_the_whole_network_stands_apart_from_its_blocks(recorded):
    run = recorded(layers=3)
    network = run["jacobian_spectrum"].assign_coords(site=["a", "b", "(model)"])
    run._read = {"jacobian_spectrum": network}.__getitem__
    data = module("isometry").prepare(run, steps=[0])
    assert data["depth"].values.tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(data["spread"], [[0.5, 1.0, np.nan, 1.5]])


@pytest.mark.parametrize("size", [(3.5, 3.0), (9.0, 4.0)])
def test_the_legend_fits_the_width_of_the_figure(recorded, size):
    figure = propkit.figures.norm_ratios(recorded(), size=size)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    lowest = min(ax.get_tightbbox().y0 for ax in figure.axes)
    assert box.y1 <= lowest  # it hides nothing


FIGURES = ["activations", "conditioning", "isometry", "bn_spectra", "norm_ratios"]


@pytest.mark.parametrize("name", FIGURES)
def test_networks_of_different_depths_are_compared_on_one_axis(recorded, name):
    runs = [recorded(layers=n, attributes={"label": str(n)}) for n in (4, 12)]
    figure = getattr(propkit.figures, name)(*runs, relative_depth=True)
    for ax in figure.axes:
        lines = drawn(ax)
        assert len(lines) == 2
        for line in lines:
            x = line.get_xdata()
            assert (x[0], x[-1]) == (0.0, 1.0)
            np.testing.assert_allclose(np.diff(x), 1 / (len(x) - 1))
    assert figure.axes[-1].get_xlabel() == "relative depth"
    assert texts(figure) == ["4", "12"]
    one = getattr(propkit.figures, name)(runs[0], relative_depth=True, steps=[0, 10])
    assert texts(one) == ["iteration 0", "iteration 10"]


def test_transitions_are_marked_where_all_runs_share_them(recorded):
    def marks(*runs, **options):
        (ax,) = propkit.figures.norm_ratios(*runs, steps=[0], **options).axes
        return [line.get_xdata()[0] for line in drawn(ax, "transition")]

    assert marks(recorded()) == [3, 6]
    assert marks(recorded(), recorded()) == [3, 6]
    assert marks(recorded(), recorded(layers=12)) == []
    assert marks(recorded(), relative_depth=True) == [0.4, 1.0]


def test_the_whole_network_stands_beyond_the_last_block(recorded):
    run = recorded(layers=4)
    network = run["jacobian_spectrum"].assign_coords(site=["a", "b", "c", "(model)"])
    run._read = {"jacobian_spectrum": network}.__getitem__
    figure = propkit.figures.isometry(run, steps=[0], relative_depth=True)
    assert drawn(figure.axes[0])[0].get_xdata().tolist() == [0, 0.5, 1, 1.5, 2]
