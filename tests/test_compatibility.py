"""The report on what will be recorded: every reason on a network that has it, and the truth of what it promises."""

import io
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import propkit
from propkit.diagnosis.compatibility_report import Compatibility, SiteReport
from propkit.testing import TinyPlain, TinyResNet, mlp
from tests.conftest import Case, cross_entropy, sgd

PROBES = ["error_moment", "activation", "weight"]


def _site(report: Compatibility, name: str) -> SiteReport:
    return next(s for s in report.sites if s.site == name)


def _reason(report: Compatibility, name: str, probe: str = "error_moment") -> str:
    site = _site(report, name)
    assert site.probes[probe] != "yes"
    return site.reasons[probe]


def _hooks(model: nn.Module) -> int:
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return sum(len(getattr(m, t)) for m in model.modules() for t in tables)


def test_it_promises_what_attach_records(case: Case) -> None:
    model, x, y = case
    report = propkit.compatibility(model, x)
    assert report.problems == ()
    assert _hooks(model) == 0
    assert all(p.grad is None for p in model.parameters())
    optimizer = sgd(model)
    with propkit.attach(model) as recorder:
        cross_entropy(x, y)(model).backward()
        optimizer.step()
    for group in recorder.run:
        ds = recorder.run[group].drop_vars("update_ratio", errors="ignore").isel(step=0)
        promised = [s for s in report.sites if group in s.probes]
        sites = [site.partition("#")[0] for site in ds["site"].values.tolist()]
        assert {s.site for s in promised} == set(sites)
        for site in promised:
            here = ds.sel(site=site.site)
            complete = all(np.isfinite(here[v]) for v in here.data_vars)
            assert site.probes[group] == ("yes" if complete else "partly"), (group, site.site)
            assert site.calls == sites.count(site.site) or group == "weight"
    depths = [s.depth for s in report.sites]
    assert depths == sorted(depths)
    first = report.sites[0]
    assert "its input needs no gradient" in first.reasons["error_moment"]


def test_the_model_is_left_as_it_was() -> None:
    model = TinyPlain()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.randn(4, 3, 6, 6)
    state = torch.get_rng_state()
    propkit.compatibility(nn.Sequential(nn.Dropout(), model), x)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(RuntimeError):
        propkit.compatibility(model, torch.randn(4, 2, 6, 6))
    assert _hooks(model) == 0


class Awkward(nn.Module):
    """One module for each thing that keeps a probe from its signals."""

    def __init__(self) -> None:
        super().__init__()
        self.never = nn.Linear(6, 6)
        self.functional = nn.Linear(6, 6)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.first = nn.Linear(6, 6)
        self.aside = nn.Linear(6, 6)
        self.switched_off = nn.Linear(6, 6)
        self.mapped = nn.Linear(6, 6)
        self.twice = nn.Linear(6, 6)
        self.last = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(self.frozen(x))
        self.aside(hidden)
        with torch.no_grad():
            constant = self.switched_off(hidden)
        hidden = hidden + constant + torch.vmap(self.mapped)(hidden)
        hidden = nn.functional.linear(hidden, self.functional.weight)
        return self.last(self.twice(self.twice(hidden)))


def test_every_reason_for_a_missing_gradient() -> None:
    report = propkit.compatibility(Awkward(), torch.randn(4, 6), probes=PROBES)
    reasons = {
        "never": "never ran",
        "functional": "its weight is used without calling it",
        "frozen": "its output needs no gradient: it is frozen",
        "aside": "no gradient arrived",
        "switched_off": "gradients disabled",
        "mapped": r"torch.func transform",
        "first": "its input needs no gradient",
    }
    for name, reason in reasons.items():
        assert reason in _reason(report, name), name
    assert _site(report, "last").probes == dict.fromkeys(PROBES, "yes")
    assert _site(report, "first").probes["error_moment"] == "partly"
    problems = {p.site: p for p in report.problems}
    assert set(problems) == set(reasons) - {"first"}
    assert problems["frozen"].probes == ("error_moment",)
    assert problems["never"].probes == tuple(PROBES)
    assert _site(report, "twice").calls == 2
    assert _site(report, "twice").remarks == ("runs 2 times: a site for each call",)


