"""Figures of a run that was really recorded, against the network's own numbers."""

import importlib

import numpy as np
import torch
import torch.nn.functional as F

import propkit
from propkit.figures.overview import PARTS
from propkit.testing import TinyPlain, TinyResNet


def test_all_figures_of_a_recorded_run(tmp_path):
    model = TinyPlain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(8, 3, 7, 5), torch.arange(8) % 3
    with propkit.attach(model, tmp_path / "run.zarr") as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    run = propkit.open(tmp_path / "run.zarr")
    memory = recorder.run
    for name in ("fig2", "fig3", "fig4"):
        figure = getattr(propkit.figures, name)(run, memory)
        figure.savefig(tmp_path / f"{name}.png")
    convolutions = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)]
    q = run["error_moment"]["output"].sel(site=convolutions).values
    ratio = importlib.import_module("propkit.figures.fig3").prepare(run)["ratio"]
    np.testing.assert_array_equal(ratio, q[:, 0] / q[:, -1])
    corrected = importlib.import_module("propkit.figures.fig3").prepare(run, corrected=True)
    assert np.isfinite(corrected["ratio"]).all()


PROBES = [
    *("error_moment", "gradient_norm", "activation", "filter_correlation", "weight"),
    *("representation", "bn_jacobian", "singular_values", "jacobian_spectrum"),
    *("filters", "activation_maps"),
]


def test_every_figure_finds_what_the_probes_really_record(tmp_path):
    model = TinyResNet(depth=2, channels=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(8, 3, 5, 5), torch.arange(8) % 3
    with propkit.attach(model, tmp_path / "run.zarr", probes=PROBES) as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            recorder.log(loss=loss)
            optimizer.step()
    for run in (propkit.open(tmp_path / "run.zarr"), recorder.run):
        parts, missing = importlib.import_module("propkit.figures.overview").prepare(run)
        assert missing == {}
        assert list(parts) == list(PARTS)
    figure = propkit.figures.overview(run, steps=[0])
    figure.draw_without_rendering()
    # Numbers beside those of the run itself.
    ratios = parts["norm_ratios"]["ratio"].sel(step=1).values
    norms = run["gradient_norm"].sel(step=1)
    np.testing.assert_allclose(ratios, norms["output"] / norms["input"])
    rho = run.spectrum("blocks.0.bn1", step=0, group="bn_jacobian", variable="rho").values
    bn = importlib.import_module("propkit.figures.bn_spectra").prepare(run, steps=[0])
    np.testing.assert_allclose(bn["rho_mean"][0, 0], np.abs(rho).mean())
    np.testing.assert_allclose(bn["rho_max"][0, 0], np.abs(rho).max())
