"""The one-shot diagnosis: values against brute force, verdicts on networks whose fate is known, no trace left."""

import copy
import io
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import propkit
from propkit.diagnosis.diagnosis import Diagnosis
from propkit.diagnosis.verdict import Thresholds
from propkit.testing import brute_force, mlp
from tests.conftest import Case, cross_entropy, make_case, sgd

EXACT = {"rtol": 1e-5, "atol": 1e-30}


def _moment(t: torch.Tensor) -> float:
    return float((t.detach().double() ** 2).mean())


def _column(diagnosis: Diagnosis, group: str, variable: str) -> dict[str, float]:
    values = diagnosis[group][variable].isel(step=0)
    return dict(zip(values["site"].values.tolist(), values.values.tolist(), strict=True))


def _row(diagnosis: Diagnosis, name: str) -> dict[str, float]:
    values = diagnosis.table[name]
    return dict(zip(values["site"].values.tolist(), values.values.tolist(), strict=True))


# -- values -----------------------------------------------------------------------------------------------------


def test_every_value_equals_brute_force(case: Case) -> None:
    model, x, y = case
    oracle = brute_force(model, cross_entropy(x, y))
    found = propkit.measure(model, x, y, loss=F.cross_entropy)
    for site, value in _column(found, "error_moment", "output").items():
        np.testing.assert_allclose(value, _moment(oracle[site][0].grad_output), **EXACT)
    for site, value in _column(found, "gradient_norm", "input").items():
        grad = oracle[site.partition("#")[0]][0].grad_input
        expected = math.nan if grad is None else float(grad.double().norm())
        np.testing.assert_allclose(value, expected, **EXACT)
    for site, value in _column(found, "activation", "mean_square").items():
        name, _, call = site.partition("#")
        np.testing.assert_allclose(value, _moment(oracle[name][int(call or 0)].output), **EXACT)
    for site, value in _column(found, "representation", "condition_number").items():
        name, _, call = site.partition("#")
        output = oracle[name][int(call or 0)].output.detach().double().flatten(1).numpy()
        sigma = np.linalg.svd(output, compute_uv=False)
        full = np.linalg.matrix_rank(output) == len(sigma)
        np.testing.assert_allclose(value, sigma[0] / sigma[-1] if full else np.inf, rtol=1e-6)
    expected = F.cross_entropy(copy.deepcopy(model)(x), y).item()
    assert found.loss == pytest.approx(expected, rel=1e-6)
    assert found.run.attributes["training"] is True


def test_the_datasets_are_those_of_an_attached_run(case: Case) -> None:
    model, x, y = case
    found = propkit.measure(model, x, y, loss=F.cross_entropy)
    optimizer = sgd(model)
    with propkit.attach(model) as recorder:
        cross_entropy(x, y)(model).backward()
        optimizer.step()
    run = recorder.run
    assert set(found.run.groups) == {*run.groups, "representation"}
    assert found.run.state == "complete"
    for group in run.groups:
        attached = run[group].drop_vars("update_ratio", errors="ignore")  # no step was made
        assert attached.drop_attrs().equals(found[group].drop_attrs()), group


def test_the_table_derives_its_ratios_from_the_datasets() -> None:
    model, x, y = make_case("plain")
    found = propkit.measure(model, x, y, loss=F.cross_entropy)
    q = _column(found, "error_moment", "output")
    convs = [s for s in q if s != "head"]
    ratios, steps = _row(found, "error_ratio"), _row(found, "consecutive_ratio")
    for here, above in itertools.pairwise(convs):
        assert steps[here] == pytest.approx(q[here] / q[above])
    for conv in convs:  # the head comes after pooling: another kind of output
        assert ratios[conv] == pytest.approx(q[conv] / q[convs[-1]])
    assert ratios["head"] == 1
    from propkit.derived import error_ratio

    fig4 = error_ratio(found["error_moment"]).isel(step=0)
    np.testing.assert_allclose(fig4.values, [ratios[s] for s in fig4["site"].values])
    assert np.isnan(ratios["features.2"])  # a ReLU
    depth = found.table["depth"].values
    assert (np.diff(depth) >= 0).all()


