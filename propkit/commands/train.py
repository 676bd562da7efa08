"""``propkit train``: train a network by a recipe of the papers."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from propkit.commands import FAILED, INTERRUPTED, UsageError

if TYPE_CHECKING:
    from propkit.experiment import Outcome
    from propkit.recipes import Recipe, Sweep

SUMMARY = "train a network by a recipe of the papers"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("recipe", nargs="?", help="name of a recipe or sweep, such as plain44-ortho or table2")
    add("--list", action="store_true", help="list the recipes and sweeps and stop")
    add(
        "--data",
        default="digits",
        metavar="NAME|FOLDER",
        help="digits (8x8 pixels, from scikit-learn, no download), digits16 or digits32 (upsampled); "
        "cifar10 or cifar100 (binary version, looked for in PROPKIT_DATA and the usual folders); or a "
        "folder with either, or with a sub-folder of images for each class (default: digits)",
    )
    add("--image-size", type=_positive, metavar="N", help="scale images of a folder to NxN pixels")
    add(
        "-o",
        "--output",
        metavar="RUN.zarr",
        help="the run to create (default: RECIPE.zarr); the folder of a sweep's runs (default: SWEEP)",
    )
    add(
        "--overwrite",
        action="store_true",
        help="replace the run, or a sweep's runs, that are there",
    )
    add("--steps", type=_positive, metavar="N", help="optimiser steps (default: the recipe's)")
    add("--seed", type=_natural, default=0, metavar="S", help="seed of weights, order and flips")
    add("--device", default="cpu", help="cpu, cuda, cuda:1... (default: cpu)")
    add("--threads", type=_positive, metavar="N", help="CPU threads (default: PyTorch's choice)")
    add("--every", type=_positive, metavar="N", help="record every N steps (default: the recipe's)")
    add("--label", metavar="TEXT", help="name in the figures' legends (default: RECIPE)")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="change a setting of the recipe, such as lr=0.05 or milestones=300,450; repeatable",
    )
    add("--quiet", action="store_true", help="show no progress")
    add("--checkpoint-every", type=_positive, metavar="N", help="save the training every N steps")
    add("--resume", action="store_true", help="go on at the checkpoint beside the run")
    add("--bf16", action="store_true", help="forward pass in bfloat16")
    add("--channels-last", action="store_true", help="channels innermost in memory")
    add("--compile", action="store_true", help="train through torch.compile")
    add("--deterministic", action="store_true", help="the same bits every time, on one machine")
    add("--jobs", type=_positive, metavar="N", help="a sweep's runs at a time (default: 1)")
    add("--seeds", type=_positive, metavar="N", help="runs of each of a sweep's networks")


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status."""
    if arguments.list:
        print(_listing())
        return 0
    if arguments.recipe is None:
        raise UsageError("which recipe? --list shows them")
    if sweep := _find_sweep(arguments.recipe):
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UsageError("a sweep starts processes of its own: use --jobs, not torchrun")
        return _run_sweep(sweep, arguments)
    recipe = _recipe(arguments.recipe, arguments.settings)
    _refuse_sweeps_options(recipe, arguments)
    store = arguments.output or f"{recipe.name}.zarr"
    if not (arguments.overwrite or arguments.resume) and os.path.lexists(store):
        raise UsageError(f"{store} exists; name another with -o or replace it with --overwrite")
    try:
        outcome = _train(recipe, store, arguments)
    except KeyboardInterrupt:
        if _first():
            print(f"\n{_after_interrupt(recipe, store)}", file=sys.stderr)
        return INTERRUPTED
    except ArithmeticError as error:  # DivergenceError, without importing torch for its name
        if not _first():
            return FAILED
        print(f"propkit train: {error}", file=sys.stderr)
        if Path(store).exists():
            print(f"The run up to there is in {store}.\n{_drawing(recipe, store)}", file=sys.stderr)
        return FAILED
    if _first():
        print(f"{outcome}\nRun: {store}\n{_drawing(recipe, store)}")
    return 0


