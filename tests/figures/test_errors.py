"""Errors in per cent: fig5, generalisation_gap and parameter_efficiency."""

import importlib

import numpy as np
import pytest

import propkit
from propkit.figures.errors import depth_groups, error_curves, parameters_of
from propkit.figures.kinds import kinds_of, series_of
from propkit.figures.runs import FigureError
from propkit.schema import Group, Variable
from propkit.store.memory import MemoryWriter


def logged(label="a", depth=None, model=None, parameters=None, seed=0, settings=None, **curves):
    """A run of these training curves, row i at iteration i; NaN where nothing was logged."""
    recipe = {k: v for k, v in {"depth": depth, "model": model}.items() if v is not None}
    recipe |= settings or {}
    config = {"recipe": recipe, "seed": seed} | ({"parameters": parameters} if parameters else {})
    writer = MemoryWriter({"label": label, "config": config, "seed": seed})
    writer.define(Group("log", tuple(Variable(name) for name in curves)))
    values = {k: np.asarray(v, dtype=float) for k, v in curves.items()}
    writer.append("log", np.arange(len(next(iter(values.values())))), values)
    writer.commit()
    writer.close("complete")
    return propkit.Run.from_memory(writer)


def now_and_then(values, every, count):
    """Rows of NaN with a value at every so many."""
    rows = np.full(count, np.nan)
    rows[every - 1 :: every] = values
    return rows


def module(name):
    return importlib.import_module(f"propkit.figures.{name}")


def test_training_errors_are_means_since_the_evaluation_before():
    accuracy = np.random.default_rng(0).random(40)
    test = np.linspace(0.2, 0.8, 10)
    run = logged(accuracy=accuracy, test_accuracy=now_and_then(test, 4, 40))
    found = error_curves(run, "fig5")
    means = 100 * (1 - accuracy.reshape(10, 4).mean(1))
    assert found["step"].values.tolist() == found["evaluation"].values.tolist()
    assert found["step"].values.tolist() == list(range(3, 40, 4))
    np.testing.assert_allclose(found["train"], means)
    np.testing.assert_allclose(found["test"], 100 * (1 - test))
    np.testing.assert_allclose(found["gap"], 100 * (1 - test) - means)


def test_rare_evaluations_leave_the_training_curve_as_dense_as_it_was():
    accuracy = np.linspace(0, 1, 12)
    run = logged(train_accuracy=accuracy, val_accuracy=[*[np.nan] * 7, 0.5, *[np.nan] * 4])
    found = error_curves(run, "fig5")
    np.testing.assert_allclose(found["train"], 100 * (1 - accuracy))
    assert found["evaluation"].values.tolist() == [7]
    np.testing.assert_allclose(found["train_then"], 100 * (1 - accuracy[:8].mean()))
    long = error_curves(
        logged(accuracy=np.arange(1000) / 1000, test_accuracy=now_and_then([0.5], 1000, 1000)), "x"
    )
    assert long.sizes["step"] == 80
    assert long["step"].values[-1] == 999
    ends = np.append(-1, long["step"].values)
    rows = np.arange(ends[3] + 1, ends[4] + 1)
    np.testing.assert_allclose(long["train"][3], 100 * (1 - rows / 1000).mean())


def test_errors_that_were_logged_as_such_and_rows_of_nan():
    run = logged(error=[0.5, np.nan, 0.1], test_error=[np.nan, np.nan, 0.25])
    found = error_curves(run, "fig5")
    np.testing.assert_allclose(found["train"], [50, np.nan, 10])
    np.testing.assert_allclose(found["gap"], [25 - 30])


@pytest.mark.parametrize("name", ["fig5", "generalisation_gap", "parameter_efficiency"])
def test_what_was_not_logged_is_named_with_the_way_to_log_it(name):
    figure = getattr(propkit.figures, name)
    with pytest.raises(FigureError, match=r"no accuracy on test images; there are: loss, acc.*log"):
        figure(logged(loss=[1.0], accuracy=[0.1]))
    with pytest.raises(FigureError, match="no training accuracy"):
        figure(logged(test_accuracy=[0.1]))


