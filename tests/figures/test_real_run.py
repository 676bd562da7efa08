"""Figures of a run that was really recorded, against the network's own numbers."""

import importlib

import numpy as np
import torch
import torch.nn.functional as F

import propkit
from propkit.testing import TinyPlain


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
