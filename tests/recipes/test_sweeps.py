"""The sweeps' recipes: each of them exists, builds and says what the papers say."""

import json

import pytest
import torch
from torch import nn

from propkit import recipes
from propkit.registry import find_probes
from propkit.training import initialize, make_optimizer

SWEEPS = {sweep.name: sweep for sweep in recipes.sweeps()}


def test_names():
    assert set(SWEEPS) == {
        "fig2", "fig3", "fig4", "table2", "procrustes-grid", "norm-ratios", "generalisation-gap",
        "plainnet-ablation", "modulation",
    }  # fmt: skip
    assert recipes.find_sweep("table2") is SWEEPS["table2"]
    assert recipes.find_sweep("plain20-l2") is None
    with pytest.raises(LookupError, match="did you mean table2"):
        recipes.find("tabel2")


@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.parametrize("scale", ["paper", "demo"])
def test_every_job_is_a_recipe_that_can_be_built(name, scale):
    jobs = getattr(SWEEPS[name], scale)
    assert len({job.recipe for job in jobs}) == len(jobs) > 1
    for number, job in enumerate(jobs):
        recipe = recipes.find(job.recipe).override(job.settings)
        assert recipe.name == job.recipe
        json.dumps(recipe.config())
        find_probes(recipe.probes)
        if number % 7 and len(jobs) > 9:  # to build all takes long
            continue
        with torch.device("meta"):
            model = recipe.build(10, 3, 3 * 32 * 32)
            assert model(torch.empty(2, 3, 32, 32)).shape == (2, 10)
        make_optimizer(recipe.optimizer, model, recipe.lr)


def test_table2():
    assert len(SWEEPS["table2"].paper) == 14
    ours = recipes.find("plain110-ortho-modulated")
    assert (ours.modulation, ours.modulation_steps, ours.orthonormality) == ("decade", 2000, 1e-4)
    assert (ours.weight_decay, ours.init, ours.depth) == (0.0, "orthonormal", 110)
    assert recipes.find("table2-44-ours").config() == ours.config() | {
        "name": "table2-44-ours",
        "depth": 44,
        "summary": "plain 44-layer network, orthonormality and modulation",
    }
    nesterov = recipes.find("table2-44-nesterov")
    assert (nesterov.optimizer, nesterov.lr, nesterov.init) == ("nesterov", 0.1, "he")
    assert (nesterov.weight_decay, nesterov.modulation) == (1e-4, "never")


def test_procrustes_grid():
    sweep = SWEEPS["procrustes-grid"]
    assert (len(sweep.paper), sweep.seeds) == (7 * 7 * 2, 10)
    bare, projected = (recipes.find(f"procrustes-grid-8x16{how}") for how in ("", "-projected"))
    assert (bare.projection, projected.projection) == (None, r"layer2\.conv")
    assert projected.projection_relu
    assert (projected.projection_every, projected.options) == (2, {"c": 8, "d": 16})
    model = projected.build(10, 3)
    assert model.layer2.conv.weight.shape == (16, 8, 3, 3)


def test_procresnet():
    names = [job.recipe for job in SWEEPS["norm-ratios"].paper]
    assert names[:3] == ["norm-ratios-plain20", "norm-ratios-resnet20", "norm-ratios-procresnet22"]
    assert names[-1] == "norm-ratios-procresnet166"
    gap = recipes.find("generalisation-gap-procresnet166")
    assert sum(p.numel() for p in gap.build(10, 3).parameters()) == 1715018
    assert (gap.steps, gap.milestones) == (117000, (58500, 87750))
    assert recipes.find("norm-ratios-resnet164").milestones == ()


def test_plainnet():
    assert [job.recipe for job in SWEEPS["plainnet-ablation"].demo] == [
        "plainnet-bn", "plainnet-lrelu", "plainnet-maxnorm", "plainnet-bn-lrelu", "plainnet-bn-maxnorm",
        "plainnet-lrelu-maxnorm", "plainnet-bn-lrelu-maxnorm",
    ]  # fmt: skip
    recipe = recipes.find("plainnet-bn-lrelu-maxnorm")
    model = recipe.build(10, 1, 64)
    assert model.layers[0].linear.in_features == 64
    assert len(model.layers) == 99
    assert (model.layers[0].activation.negative_slope, recipe.max_norm) == (0.7, 2.0)
    assert not hasattr(recipes.find("plainnet-maxnorm").build(10, 1, 64).layers[0], "bn")
    sweep = SWEEPS["plainnet-ablation"]
    assert (sweep.demo_seeds, sweep.seeds) == (3, 1)
    limits = {j.recipe: recipes.find(j.recipe).override(j.settings).max_norm for j in sweep.demo}
    assert {name for name, c in limits.items() if c} == {n for n in limits if "maxnorm" in n}
    assert {c for c in limits.values() if c} == {1.4}
    assert all(not job.settings for job in sweep.paper)


def test_the_demo_s_limit_of_the_norm_binds_from_the_start():
    """He's uniform weights have units whose squared norms have the mean 2."""
    job = SWEEPS["plainnet-ablation"].demo[-1]
    recipe = recipes.find(job.recipe).override(job.settings)
    model = initialize(recipe.build(10, 1, 64), recipe.init, torch.Generator().manual_seed(0))
    units = [m.weight.detach().norm(dim=1) for m in model.modules() if isinstance(m, nn.Linear)]
    beyond = (torch.cat(units) > recipe.max_norm).float().mean()
    assert 0.4 < beyond < 0.7
    assert (torch.cat(units) < recipes.find(job.recipe).max_norm).all()


@pytest.mark.parametrize(
    "name",
    ["table2-45-sgd", "table2-44-lion", "procrustes-grid-0x4", "norm-ratios-resnet22", "plainnet-",
     "norm-ratios-procresnet20", "plain111-ortho-modulated", "plainnet-lrelu-bn"],
)  # fmt: skip
def test_unknown(name):
    with pytest.raises(LookupError, match=f"no recipe '{name}'"):
        recipes.find(name)