def _first() -> bool:
    """Whether this is the process that speaks: torchrun starts several."""
    return os.environ.get("RANK", "0") == "0"


def _find_sweep(name: str) -> "Sweep | None":
    from propkit import recipes

    return recipes.find_sweep(name)


def _refuse_sweeps_options(recipe: "Recipe", arguments: argparse.Namespace) -> None:
    from propkit import recipes

    if arguments.seeds is None and arguments.jobs is None:
        return
    option = "--jobs" if arguments.seeds is None else "--seeds"
    sweeps = ", ".join(sweep.name for sweep in recipes.sweeps())
    raise UsageError(
        f"{option} is for sweeps ({sweeps}), and {recipe.name} is one run: leave it out; --seed S is its seed"
    )


def _run_sweep(sweep: "Sweep", arguments: argparse.Namespace) -> int:
    from propkit.sweep import carry_out

    arguments.jobs = arguments.jobs or 1
    try:
        return FAILED if carry_out(sweep, arguments, _settings(arguments.settings)) else 0
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on with what is missing.", file=sys.stderr)
        return INTERRUPTED
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from None


def _train(recipe: "Recipe", store: str, arguments: argparse.Namespace) -> "Outcome":
    import torch

    from propkit.data import load
    from propkit.experiment import RecordingError, ResumeError, check_device, run_recipe
    from propkit.training import Execution
    from propkit.training.processes import joined

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    with ExitStack() as stack:
        try:
            check_device(arguments.device)
            data = load(arguments.data, arguments.image_size)
            device = stack.enter_context(joined(arguments.device))
        except (ImportError, OSError, ValueError) as error:
            raise UsageError(str(error)) from None
        try:
            return run_recipe(
                recipe,
                data,
                store,
                steps=arguments.steps,
                seed=arguments.seed,
                device=device,
                every=arguments.every,
                label=arguments.label,
                overwrite=arguments.overwrite,
                progress=not arguments.quiet,
                execution=Execution(
                    bf16=arguments.bf16,
                    channels_last=arguments.channels_last,
                    compile=arguments.compile,
                    deterministic=arguments.deterministic,
                ),
                checkpoint_every=arguments.checkpoint_every,
                resume=arguments.resume,
            )
        except (OSError, ResumeError, RecordingError) as error:
            raise UsageError(str(error)) from None


def _recipe(name: str, settings: Sequence[str]) -> "Recipe":
    from propkit import recipes

    pairs = _settings(settings)
    try:
        return recipes.find(name).override(pairs)
    except (LookupError, ValueError) as error:
        raise UsageError(str(error)) from None


def _settings(settings: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(f"--set takes KEY=VALUE, found {setting!r}")
        pairs[key.strip()] = value.strip()
    return pairs


def _listing() -> str:
    from propkit import recipes

    found: list[Recipe | Sweep] = [*recipes.listed(), *recipes.sweeps()]
    width = max(len(recipe.name) for recipe in found)
    lines = [f"{r.name:<{width}}  {r.summary}  ({r.reference})" for r in found]
    return "\n".join([*lines, f"Also: {', '.join(recipes.patterns())}"])


def _after_interrupt(recipe: "Recipe", store: str) -> str:
    if not Path(store).exists():
        return "Interrupted before anything was recorded."
    return f"Interrupted. The run up to there is in {store}.\n{_drawing(recipe, store)}"


def _drawing(recipe: "Recipe", store: str) -> str:
    commands = [f"  python -m propkit.figures {name} {store}" for name in recipe.figures]
    return "\n".join(["Draw it with", *commands])


def _positive(text: str) -> int:
    return _integer(text, 1)


def _natural(text: str) -> int:
    return _integer(text, 0)


def _integer(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(
            f"an integer of at least {least} is needed, found {text!r}"
        )
    return value