def test_fig5_has_a_dashed_and_a_solid_line_per_run():
    runs = [
        logged(label, accuracy=np.linspace(0, top, 40), test_accuracy=now_and_then(0.1, 4, 40))
        for label, top in (("l2", 0.5), ("ortho", 0.9))
    ]
    (ax,) = propkit.figures.fig5(*runs).axes
    train = [line for line in ax.lines if line.get_gid() == "train"]
    test = [line for line in ax.lines if line.get_gid() == "test"]
    assert len(train) == len(test) == 2
    for dashed, solid, run in zip(train, test, runs, strict=True):
        assert dashed.get_linestyle() == "--"
        assert solid.get_linestyle() == "-"
        assert dashed.get_color() == solid.get_color()
        assert dashed.get_linewidth() < solid.get_linewidth()
        np.testing.assert_allclose(dashed.get_ydata(), error_curves(run, "")["train"])
        np.testing.assert_allclose(solid.get_ydata(), 90)
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert texts == ["l2", "ortho", "training", "test"]
    assert ax.get_ylabel() == "error (%)"


def test_depths_are_grouped_by_size():
    depths = {"a": 83, "b": 20, "c": 85, "d": 22, "e": 164, "f": None, "g": 23}
    assert depth_groups(depths) == {
        "20 to 23 layers": ["b", "d", "g"],
        "83 to 85 layers": ["a", "c"],
        "164 layers": ["e"],
        "": ["f"],
    }
    assert list(depth_groups({"a": 100, "b": 116, "c": 117})) == ["100 to 116 layers", "117 layers"]


def test_a_kind_is_a_setting_or_the_label():
    run = logged(model="plain_bottleneck", accuracy=[0.1], test_accuracy=[0.1])
    assert series_of(run, "x", "recipe.model") == "plain bottleneck"
    assert series_of(run, "x", "seed") == "0"
    assert series_of(run, "x", "recipe.nothing") == "x"


def study():
    """Two kinds of two depths, two seeds each."""
    runs = {}
    for model, gain in (("plain", 0.5), ("resnet", 0.8)):
        for depth in (20, 83):
            for seed in (0, 1):
                test = np.linspace(0.1, gain, 5) - 0.02 * seed
                accuracy = np.repeat(np.linspace(0.2, 0.9, 5), 2)
                runs[model, depth, seed] = logged(
                    f"{model}{depth}",
                    depth=depth + 2 * (model == "resnet"),
                    model=model,
                    parameters=1000 * depth,
                    seed=seed,
                    accuracy=accuracy,
                    test_accuracy=now_and_then(test, 2, 10),
                )
    return runs


def test_generalisation_gap_has_a_column_per_depth_and_means_over_seeds():
    runs = study()
    figure = propkit.figures.generalisation_gap(list(runs.values()))
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == ["20 to 22 layers", "83 to 85 layers", "", ""]
    for column, depth in enumerate((20, 83)):
        for row, gid in ((0, "test"), (1, "gap")):
            lines = [x for x in figure.axes[2 * row + column].lines if x.get_gid() == gid]
            assert len(lines) == 2
            for line, model in zip(lines, ("plain", "resnet"), strict=True):
                found = [error_curves(runs[model, depth, seed], "")[gid] for seed in (0, 1)]
                np.testing.assert_allclose(line.get_ydata(), np.mean(found, 0))
                assert line.get_xdata().tolist() == [1, 3, 5, 7, 9]
    bands = [c for c in figure.axes[0].collections if c.get_gid() == "band"]
    low, high = bands[0].get_datalim(figure.axes[0].transData).intervaly
    assert (round(low, 6), round(high, 6)) == (50.0, 92.0)
    gaps = error_curves(runs["plain", 20, 0], "")["gap"].values + 1
    text = figure.axes[2].get_legend().get_texts()[0].get_text()
    assert text == f"plain: {gaps.mean():.1f} / {gaps.max():.1f}"
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert texts == ["plain", "resnet", "training", "test"]


