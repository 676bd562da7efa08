import dataclasses
import json
import subprocess
import sys

import pytest

from propkit import recipes
from propkit.recipes import Recipe
from propkit.registry import DEFAULT_PROBES


@pytest.mark.parametrize("depth", [8, 20, 44, 56, 110, 200])
def test_pair_differs_in_what_the_paper_compares_alone(depth):
    l2, ortho = (recipes.find(f"plain{depth}-{kind}") for kind in ("l2", "ortho"))
    differing = {
        field.name
        for field in dataclasses.fields(Recipe)
        if getattr(l2, field.name) != getattr(ortho, field.name)
    }
    assert differing == {"name", "summary", "init", "weight_decay", "orthonormality"}
    assert (l2.init, l2.weight_decay, l2.orthonormality) == ("he", 1e-4, 0.0)
    assert (ortho.init, ortho.weight_decay, ortho.orthonormality) == ("orthonormal", 0.0, 1e-4)


def test_protocol_of_the_paper():
    recipe = recipes.find("plain44-l2")
    assert (recipe.lr, recipe.momentum, recipe.batch_size) == (0.1, 0.9, 128)
    assert (recipe.milestones, recipe.gamma, recipe.steps) == ((32000, 48000), 0.1, 64000)
    assert recipe.every == 50
    assert recipe.figures == ("fig2", "fig3", "fig4")
    assert set(recipe.probes) == set(DEFAULT_PROBES)


def test_models():
    model = recipes.find("plain44-ortho").build(num_classes=10, in_channels=3)
    assert sum(p.numel() for p in model.parameters()) == 658586
    assert recipes.find("plain8-l2").build(7, 1).fc.out_features == 7


def test_listed_are_found_by_their_names():
    listed = recipes.listed()
    assert [r.name for r in listed][:2] == ["plain20-l2", "plain20-ortho"]
    assert {"plain44-l2", "plain44-ortho", "plain110-l2", "plain110-ortho"} < {
        r.name for r in listed
    }
    for recipe in listed:
        assert recipes.find(recipe.name) == recipe


@pytest.mark.parametrize(
    "name", ["plain21-l2", "plain22-l2", "plain2-l2", "plain20", "plain20-l1", "xplain20-l2", ""]
)
def test_unknown_lists_what_there_is(name):
    with pytest.raises(LookupError, match=r"no recipe .* there are plain20-l2, .*plain<6n\+2>"):
        recipes.find(name)


def test_close_matches():
    with pytest.raises(LookupError, match="did you mean plain44-ortho"):
        recipes.find("plain44-orto")


def test_config_is_json_and_complete():
    recipe = recipes.find("plain20-ortho")
    config = json.loads(json.dumps(recipe.config()))
    assert set(config) == {field.name for field in dataclasses.fields(Recipe)}
    assert config["milestones"] == [32000, 48000]


def test_override():
    recipe = recipes.find("plain20-l2").override(
        {
            "lr": "0.05",
            "milestones": "300, 450",
            "steps": "600",
            "probes": "error_moment",
            "blocks": "none",
            "decay": "all",
            "init": "orthonormal",
        }
    )
    assert (recipe.lr, recipe.milestones, recipe.steps) == (0.05, (300, 450), 600)
    assert (recipe.probes, recipe.blocks) == (("error_moment",), None)
    assert (recipe.decay, recipe.init) == ("all", "orthonormal")
    assert recipe.override({"milestones": ""}).milestones == ()
    assert recipe.override({"blocks": r"layer\d"}).blocks == r"layer\d"
    assert recipes.find("plain20-l2").override({}) == recipes.find("plain20-l2")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": "1"}, "no setting learning_rate; there are init, .* lr, .* blocks"),
        ({"name": "x"}, "no setting name"),
        ({"depth": "56"}, "no setting depth"),
        ({"lr": "fast"}, "lr takes a number, found 'fast'"),
        ({"steps": "1e3"}, "steps takes an integer, found '1e3'"),
        ({"milestones": "1,b"}, "milestones takes values separated by commas, each an integer"),
        ({"init": "xavier"}, "init takes one of he, orthonormal, .*, found 'xavier'"),
        ({"steps": "0"}, "steps must be at least 1, found 0"),
        ({"batch_size": "-1"}, "batch_size must be at least 1"),
        ({"lr": "nan"}, "lr must be finite and at least 0"),
        ({"weight_decay": "-1"}, "weight_decay must be finite and at least 0"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        recipes.find("plain20-l2").override(settings)


def test_listing_needs_no_torch():
    code = (
        "import sys; from propkit import recipes; recipes.listed(); recipes.find('plain44-l2');"
        "assert not {'torch', 'numpy', 'xarray', 'zarr', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
