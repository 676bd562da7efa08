"""Ways to watch a training: propkit's and those of other tools."""

import contextlib
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from watching.training import Subject

import propkit
from propkit.probes._reductions import mean_square_at_once

EVERY = 50  # sampling period of the rows that sample
CONVS = r"(^|\.)conv\d+$"  # names of the convolutions
AGAIN, ERRORS_HERE, ALL_NORMS, MOMENTS, WEIGHTS, DEFAULTS, SPARSE, IDLE, LEAST = (
    "bare, again",
    "propkit: error moments at the outputs",
    "propkit: all outputs + errors, one norm each",
    "propkit: error moments, both ends",
    "propkit: errors, weights and filters",
    "propkit: all default probes",
    f"propkit: all default probes, every={EVERY}",
    "propkit: attached, nothing sampled",
    "the least: hooks by hand, read once",
)


@propkit.probe(degree=2)
def error(grad_output: torch.Tensor) -> float | torch.Tensor:
    """Mean square of the error at a layer's output: what most of the other tools see."""
    return mean_square_at_once(grad_output)


@propkit.probe
def length(output: torch.Tensor) -> float | torch.Tensor:
    """Mean square of a layer's output."""
    return mean_square_at_once(output)


Observer = Callable[[Subject], contextlib.AbstractContextManager[None]]


class Configuration(NamedTuple):
    """A way to watch a training, the package it needs, the propkit row that gives the nearest quantities."""

    label: str
    observe: Observer
    package: str = ""
    rival: str = ""


def attached(**options: Any) -> Observer:
    @contextlib.contextmanager
    def observe(s: Subject) -> Iterator[None]:
        store = s.folder / f"{id(s)}.zarr"
        with propkit.attach(s.model, store, overwrite=True, **options) as s.recorder:
            yield

    return observe


def on_conv_errors(s: Subject, see: Callable[[str, torch.Tensor], None]) -> None:
    """Tensor hooks on the outputs of the convolutions, by hand."""

    def at(name: str) -> Callable[..., None]:
        def seen(_m: nn.Module, _args: Any, out: torch.Tensor) -> None:
            def arrived(grad: torch.Tensor) -> None:
                see(name, grad)

            out.register_hook(arrived)

        return seen

    for name, module in s.convs().items():
        module.register_forward_hook(at(name))


@contextlib.contextmanager
def bare(s: Subject) -> Iterator[None]:  # noqa: ARG001 - an observer
    yield


@contextlib.contextmanager
def naive(s: Subject) -> Iterator[None]:
    values: dict[str, float] = {}
    on_conv_errors(s, lambda name, grad: values.update({name: grad.pow(2).mean().item()}))
    yield


@contextlib.contextmanager
def least(s: Subject) -> Iterator[None]:
    """The least that reading every error once takes in Python: nothing is looked after, nothing is stored."""
    square_sum = import_module("propkit.probes._kernels").square_sum
    sums: list[float] = []
    on_conv_errors(s, lambda _, grad: sums.append(square_sum(grad.data_ptr(), grad.numel())))
    s.after_step = lambda _: sums.clear()
    yield


@contextlib.contextmanager
def backward_hooks(s: Subject) -> Iterator[None]:
    for module in s.convs().values():
        module.register_full_backward_hook(lambda *_: None)
    yield


def tensor_tracker(convs_std: bool) -> Observer:
    @contextlib.contextmanager
    def observe(s: Subject) -> Iterator[None]:
        tool = import_module("tensor_tracker")
        std = {"include": CONVS, "stash_value": lambda t: t.detach().std().cpu()}
        with tool.track(s.model, **(std if convs_std else {})) as tracker:

            def read(_: torch.Tensor) -> None:
                if convs_std:
                    [stash.first_value.item() for stash in tracker]
                tracker.clear()

            s.after_step = read
            yield

    return observe


def wandb_watch(what: str) -> Observer:
    @contextlib.contextmanager
    def observe(s: Subject) -> Iterator[None]:
        wandb = import_module("wandb")
        quiet = wandb.Settings(silent=True, console="off", x_disable_stats=True)
        run = wandb.init(mode="offline", dir=s.folder, reinit="create_new", settings=quiet)
        run.watch(s.model, log=what, log_freq=1)

        def forward_backward() -> torch.Tensor:
            wandb.run = run  # its hooks log to the current run, and there are two here
            return s.forward_backward()

        s.run = forward_backward
        s.after_step = lambda loss: run.log({"loss": loss.item()})
        yield
        run.finish()

    return observe


def tensorboard(errors: bool) -> Observer:
    @contextlib.contextmanager
    def observe(s: Subject) -> Iterator[None]:
        writer = import_module("torch.utils.tensorboard").SummaryWriter(s.folder / f"tb{id(s)}")

        def gradients(_: torch.Tensor) -> None:
            for name, p in s.model.named_parameters():
                writer.add_histogram(name, p.grad, s.steps)

        if errors:
            on_conv_errors(s, lambda name, grad: writer.add_histogram(name, grad, s.steps))
        else:
            s.after_step = gradients
        yield
        writer.close()

    return observe


@contextlib.contextmanager
def torchlens(s: Subject) -> Iterator[None]:
    tool, options = import_module("torchlens"), import_module("torchlens.options")
    capture = options.CaptureOptions(backward_ready=True, unwrap_when_done=True)

    def run() -> torch.Tensor:
        trace = tool.trace(s.model, s.x, capture=capture)
        loss = F.cross_entropy(trace[trace.output_layers[0]].out, s.y)
        trace.log_backward(loss)
        trace.cleanup()
        return loss

    s.run = run
    yield


GIT = {"tensor_tracker": "git+https://github.com/graphcore-research/pytorch-tensor-tracker"}
OURS = (
    Configuration(AGAIN, bare),
    Configuration(IDLE, attached(every=lambda _: False)),
    Configuration(ERRORS_HERE, attached(probes=error)),
    Configuration(MOMENTS, attached(probes="error_moment")),
    Configuration(ALL_NORMS, attached(probes=[error, length])),
    Configuration(WEIGHTS, attached(probes=["error_moment", "weight", "filter_correlation"])),
    Configuration(DEFAULTS, attached()),
)
PEERS = (
    Configuration(LEAST, least, "numba", ERRORS_HERE),
    Configuration("no-op full backward hooks", backward_hooks, rival=ERRORS_HERE),
    Configuration("tensor hooks with .item(), by hand", naive, rival=ERRORS_HERE),
    Configuration("tensor-tracker, std of convolutions", tensor_tracker(True), "tensor_tracker", ALL_NORMS),
    Configuration("tensor-tracker, clones (default)", tensor_tracker(False), "tensor_tracker", ALL_NORMS),
    Configuration("wandb.watch, gradients", wandb_watch("gradients"), "wandb", MOMENTS),
    Configuration("wandb.watch, all", wandb_watch("all"), "wandb", WEIGHTS),
    Configuration("TensorBoard, histograms of gradients", tensorboard(False), "tensorboard", MOMENTS),
    Configuration("TensorBoard, histograms of conv errors", tensorboard(True), "tensorboard", ERRORS_HERE),
    Configuration("torchlens, trace", torchlens, "torchlens", ALL_NORMS),
)  # fmt: skip
