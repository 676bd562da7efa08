"""What the tests of compiled models share: the values by definition, and what is counted."""

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from propkit.notices import PropkitWarning
from propkit.testing import Signals
from tests.attached.support import mean_square, norm

HIDDEN_BY_TORCH = [  # raised inside torch, which hides them from users
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]
EXACT = {"rtol": 1e-5, "atol": 1e-9}
LABELS = torch.tensor([0, 1, 2, 0])
GROUPS = {
    ("error_moment", "output"): lambda s: mean_square(s.grad_output),
    ("error_moment", "input"): lambda s: mean_square(s.grad_input),
    ("gradient_norm", "output"): lambda s: norm(s.grad_output),
    ("gradient_norm", "input"): lambda s: norm(s.grad_input),
    ("activation", "mean"): lambda s: float(s.output.detach().double().mean()),
    ("activation", "mean_square"): lambda s: mean_square(s.output),
    ("activation", "max"): lambda s: float(s.output.detach().max()),
    ("activation", "zeros"): lambda s: float((s.output == 0).double().mean()),
    ("weight", "norm"): lambda s: norm(s.module.weight),
}


def check(run, oracle: dict[str, list[Signals]], step: int = 0, rename=None, **tolerance) -> int:
    """Compare every value of one step that `GROUPS` defines; returns how many are finite."""
    finite = 0
    for (group, variable), expected in GROUPS.items():
        if group not in run:
            continue
        ds = run[group].sel(step=step)
        for i, site in enumerate(ds["site"].values.tolist()):
            name, _, call = site.partition("#")
            signals = oracle[(rename or {}).get(name, name)][int(call or 0)]
            value = ds[variable].values[i]
            finite += bool(np.isfinite(value))
            np.testing.assert_allclose(
                value,
                expected(signals),
                err_msg=f"{group}/{variable} {site}",
                **(tolerance or EXACT),
            )
    return finite


def train_step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def what_is_said(action: Callable[[], None]) -> list[str]:
    """What propkit says while `action` runs."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    return [str(w.message) for w in caught if issubclass(w.category, PropkitWarning)]


def compile_whole(model, backend="aot_eager", **options):
    return torch.compile(model, backend=backend, fullgraph=True, **options)


def count_graphs() -> int:
    return counters["stats"]["unique_graphs"]


def count_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