@pytest.mark.parametrize("kinds", [1, 3, 5])
def test_the_summary_of_the_gaps_hides_none_of_them(kinds):
    runs = [
        logged(f"n{i}", 20, f"kind {i}", accuracy=np.linspace(0, 0.5, 40), test_accuracy=test)
        for i, test in enumerate([now_and_then(0.01 * i, 4, 40) for i in range(kinds)])
    ]
    figure = propkit.figures.generalisation_gap(runs)
    figure.canvas.draw()
    _, bottom = figure.axes
    box = bottom.get_legend().get_window_extent()
    for line in (x for x in bottom.lines if x.get_gid() == "gap"):
        points = bottom.transData.transform(line.get_xydata())
        assert not any(box.contains(x, y - 3) for x, y in points)  # with half a marker


def test_runs_that_ended_early_are_averaged_where_they_are():
    pooled = module("generalisation_gap").pooled
    prepare = module("generalisation_gap").prepare
    a = logged(accuracy=[0.5, 0.5], test_accuracy=[0.4, 0.2])
    b = logged(accuracy=[0.5], test_accuracy=[np.inf])
    found = pooled([prepare(a), prepare(b)], "test")
    np.testing.assert_allclose(found["mean"], [60, 80])
    np.testing.assert_allclose(found["low"], [60, 80])
    assert np.isnan(pooled([prepare(b)], "test")["high"]).all()


def test_parameter_efficiency_draws_means_over_seeds_against_parameters():
    runs = study()
    figure = propkit.figures.parameter_efficiency(list(runs.values()))
    (ax,) = figure.axes
    assert ax.get_xscale() == "log"
    means = [line.get_xydata() for line in ax.lines if line.get_marker() in ("o", "s")]
    np.testing.assert_allclose(means[0], [[20000, 51], [83000, 51]])
    np.testing.assert_allclose(means[1], [[20000, 21], [83000, 21]])
    points = np.concatenate([c.get_offsets() for c in ax.collections if len(c.get_offsets()) == 4])
    np.testing.assert_allclose(sorted(points[:, 1]), [20, 20, 22, 22, 50, 50, 52, 52])
    depths = [t.get_text() for t in ax.texts if t.get_gid() == "depth"]
    assert depths == ["20", "83", "22", "85"]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["plain", "resnet"]


def test_the_last_or_the_best_evaluation_counts():
    prepare = module("parameter_efficiency").prepare
    runs = {"a": logged(accuracy=[0, 0, 0], test_accuracy=[0.5, 0.7, 0.6], parameters=7)}
    assert prepare(runs)["error"].values.tolist() == pytest.approx([40])
    assert prepare(runs, best=True)["error"].values.tolist() == pytest.approx([30])
    assert prepare(runs)["parameters"].values.tolist() == [7]
    lost = {"a": logged(accuracy=[0, 0], test_accuracy=[np.inf, np.inf], parameters=7)}
    assert np.isnan(prepare(lost, best=True)["error"]).all()


def test_parameters_are_those_of_the_configuration_or_of_the_summary():
    run = logged(accuracy=[0.0], test_accuracy=[0.0])
    with pytest.raises(FigureError, match=r"'a' does not say how many parameters .*config="):
        propkit.figures.parameter_efficiency(run)
    run.attributes["model_summary"] = "Net: 1,234,567 parameters; 3 Conv2d"
    assert parameters_of(run) == 1234567