def test_blocks_have_the_ratio_of_their_ends() -> None:
    model, x, y = make_case("residual")
    oracle = brute_force(model, cross_entropy(x, y))
    found = propkit.measure(model, x, y, loss=F.cross_entropy)
    ratios = _row(found, "gradient_norm_ratio")
    for name in ("blocks.0", "blocks.1", "blocks.2"):
        s = oracle[name][0]
        assert ratios[name] == pytest.approx(
            float(s.grad_output.norm() / s.grad_input.norm()), rel=1e-5
        )
        assert _row(found, "verdict")[name] == ""  # its layers are judged, it is not


def _scripted(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(module)


# -- how it is called -------------------------------------------------------------------------------------------


def test_losses_of_one_and_of_two_arguments() -> None:
    model, x, y = make_case("mlp")
    expected = F.cross_entropy(model(x), y).item()
    losses = [
        F.cross_entropy,
        nn.CrossEntropyLoss(),
        lambda output, target, scale=1.0: F.cross_entropy(output, target) * scale,
        lambda *both: F.cross_entropy(*both),
    ]
    for loss in losses:
        assert propkit.measure(model, x, y, loss=loss).loss == pytest.approx(expected)
    for single in (lambda output: F.cross_entropy(output, y), lambda o, t=y: F.cross_entropy(o, t)):
        assert propkit.measure(model, x, loss=single).loss == pytest.approx(expected)


def test_without_a_loss_the_forward_pass_alone_is_measured() -> None:
    model, x, _ = make_case("plain")
    found = propkit.measure(model, x)
    assert found.loss is None
    assert set(found.run.groups) == {
        "activation",
        "filter_correlation",
        "weight",
        "representation",
    }
    assert "no loss was given" in found.run.attributes["notes"][-1]
    assert found.table["error_moment"].isnull().all()
    assert "forward only" in repr(found)
    with pytest.raises(KeyError, match="no group 'error_moment'"):
        found["error_moment"]


class Labelled(nn.Module):
    """Like a transformers model: takes keywords, returns an object with its loss."""

    def __init__(self, mapping: bool) -> None:
        super().__init__()
        self.net, self.mapping = mlp(), mapping

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor | None = None):
        logits = self.net(inputs)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        if self.mapping:
            return {"loss": loss, "logits": logits}
        return type("Output", (), {"loss": loss, "logits": logits})()


@pytest.mark.parametrize("mapping", [True, False])
def test_an_output_that_brings_its_loss(mapping: bool) -> None:
    model, (_, x, y) = Labelled(mapping), make_case("mlp")
    oracle = brute_force(model.net, cross_entropy(x, y))
    found = propkit.measure(model, inputs=x, labels=y)
    for site, value in _column(found, "error_moment", "output").items():
        expected = _moment(oracle[site.removeprefix("net.")][0].grad_output)
        np.testing.assert_allclose(value, expected, **EXACT)
    assert propkit.measure(model, inputs=x).loss is None


def test_inside_no_grad_and_inference_mode() -> None:
    model, x, y = make_case("plain")
    expected = propkit.measure(model, x, y, loss=F.cross_entropy)["error_moment"]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = propkit.measure(model, x.clone(), y, loss=F.cross_entropy)["error_moment"]
        assert expected.equals(found)


