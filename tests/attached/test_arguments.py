"""Wrong arguments and attachments that fail: refused, and nothing is left behind."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import propkit
from propkit.recording import lifetime
from propkit.testing import TinyPlain, mlp
from tests.attached.support import count_hooks, train_mlp
from tests.conftest import cross_entropy, make_case


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"include": "con"}, ValueError, r"include='con' matches no module.*features, features.0"),
        ({"exclude": "["}, ValueError, "not a regular expression"),
        ({"blocks": "layer9"}, ValueError, "blocks='layer9' matches no module"),
        ({"blocks": ["layer9"]}, ValueError, "blocks names 'layer9', which is no module"),
        (
            {"probes": ["error_momnt"]},
            ValueError,
            "Did you mean 'error_moment'.*There are: activation",
        ),
        ({"probes": [3]}, TypeError, "expected a probe's name"),
        ({"probes": ["weight", "weight"]}, ValueError, "given twice"),
        ({"probes": []}, ValueError, "nothing to observe"),
        ({"every": 0}, ValueError, "every=0"),
        ({"every": "2"}, ValueError, "every='2'"),
        ({"optimizer": "sgd"}, TypeError, "expected a torch.optim.Optimizer"),
        ({"config": {"a": object()}}, TypeError, r"config\['a'\] cannot be written as JSON"),
        ({"config": [1]}, TypeError, r"config: expected a dict of settings, found list \[1\]; "),
        ({"config": dict}, TypeError, "config: expected a dict.*found the class dict, not an"),
        ({"scaler": 3}, TypeError, r"scaler: expected.*GradScaler, found int 3; leave it out"),
        ({"scaler": torch.amp.GradScaler}, TypeError, "scaler: .*found the class GradScaler, not"),
        ({"scaler": {}}, TypeError, "scaler: expected.*GradScaler, found dict"),
        ({"probes": 123}, TypeError, "probes: expected names of probes.*found int 123"),
        ({"probes": len}, TypeError, "probes: expected names.*decorated with @propkit.probe"),
        ({"include": 1}, TypeError, "include: expected a regular expression.*found int 1"),
        ({"include": ["0"]}, TypeError, r"include: .*found list \['0'\]; .*'first\|second'"),
        ({"exclude": b"x"}, TypeError, "exclude: expected a regular expression.*found bytes"),
        ({"blocks": 5}, TypeError, "blocks: expected a regular expression.*found int 5"),
        ({"blocks": [5]}, TypeError, r"blocks: expected a regular expression.*found list \[5\]"),
        ({"budget": 5}, ValueError, "budget=5: expected the share"),
        ({"every": {"weight": 0}}, ValueError, r"every\['weight'\]=0: expected a number of steps"),
        ({"every": {"weight": 2, 3: 4}}, ValueError, "every names 3, which is not recorded"),
        ({"every": lambda: True}, ValueError, r"every: .*<lambda>, which raises TypeError.*0 pos"),
        ({"every": lambda s: 1 / s}, ValueError, "every: expected a function step -> bool.*raises"),
        ({"every": lambda s: torch.ones(2)}, ValueError, "every: .*raises RuntimeError at step 0"),
        ({"every": propkit.log_spaced}, ValueError, "every: .*log_spaced, which raises ValueError"),
        ({"every": lambda _: propkit.log_spaced()}, ValueError, "gives _LogSpaced log_spaced"),
        ({"every": {"weight": lambda s: "no"}}, ValueError, r"every\['weight'\]: .*gives str 'no'"),
    ],
)
def test_wrong_arguments_are_refused_and_leave_nothing_behind(
    arguments, kind, message, tmp_path
) -> None:
    model, path = TinyPlain(), tmp_path / "run.zarr"
    before = _left()
    with pytest.raises(kind, match=message):
        propkit.attach(model, path, **arguments)
    assert count_hooks(model) == 0
    assert list(tmp_path.iterdir()) == []
    propkit.attach(model, path, label="mine").detach()
    with pytest.raises(kind, match=message):
        propkit.attach(model, path, overwrite=True, **arguments)
    assert propkit.open(path).label == "mine"
    assert _left() == before


def _left() -> tuple[object, ...]:
    """What an attachment has beside the hooks on modules."""
    from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

    hooks = [*_global_optimizer_pre_hooks, *_global_optimizer_post_hooks]
    threads = [t.name for t in threading.enumerate() if t.name == "propkit-writer"]
    return hooks, threads, len(lifetime._running)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda s: np.bool_(s != 1),
        lambda s: torch.tensor(s != 1),
        lambda s: (s != 1) or None,
        lambda s: int(s != 1),
    ],
)
def test_whatever_is_true_or_false_may_be_what_a_schedule_gives(schedule) -> None:
    recorder = train_mlp(mlp(), _mlp_loss, steps=3, probes="weight", every=schedule)
    assert recorder.run["weight"]["step"].values.tolist() == [0, 2]


def _mlp_loss(model: nn.Module) -> torch.Tensor:
    _, x, y = make_case("mlp")
    return cross_entropy(x, y)(model)


@pytest.mark.parametrize(
    "where", ["taps.Taps.__init__", "taps.Taps.install", "steps.OptimizerSteps.__init__"]
)
@pytest.mark.parametrize("place", ["memory", "directory", "url"])
def test_an_attachment_that_fails_leaves_nothing_behind(
    where, place, tmp_path, monkeypatch
) -> None:
    url = f"memory://{tmp_path.name}-{where}.zarr"
    store = {"memory": None, "directory": tmp_path / "run.zarr", "url": url}[place]
    model, scaler = mlp(), torch.amp.GradScaler("cpu")
    before = _left()

    def fails(*_, **__):
        raise RuntimeError("cannot")

    with monkeypatch.context() as patch:
        patch.setattr(f"propkit.hooks.{where}", fails)
        with pytest.raises(RuntimeError, match="cannot"):
            propkit.attach(model, store, scaler=scaler)
    assert count_hooks(model) == 0
    assert _left() == before
    assert "update" not in vars(scaler)
    assert list(tmp_path.iterdir()) == []
    recorder = train_mlp(model, _mlp_loss, 2, store=store, scaler=scaler)
    assert recorder.run["weight"].sizes["step"] == 2
    if store is None:
        return
    with monkeypatch.context() as patch:
        patch.setattr(f"propkit.hooks.{where}", fails)
        with pytest.raises(RuntimeError, match="cannot"):
            propkit.attach(model, store, resume=True)
    assert _left() == before
    assert propkit.open(store).state == "failed"
    assert propkit.open(store)["weight"].sizes["step"] == 2
    train_mlp(model, _mlp_loss, 2, store=store, resume=True)
    assert propkit.open(store)["weight"]["step"].values.tolist() == [0, 1, 2, 3]


def test_no_module_compiled_and_existing_stores_are_refused(tmp_path) -> None:
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, found list"):
        propkit.attach([TinyPlain()])
    with pytest.raises(ValueError, match="compiled already"):
        propkit.attach(torch.compile(TinyPlain(), backend="eager"))
    path = tmp_path / "run.zarr"
    model = mlp()
    propkit.attach(model, path, label="first").detach()
    with pytest.raises(FileExistsError, match=r"run\.zarr"):
        propkit.attach(model, path)
    assert propkit.open(path).label == "first"
    assert count_hooks(model) == 0
    propkit.attach(model, path, label="second", overwrite=True).detach()
    assert propkit.open(path).label == "second"


def test_a_url_of_this_machine_is_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    with propkit.attach(mlp(), f"file://{tmp_path}/a%20folder/run.zarr", probes="weight"):
        pass
    assert propkit.open(folder / "run.zarr").state == "complete"
