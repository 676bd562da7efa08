"""The check that every architecture passes: exact values, a training that is not changed, nothing left behind."""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import (
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
)

import propkit
from propkit.sites import is_kind
from tests.zoo import oracle
from tests.zoo.oracle import Calls, Loss

RTOL = 1e-5
EXACT = {"rtol": RTOL}
STEPS = COMPARED = 3
MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass
class Result:
    """What a check found, for further assertions."""

    run: Any
    calls: list[list[Calls]] = field(default_factory=list)
    worst: float = 0.0
    compared: int = 0


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-3)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def outputs(
    recorder: propkit.Recorder, step: int = 0, group: str = "error_moment"
) -> dict[str, float]:
    """Site -> value at the output in one row."""
    ds = recorder.run[group]
    return dict(zip(ds["site"].values.tolist(), ds["output"].values[step].tolist(), strict=True))


def check(
    model: nn.Module,
    loss: Loss | Sequence[Loss],
    *,
    blocks: Iterable[str] | None,
    unobserved: Iterable[str] | None = (),
    optimizer: MakeOptimizer = adam,
    oracle_loss: Loss | Sequence[Loss] | None = None,
    rtol: float = RTOL,
    ordered: bool = True,
    **options: Any,
) -> Result:
    """Train `model` attached and a copy of it bare, three steps each, and compare all that can be compared.

    Args:
        model: The model; it is left as it is.
        loss: Loss of a step, or several, each with its own backward pass.
        blocks: Names of the blocks that must be found; None where there are none.
        unobserved: Parametric modules of which no error is recorded, because their forward never runs. None:
            those that the oracle never saw run.
        optimizer: Makes the optimiser.
        oracle_loss: The loss that the oracle differentiates, where it is not `loss`.
        rtol: Relative tolerance.
        ordered: Whether the sites must be in the order of execution.
        **options: Of `propkit.attach`.
    """
    losses = [loss] if callable(loss) else list(loss)
    expected = losses if oracle_loss is None else oracle_loss
    expected = [expected] if callable(expected) else list(expected)
    watched, bare = copy.deepcopy(model), copy.deepcopy(model)
    trainings = [_training(net, losses, optimizer) for net in (watched, bare)]
    result = Result(None)
    weights: list[dict[str, dict[str, float]]] = []
    curves: list[list[float]] = [[], []]
    with propkit.attach(watched, **options) as recorder:
        for step in range(STEPS):
            if step < COMPARED:
                weights.append(_weights(bare))
                result.calls.append([])
                for number, one in enumerate(expected):
                    torch.manual_seed(100 * step + number)
                    result.calls[-1].append(oracle.observe(bare, one))
            for train, curve in zip(trainings, curves, strict=True):
                curve.append(train(step))
    assert curves[0] == curves[1]
    for (name, a), b in zip(watched.state_dict().items(), bare.state_dict().values(), strict=True):
        assert torch.equal(a, b) or (a.isnan() == b.isnan()).all(), name
    assert hooks(watched) == hooks(bare)
    result.run = recorder.run
    assert result.run.attributes["faults"] == {}
    compare(result, weights, rtol)
    _check_blocks(result, blocks, ordered)
    if unobserved is None:
        ran = {
            n for step in result.calls for calls in step for n, entries in calls.items() if entries
        }
        unobserved = {n for n, m in model.named_modules() if is_kind(m, "parametric")} - ran
    assert without_errors(model, result.run) == set(unobserved)
    return result


def _training(
    net: nn.Module, losses: Sequence[Loss], optimizer: MakeOptimizer
) -> Callable[[int], float]:
    optim = optimizer(net)

    def step(number: int) -> float:
        optim.zero_grad()
        total = 0.0
        for i, loss in enumerate(losses):
            torch.manual_seed(100 * number + i)
            value = loss(net)
            value.backward()
            total += value.item()
        optim.step()
        return total

    return step