def test_evaluation_mode_is_measured_as_it_is() -> None:
    model, x, y = make_case("plain")
    for _ in range(3):
        model(x)
    oracle = brute_force(model.eval(), cross_entropy(x, y))
    found = propkit.measure(model, x, y, loss=F.cross_entropy)
    for site, value in _column(found, "error_moment", "output").items():
        np.testing.assert_allclose(value, _moment(oracle[site][0].grad_output), **EXACT)
    assert "evaluation mode" in repr(found)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_model_is_measured_uncompiled(in_place: bool) -> None:
    model, x, y = make_case("mlp")
    expected = propkit.measure(model, x, y, loss=F.cross_entropy)["error_moment"]
    twin = copy.deepcopy(model)
    if in_place:
        twin.compile(backend="eager")
    else:
        twin = torch.compile(twin, backend="eager")
    twin(x)
    assert propkit.measure(twin, x, y, loss=F.cross_entropy)["error_moment"].equals(expected)
    inner = nn.Sequential(copy.deepcopy(model[:3]), copy.deepcopy(model[3:]))
    inner[0] = torch.compile(inner[0], backend="eager")
    inner(x)
    found = propkit.measure(inner, x, y, loss=F.cross_entropy)["error_moment"]
    np.testing.assert_array_equal(found["output"].values, expected["output"].values)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_models(reentrant: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body, self.head = nn.Linear(12, 12), mlp(classes=12), nn.Linear(12, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(checkpoint(self.body, self.stem(x), use_reentrant=reentrant))

    model, (_, x, y) = Net(), make_case("mlp")
    plain = nn.Sequential(model.stem, *model.body, model.head)
    oracle = brute_force(plain, cross_entropy(x, y))
    found = propkit.measure(model, x, y, loss=F.cross_entropy)
    expected = [_moment(s[0].grad_output) for n, s in oracle.items() if n and "." not in n]
    values = list(_column(found, "error_moment", "output").values())
    linear = [e for e, m in zip(expected, plain, strict=True) if isinstance(m, nn.Linear)]
    np.testing.assert_allclose(values, linear, **EXACT)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda m, x: propkit.measure([m], x),
            TypeError,
            r"expected a torch\.nn\.Module, found list",
        ),
        (lambda m, x: propkit.measure(m, x, loss=3), TypeError, "loss: expected a function"),
        (
            lambda m, x: propkit.measure(m, x, loss=F.mse_loss),
            ValueError,
            "the last input is the target",
        ),
        (lambda m, x: propkit.measure(m, x, loss=lambda o: o), TypeError, r"found shape \(8, 3\)"),
        (lambda m, x: propkit.measure(m, x, loss=lambda o: 3), TypeError, "one element, found 3"),
        (lambda m, x: propkit.measure(m, x, probes="nope"), ValueError, "unknown probe 'nope'"),
        (lambda m, x: propkit.measure(m, x, include="nope"), ValueError, "matches no module"),
        (lambda m, x: propkit.measure(nn.LazyLinear(3), x), ValueError, "run the model once"),
        (lambda m, x: propkit.measure(_scripted(m), x), ValueError, "TorchScript"),
        (lambda m, x: Thresholds(vanishing=2), ValueError, "0 <= vanishing < 1 < exploding"),
    ],
)
def test_wrong_arguments_are_explained(call, kind, message) -> None:
    model, x, _ = make_case("mlp")
    with pytest.raises(kind, match=message):
        call(model, x)
    assert _hooks(model) == 0


def _hooks(model: nn.Module) -> int:
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    on_modules = sum(len(getattr(m, t)) for m in model.modules() for t in tables)
    return on_modules + sum(len(p._backward_hooks or {}) for p in model.parameters())


def _deep(depth: int, width: int, activation: type[nn.Module], gain: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.normal_(linear.weight, std=gain / width**0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear, activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


# -- how it looks -----------------------------------------------------------------------------------------------


def test_it_shows_itself_as_text_rich_and_html() -> None:
    from rich.console import Console

    model = _deep(3, 64, nn.ReLU, 2**0.5)
    model.register_module("<b>[red]x", nn.Linear(10, 10))
    nn.init.constant_(model[2].bias, -10.0)
    x, y = torch.randn(32, 64), torch.arange(32) % 10
    found = propkit.measure(model, x, y, loss=F.cross_entropy)
    buffer = io.StringIO()
    Console(file=buffer, width=200).print(found)
    html = found._repr_html_()
    for text in (repr(found), buffer.getvalue()):
        assert "<b>[red]x" in text
        for word in ("depth", "site", "cosine", "dead", "vanishing", "training mode"):
            assert word in text, word
        assert len(text.splitlines()) >= 2 + 8
    assert "<b>[red]x" not in html
    assert "&lt;b&gt;[red]x" in html
    assert html.count("<tr>") == 1 + found.table.sizes["site"]
    long = propkit.measure(_deep(40, 16, nn.Tanh, 1.0), torch.randn(16, 16))
    assert "more rows" in repr(long)
    assert len(repr(long).splitlines()) < 30
    assert long._repr_html_().count("<tr>") == 82


def test_printing_goes_to_the_terminal(capsys) -> None:
    propkit.measure(mlp(), torch.randn(8, 12)).print()
    assert "healthy" in capsys.readouterr().out
