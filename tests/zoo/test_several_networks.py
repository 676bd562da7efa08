"""Networks that are trained together, called in parts, or copied; leaves as inputs."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import propkit
from propkit.testing import TinyPlain, mlp
from tests.zoo import gan, oracle, vision
from tests.zoo.batches import classify, images, normal
from tests.zoo.harness import EXACT, check, hooks, outputs, sgd


def play(net: gan.GAN, steps: int, before=lambda which, loss: None) -> list[float]:
    """Alternating steps of discriminator and generator, as usual."""
    generator, discriminator = net.generator, net.discriminator
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=1e-2)
    optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=1e-2)
    losses = []
    for i in range(steps):
        real, z = normal(4, 1, 4, 4, seed=i), normal(4, 4, seed=100 + i)

        def loss_d(d: nn.Module, real=real, z=z) -> torch.Tensor:
            fake = generator(z).detach()
            return F.softplus(-d(real)).mean() + F.softplus(d(fake)).mean()

        before("discriminator", loss_d)
        optimizer_d.zero_grad()
        loss = loss_d(discriminator)
        loss.backward()
        optimizer_d.step()

        def loss_g(g: nn.Module, z=z) -> torch.Tensor:
            return F.softplus(-discriminator(g(z))).mean()

        before("generator", loss_g)
        optimizer_g.zero_grad()
        other = loss_g(generator)
        other.backward()
        optimizer_g.step()
        losses += [loss.item(), other.item()]
    return losses


def test_a_gan_observed_by_one_recorder_each() -> None:
    net = gan.GAN()
    bare = copy.deepcopy(net)
    want: dict[str, list[oracle.Calls]] = {"generator": [], "discriminator": []}

    def observe(which: str, loss) -> None:
        want[which].append(oracle.observe(getattr(bare, which), loss))

    expected = play(bare, 3, observe)
    with propkit.attach(net.generator) as g, propkit.attach(net.discriminator) as d:
        assert play(net, 3) == expected
    for a, b in zip(net.parameters(), bare.parameters(), strict=True):
        assert torch.equal(a, b)
    assert hooks(net) == hooks(bare)
    assert g.run["error_moment"]["step"].values.tolist() == [0, 1, 2]
    assert d.run["error_moment"]["step"].values.tolist() == [0, 1, 2]
    for step in range(3):
        for name, value in outputs(g, step).items():
            calls = want["generator"][step][name]
            np.testing.assert_allclose(value, oracle.error_moment(calls)["output"], **EXACT)


def test_a_step_of_a_discriminator_holds_the_generators_pass_before_it_too() -> None:
    """What runs between two steps is combined: a pass whose gradients are thrown away looks like accumulation."""
    net = gan.GAN()
    bare = copy.deepcopy(net)
    own: list[oracle.Calls] = []
    foreign: list[oracle.Calls] = []

    def observe(which: str, loss) -> None:
        if which == "discriminator":
            own.append(oracle.observe(bare.discriminator, loss))
        else:
            fake = bare.generator(normal(4, 4, seed=100 + len(foreign)))
            foreign.append(
                oracle.observe(bare.discriminator, lambda d: F.softplus(-d(fake)).mean())
            )
            bare.zero_grad()

    play(bare, 3, observe)
    with propkit.attach(net.discriminator) as d:
        play(net, 3)
    for step in range(3):
        for name, value in outputs(d, step).items():
            calls = own[step][name] + (foreign[step - 1][name] if step else [])
            np.testing.assert_allclose(value, oracle.error_moment(calls)["output"], **EXACT)


def test_a_gan_in_one_module() -> None:
    """The call of a part by itself is a forward of the part: real and fake images are combined, as above."""
    net = gan.GAN()
    bare = copy.deepcopy(net)
    want: list[oracle.Calls] = []

    def observe(which: str, loss) -> None:
        want.append(oracle.observe(getattr(bare, which), loss))

    expected = play(bare, 3, observe)
    with propkit.attach(net) as recorder:
        assert play(net, 3) == expected
    run = recorder.run
    assert run["error_moment"]["step"].values.tolist() == list(range(6))
    ds = run["error_moment"].set_index(site="site")["output"]
    for step in range(6):
        which = ("discriminator", "generator")[step % 2]
        for name in ("conv", "fc") if which == "discriminator" else ("fc", "up"):
            calls = want[step][name]
            np.testing.assert_allclose(
                ds.sel(site=f"{which}.{name}").values[step],
                oracle.error_moment(calls)["output"],
                **EXACT,
            )


def test_parts_that_are_called_by_themselves_are_evaluated_without_trace() -> None:
    """A module whose forward never runs (a GAN's, a Lightning module's) and an evaluation of its parts."""
    net = gan.GAN()
    calls = oracle.observe(net.generator, lambda g: g(normal(4, 4)).square().mean())
    with propkit.attach(net, probes=["activation", "error_moment"]) as recorder:
        optimizer = sgd(net)
        with torch.no_grad():
            for _ in range(3):
                net.generator(100 * normal(4, 4))
        net.generator(normal(4, 4)).square().mean().backward()
        optimizer.step()
    ds = recorder.run["activation"]
    assert ds["site"].values.tolist() == ["generator.fc", "generator.up"]
    want = [oracle.activation(calls[n])["mean_square"] for n in ("fc", "up")]
    np.testing.assert_allclose(ds["mean_square"].values[0], want, **EXACT)
    assert ds["depth"].values.tolist() == [1, 2]


def test_an_average_of_the_weights_is_a_copy_that_is_not_observed() -> None:
    model, loss = TinyPlain(), classify(images())
    with propkit.attach(model) as recorder:
        average = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        )
        optimizer = sgd(model)
        for _ in range(3):
            optimizer.zero_grad()
            loss(model).backward()
            optimizer.step()
            average.update_parameters(model)
            with torch.no_grad():
                average(100 * images())
            average(images()).sum().backward()
    assert recorder.run["error_moment"].sizes["step"] == 3
    moments = outputs(recorder)
    torch.manual_seed(0)
    want = oracle.observe(TinyPlain(), loss)
    for name, value in moments.items():
        np.testing.assert_allclose(value, oracle.error_moment(want[name])["output"], **EXACT)


def test_a_parameter_as_input_of_a_layer() -> None:
    class Prompted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.prompt = nn.Parameter(torch.randn(3, 6))
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.second((x + self.first(self.prompt).mean(0)).tanh())

    check(Prompted(), classify(normal(4, 6)), blocks=None)


def test_images_that_need_gradients_and_stay() -> None:
    x = normal(4, 12).requires_grad_()
    model, loss = mlp(), classify(x)
    want = oracle.observe(model, loss)
    x.grad = None
    with propkit.attach(model, probes="gradient_norm") as recorder:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        for _ in range(3):
            x.grad = None
            loss(model).backward()
            optimizer.step()
    found = recorder.run["gradient_norm"].set_index(site="site")["input"].sel(site="0").values
    want = oracle.gradient_norm(want["0"])["input"]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, found[0], **EXACT)
    assert not x._backward_hooks
    assert want is not None


def test_a_module_that_returns_its_parameter() -> None:
    """Learned positions, as a view and as they are."""

    class Positions(nn.Module):
        def __init__(self, view: bool) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 6))
            self.view = view

        def forward(self) -> torch.Tensor:
            return self.weight[None] if self.view else self.weight

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Positions(True), Positions(False)
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            return self.head((x + self.first() + self.second()).tanh().mean(1))

    check(Net(), classify(normal(4, 5, 6)), blocks=None)


def test_a_part_that_first_runs_after_rows_were_written(monkeypatch) -> None:
    monkeypatch.setattr(propkit.recording.outbox, "FLUSH_ROWS", 2)
    model = vision.StochasticDepth()
    optimizer = sgd(model)
    with propkit.attach(model, probes="gradient_norm") as recorder:
        for kept in ((0,), (0,), (0,), (0, 1)):
            model.kept = kept
            classify(images())(model).backward()
            optimizer.step()
    ds = recorder.run["gradient_norm"]
    assert ds["site"].values.tolist() == ["blocks.0", "blocks.1"]
    assert np.isfinite(ds["output"].values).tolist() == [[True, False]] * 3 + [[True, True]]
    (note,) = recorder.run.attributes["notes"]
    assert note.startswith("no value from blocks.2, blocks.3: not called")