def _weights(model: nn.Module) -> dict[str, dict[str, float]]:
    result = {}
    for name, module in copy.deepcopy(model).named_modules():
        if is_kind(module, "parametric"):
            w = oracle.filters(module)  # read once, as by its forward: a spectral norm iterates
            result[name] = oracle.weight(w)
            if is_kind(module, "filters"):
                result[name] |= oracle.filter_correlation(w)
    return result


def compare(result: Result, weights: list[dict[str, dict[str, float]]], rtol: float = RTOL) -> None:
    """Every value of the compared steps with its definition."""
    run = result.run
    faults: list[str] = []
    for group in run.groups:
        ds = run[group]
        assert ds["step"].values.tolist()[:COMPARED] == list(range(COMPARED)), group
        for step in range(COMPARED):
            seen = 0
            for i, site in enumerate(ds["site"].values.tolist()):
                name, _, number = site.partition("#")
                scale = 0.0
                ran = any(c[name] for c in result.calls[step])
                if group in ("weight", "filter_correlation") and ran:
                    want = weights[step][name]
                    want = {v: want[v] for v in ds.data_vars if v in want}
                elif not ran:  # nothing of it is measured in this step, its weight neither
                    want = dict.fromkeys(ds.data_vars, math.nan)
                else:
                    passes = [c[name] for c in result.calls[step]]
                    calls = [c[int(number or 0)] for c in passes if len(c) > int(number or 0)]
                    want = (
                        getattr(oracle, group)(calls)
                        if calls
                        else dict.fromkeys(ds.data_vars, math.nan)
                    )
                    # A mean of numbers of both signs is as exact as the numbers are.
                    scale = want["mean_square"] ** 0.5 if group == "activation" else 0.0
                for variable, value in want.items():
                    if variable not in ds:
                        assert math.isnan(value), f"{group}/{variable} {site} is missing: {value}"
                        continue
                    got = float(ds[variable].values[step, i])
                    seen += not math.isnan(got)
                    error = _error(got, value, scale if variable == "mean" else 0.0)
                    result.compared += 1
                    result.worst = max(result.worst, error)
                    if error > rtol:
                        faults.append(
                            f"{group}/{variable} of {site} at step {step}: {got}, not {value}"
                        )
            assert seen, f"nothing recorded by {group} at step {step}"
    assert not faults, f"{len(faults)} of {result.compared} wrong:\n" + "\n".join(faults[:20])


def _error(got: float, want: float, scale: float) -> float:
    if math.isnan(want) or math.isnan(got):
        return 0.0 if math.isnan(want) and math.isnan(got) else math.inf
    if got == want:
        return 0.0
    return abs(got - want) / max(abs(want), scale, 1e-30)


def _check_blocks(result: Result, blocks: Iterable[str] | None, ordered: bool) -> None:
    found = result.run["gradient_norm"]["site"].values.tolist()
    if blocks is None:
        assert set(found) <= set(result.run["error_moment"]["site"].values.tolist())
    else:
        found = [f for f in found if "#" not in f]
        assert (found if ordered else sorted(found)) == list(blocks)


def without_errors(model: nn.Module, run: Any) -> set[str]:
    """Parametric modules of which no error is recorded."""
    recorded = {s.partition("#")[0] for s in run["error_moment"]["site"].values.tolist()}
    return {n for n, m in model.named_modules() if is_kind(m, "parametric")} - recorded


def unexplained(model: nn.Module, run: Any) -> set[str]:
    """Those of them that the notes do not name."""
    return {
        name
        for name in without_errors(model, run)
        if not any(name in note for note in run.attributes["notes"])
    }


def hooks(model: nn.Module) -> int:
    """Number of hooks on the model, its parameters and all optimisers."""
    dicts = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_state_dict_hooks",
    )
    on_modules = sum(len(getattr(m, d)) for m in model.modules() for d in dicts)
    on_tensors = sum(len(t._backward_hooks or ()) for t in [*model.parameters(), *model.buffers()])
    everywhere = len(_global_optimizer_post_hooks) + len(_global_optimizer_pre_hooks)
    return on_modules + on_tensors + everywhere