def regimes(*settings, seeds=1, name="plain20", test=(0.5, 0.6)):
    """Runs of plain networks, `seeds` of each of the settings."""
    curves = {"accuracy": [0.4, 0.6], "test_accuracy": list(test), "parameters": 1000}
    return {
        f"{name}-{i}-{seed}": logged(
            f"{name}-{i}", 20, "plain", seed=seed, settings={"name": f"{name}-{i}", **s}, **curves
        )
        for i, s in enumerate(settings)
        for seed in range(seeds)
    }


L2, ORTHO = {"weight_decay": 1e-4}, {"weight_decay": 0.0, "orthonormality": 1.0}


@pytest.mark.parametrize("name", ["generalisation_gap", "parameter_efficiency"])
def test_two_regimes_are_not_taken_for_seeds_of_one_kind(name):
    runs = regimes(L2, ORTHO)
    figure = getattr(propkit.figures, name)(*runs.values(), labels=list(runs))
    legend = figure.legends[0] if figure.legends else figure.axes[0].get_legend()
    assert [t.get_text() for t in legend.get_texts()][:2] == ["plain20-0-0", "plain20-1-0"]
    merged = getattr(propkit.figures, name)(*runs.values(), by="recipe.model")
    legend = merged.legends[0] if merged.legends else merged.axes[0].get_legend()
    assert legend.get_texts()[0].get_text() == "plain"


def test_kinds_are_runs_that_differ_in_seed_and_depth_only():
    several = {str(k): run for k, run in study().items()}
    assert set(kinds_of(several).values()) == {"plain", "resnet"}
    runs = regimes(L2, ORTHO, seeds=2)
    assert set(kinds_of(runs).values()) == {"plain20-0", "plain20-1"}  # the recipes' names
    # What is recorded, and what a recipe says of itself, is no other training.
    aside = {**L2, "every": 50, "probes": ["weight"], "summary": "other"}
    assert set(kinds_of(regimes(L2, aside, seeds=2)).values()) == {"plain"}
    assert kinds_of(runs, "seed") == {"plain20-0-0": "0", "plain20-0-1": "1"} | {
        "plain20-1-0": "0",
        "plain20-1-1": "1",
    }


def test_kinds_of_one_recipe_are_named_by_the_settings_in_which_they_differ():
    named = {"name": "same"}
    runs = regimes({**L2, **named, "lr": 0.1}, {**L2, **named, "lr": 0.05}, seeds=2)
    assert set(kinds_of(runs).values()) == {"plain, lr=0.1", "plain, lr=0.05"}
    sweep = {}
    for depth in (44, 110):
        for optimizer in ("sgd", "adam"):
            settings = {
                "name": f"table2-{depth}-{optimizer}",
                "optimizer": optimizer,
                "depth": depth,
            }
            sweep |= regimes(settings, name=f"{depth}-{optimizer}")
    assert list(kinds_of(sweep).values()) == 2 * ["table2-sgd", "table2-adam"]
    many = {f"s{i}": i for i in range(5)}
    runs = regimes({**L2, **named}, {**L2, **named, **many}, seeds=2)
    assert set(kinds_of(runs).values()) == {"plain20-0-0 and 1 more", "plain20-1-0 and 1 more"}


def test_one_evaluation_is_two_points_and_the_legend_says_which_is_which():
    (run,) = regimes(L2, test=(np.nan, 0.5)).values()
    figure = propkit.figures.generalisation_gap(run)
    top = figure.axes[0]
    (train,) = [x for x in top.lines if x.get_gid() == "train"]
    (test,) = [x for x in top.lines if x.get_gid() == "test"]
    assert (train.get_marker(), train.get_markerfacecolor()) == ("o", "white")
    assert (test.get_marker(), test.get_markerfacecolor()) == ("o", test.get_color())
    _, dashed, solid = figure.legends[0].legend_handles
    for handle, line in ((dashed, train), (solid, test)):
        assert (handle.get_marker(), handle.get_linestyle()) == ("o", "None")
        hollow = line.get_markerfacecolor() == "white"
        assert (handle.get_markerfacecolor() == "white") == hollow
