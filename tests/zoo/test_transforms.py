"""Function transforms, exports, scripted and lazy parts."""

import io
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import propkit
from propkit.testing import TinyPlain, mlp
from tests.zoo import oracle, sequences
from tests.zoo.batches import LABELS, classify, ids, images, normal
from tests.zoo.harness import EXACT, outputs, sgd


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # raised inside jvp
def test_torch_func_on_an_attached_model() -> None:
    model, x = mlp(), normal(4, 12)
    parameters = dict(model.named_parameters())

    def loss(p, x, y):
        return F.cross_entropy(torch.func.functional_call(model, p, (x[None],)), y[None])

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    bare = per_sample(parameters, x, LABELS)
    optimizer = sgd(model)
    with propkit.attach(model, probes=["error_moment", "activation"]) as recorder:
        watched = per_sample(parameters, x, LABELS)
        torch.func.jvp(model, (x,), (torch.ones_like(x),))
        torch.func.vmap(model)(x)
        torch.func.hessian(lambda z: model(z).square().sum())(x[0])
        with torch.autograd.forward_ad.dual_level():
            model(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
        optimizer.step()
        want = oracle.observe(model, classify(x))
        classify(x)(model).backward()
        optimizer.step()
    for name in bare:
        assert torch.equal(bare[name], watched[name])
    for name, value in outputs(recorder, -1).items():
        np.testing.assert_allclose(value, oracle.error_moment(want[name])["output"], **EXACT)


def test_export_of_an_attached_model_gives_the_bare_program() -> None:
    model, x = TinyPlain().eval(), images()
    bare = torch.export.export(model, (x,))
    with propkit.attach(model) as recorder:
        program = torch.export.export(model, (x,))
        classify(x)(model.train()).backward()
        sgd(model).step()
    assert [n.target for n in program.graph.nodes] == [n.target for n in bare.graph.nodes]
    torch.testing.assert_close(program.module()(x), bare.module()(x))
    assert recorder.run["error_moment"].sizes["step"] == 1
    assert np.isfinite(recorder.run["error_moment"]["output"].values).all()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of batch normalisation itself
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "part"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
def test_tracing_an_attached_model_gives_the_bare_trace(whole: bool, training: bool) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(3)
    )
    model(images())
    model.train(training)
    traced_part, x = model if whole else model[0], images()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        bare = torch.jit.trace(traced_part, x)
        with propkit.attach(model) as recorder:
            traced = torch.jit.trace(traced_part, x)
            want = oracle.observe(model, classify(x))
            classify(x)(model).backward()
            sgd(model).step()
            values = outputs(recorder, 0)
        torch.jit.save(traced, io.BytesIO())
    torch.testing.assert_close(traced(x), bare(x))
    kinds = [[n.kind() for n in t.inlined_graph.nodes()] for t in (traced, bare)]
    assert kinds[0] == kinds[1]
    for name, value in values.items():  # the step is measured, the trace before it is not
        np.testing.assert_allclose(value, oracle.error_moment(want[name])["output"], **EXACT)


def test_scripting_an_attached_model_is_refused_with_the_way_out() -> None:
    model = mlp()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with (
            propkit.attach(model) as recorder,
            pytest.raises(AttributeError, match=r"call recorder.detach\(\) first"),
        ):
            torch.jit.script(model)
        recorder.detach()
        torch.jit.script(model)


def test_a_scripted_part_is_named_in_the_notes() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        part = torch.jit.script(nn.Linear(6, 6))
    model = nn.Sequential(nn.Linear(6, 6), part, nn.Linear(6, 3))
    with propkit.attach(model) as recorder:
        classify(normal(4, 6))(model).backward()
        sgd(model).step()
    assert any(note.startswith("1:") for note in recorder.run.attributes["notes"])
    assert recorder.run["error_moment"]["site"].values.tolist() == ["0", "2"]


def test_parts_that_never_run_are_named_in_the_notes() -> None:
    model = sequences.AttentionNet()
    model.unused = nn.Linear(3, 3)
    with propkit.attach(model) as recorder:
        classify(normal(4, 5, 6))(model).backward()
        sgd(model).step()
    notes = " ".join(recorder.run.attributes["notes"])
    assert "unused" in notes
    assert "pool.out_proj" in notes


def test_lazy_layers() -> None:
    model = nn.Sequential(
        nn.LazyConv2d(4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(3)
    )
    with propkit.attach(model) as recorder:
        model(images())
        optimizer = sgd(model)
        want = oracle.observe(model, classify(images()))
        classify(images())(model).backward()
        optimizer.step()
    for name, value in outputs(recorder).items():
        np.testing.assert_allclose(value, oracle.error_moment(want[name])["output"], **EXACT)


def test_integer_inputs_and_inference_mode() -> None:
    model = sequences.TiedLanguageModel()
    with propkit.attach(model, probes=["activation", "error_moment"]) as recorder:
        with torch.inference_mode():
            model(ids(2, 3))
        model(ids(2, 3)).sum().backward()
        sgd(model).step()
    assert recorder.run["error_moment"]["site"].values.tolist() == ["embed", "mix", "out"]


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic", "memory"])
def test_programs_and_estimates_hold_nothing_of_ours(mode: str) -> None:
    """`make_fx`, and a forward of tensors without values, between two steps."""
    model, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), normal(4, 6)
    nodes = []
    with propkit.attach(model) as recorder:
        for step in range(4):
            want = oracle.observe(model, classify(x))
            classify(x)(model).backward()
            sgd(model).step()
            if step != 1:
                continue
            if mode == "memory":
                with FakeTensorMode(allow_non_fake_inputs=True) as fake:
                    model(fake.from_tensor(x)).sum().backward()
                    model.zero_grad()
            else:
                program = make_fx(
                    lambda x: model(x).sum(), tracing_mode=mode, _allow_non_fake_inputs=True
                )(x)
                nodes.append([n.target for n in program.graph.nodes if n.op == "call_function"])
    assert recorder.run["error_moment"].sizes["step"] == 4
    assert not recorder.run.attributes["faults"]
    for name, value in outputs(recorder, -1).items():
        np.testing.assert_allclose(value, oracle.error_moment(want[name])["output"], **EXACT)
    if nodes:
        bare = make_fx(lambda x: model(x).sum(), tracing_mode=mode, _allow_non_fake_inputs=True)(x)
        assert nodes == [[n.target for n in bare.graph.nodes if n.op == "call_function"]]