class Outputs(nn.Module):
    """Modules whose outputs are no single floating-point tensor."""

    class Index(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(4, 6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x @ self.table.T).argmax(1)

    class Words(Index):
        def forward(self, x: torch.Tensor) -> list[str]:
            return ["a", "b"]

    def __init__(self) -> None:
        super().__init__()
        self.index, self.words = self.Index(), self.Words()
        self.lstm, self.embedding = nn.LSTM(6, 6, batch_first=True), nn.Embedding(4, 6)

    def forward(self, x: torch.Tensor) -> dict[str, object]:
        self.words(x)
        hidden = self.embedding(self.index(x))
        return {"words": 3, "nested": (self.lstm(hidden[:, None])[0], None)}


def test_partly_is_explained_where_it_is_shown() -> None:
    report = propkit.compatibility(mlp(), torch.randn(4, 12), probes=["error_moment", "weight"])
    assert _site(report, "0").missing == {"error_moment": ("input",)}
    assert _site(report, "2").missing == {}
    for shown in (repr(report), report._repr_html_()):
        assert "partly: 0 without error_moment.input: its input needs no gradient" in shown
    frozen = mlp().requires_grad_(False)  # nothing is partly there, so nothing is said
    assert "partly" not in repr(propkit.compatibility(frozen, torch.randn(4, 12)))


def test_outputs_that_are_no_tensor() -> None:
    report = propkit.compatibility(
        Outputs(), torch.randn(5, 6), probes=["error_moment", "activation"]
    )
    for probe in ("error_moment", "activation"):
        assert _reason(report, "index", probe) == (
            "it returned no floating-point tensor, but a tensor of int64"
        )
        assert "but list of str, str" in _reason(report, "words", probe)
    assert _site(report, "lstm").remarks == (
        "returns 3 tensors (tuple of Tensor, tuple): the first is taken",
    )
    assert _site(report, "lstm").probes["error_moment"] == "yes"
    assert "received no floating-point tensor" in _reason(report, "embedding")
    assert _site(report, "embedding").probes["error_moment"] == "partly"


class Views(nn.Module):
    class Flatten(nn.Flatten):
        pass

    def __init__(self) -> None:
        super().__init__()
        self.first, self.flatten, self.second = nn.Linear(6, 6), self.Flatten(), nn.Linear(30, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = self.flatten(self.first(x))
        flat += 1.0
        return self.second(flat)


def test_views_that_are_changed_in_place() -> None:
    @propkit.probe(sites=lambda module: isinstance(module, (nn.Linear, nn.Flatten)))
    def errors(grad_output):
        return grad_output.square().mean()

    report = propkit.compatibility(Views(), torch.randn(4, 5, 6), probes=errors)
    assert _site(report, "first").probes["errors"] == "yes"
    assert "errors are measured at its base" in _site(report, "first").remarks[0]
    assert "a view of its input and was changed in place" in _reason(report, "flatten", "errors")
    assert [p.site for p in report.problems] == ["flatten"]


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_and_parametrised_and_tied(reentrant: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
            self.body = nn.Linear(6, 6)
            self.head = nn.utils.spectral_norm(nn.Linear(6, 6))
            self.tied = nn.Linear(6, 6)
            self.tied.weight = self.body.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = checkpoint(self.body, self.stem(x), use_reentrant=reentrant)
            return self.tied(self.head(hidden))

    report = propkit.compatibility(Net(), torch.randn(4, 6), probes=PROBES)
    assert report.problems == ()
    remarks = {s.site: " | ".join(s.remarks) for s in report.sites}
    assert "checkpointed" in remarks["body"]
    assert "shares its weight with tied" in remarks["body"]
    assert "shares its weight with body" in remarks["tied"]
    for name in ("stem", "head"):
        assert "parametrised" in remarks[name]
    assert _site(report, "body").calls == 1


def test_scripted_parts_have_a_row_of_their_own() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.ReLU()))
    model = nn.Sequential(nn.Linear(6, 6), scripted, nn.Linear(6, 3))
    report = propkit.compatibility(model, torch.randn(4, 6), probes=PROBES)
    (problem,) = report.problems
    assert (problem.site, problem.probes) == ("1", tuple(PROBES))
    assert "TorchScript runs no Python hooks" in problem.reason
    assert _site(report, "1").type == "Sequential"
    assert _site(report, "2").probes["error_moment"] == "yes"


def test_compiled_models_and_parts() -> None:
    x = torch.randn(4, 12)
    (problem,) = propkit.compatibility(torch.compile(mlp(), backend="eager"), x).problems
    assert problem.site == "(model)"
    assert "attach before torch.compile" in problem.reason
    model = nn.Sequential(mlp(classes=12), nn.Linear(12, 3))
    model[0].compile(backend="eager")
    (problem,) = propkit.compatibility(model, x).problems
    assert problem.site == "0"


def test_without_a_backward_pass() -> None:
    model = mlp().requires_grad_(False)
    report = propkit.compatibility(model, torch.randn(4, 12), probes=PROBES)
    assert report.remarks == (
        "there is no backward pass: nothing that the model returns needs a gradient",
    )
    assert {p.probes for p in report.problems} == {("error_moment",)}
    assert _site(report, "0").probes["activation"] == "yes"

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise ZeroDivisionError("no luck")

    class Net(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Broken.apply(super().forward(x))

    report = propkit.compatibility(nn.Sequential(nn.Linear(6, 6), Net(6, 3)), torch.randn(4, 6))
    assert "the backward pass failed: ZeroDivisionError: no luck" in report.remarks
    assert "the backward pass failed" in _reason(report, "0")


def test_a_faulty_probe_and_a_probe_without_sites() -> None:
    @propkit.probe
    def broken(output):
        raise ZeroDivisionError("no luck")

    @propkit.probe(sites=lambda module: False)
    def nowhere(output):
        return output.mean()

    report = propkit.compatibility(mlp(), torch.randn(4, 12), probes=[broken, nowhere, "weight"])
    assert "the probe failed: ZeroDivisionError: no luck" in _reason(report, "0", "broken")
    assert any("'nowhere' has no site" in r for r in report.remarks)


def test_blocks_and_selection_are_those_of_attach() -> None:
    model = TinyResNet()
    report = propkit.compatibility(model, torch.randn(4, 3, 6, 6), include=r"blocks\.\d\.conv1")
    assert {s.site for s in report.sites if "gradient_norm" in s.probes} == {
        "blocks.0",
        "blocks.1",
        "blocks.2",
    }
    assert {s.site for s in report.sites if "weight" in s.probes} == {
        f"blocks.{i}.conv1" for i in range(3)
    }


def test_the_table_and_how_it_looks(capsys) -> None:
    from rich.console import Console

    model = Awkward()
    model.add_module("[red]<i>", nn.Linear(2, 2))
    report = propkit.compatibility(model, torch.randn(4, 6), probes=PROBES)
    table = report.table
    assert dict(table.sizes) == {"site": 10, "probe": 3}
    assert table["applies"].sel(site="last", probe="weight").item() == "yes"
    assert table["reason"].sel(site="never", probe="weight").item().startswith("it never ran")
    assert table["calls"].sel(site="twice").item() == 2
    buffer = io.StringIO()
    Console(file=buffer, width=250).print(report)
    html = report._repr_html_()
    for text in (repr(report), buffer.getvalue()):
        assert "7 of 10 sites have problems" in text
        assert "[red]<i>" in text
        assert "never, functional and 1 more" in text or "never, functional, [red]<i>" in text
        assert "runs 2 times" in text
    assert "<i>" not in html
    assert "[red]&lt;i&gt;" in html
    report.print()
    assert "sites have problems" in capsys.readouterr().out


def test_wrong_arguments_are_explained() -> None:
    with pytest.raises(TypeError, match=r"compatibility: expected a torch\.nn\.Module"):
        propkit.compatibility(3)
    with pytest.raises(ValueError, match="unknown probe"):
        propkit.compatibility(mlp(), torch.randn(2, 12), probes="nope")
