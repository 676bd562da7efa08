"""Run a sweep: many trainings, several at a time, each in a process of its own; what is complete is skipped."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from propkit.recipes import Job, Recipe, Sweep
from propkit.sweep_table import Line, diverged, line, save, table


@dataclass(frozen=True)
class Result:
    """What became of one run.

    Attributes:
        store: Where it is.
        state: ``skipped`` (it was there), ``complete``, ``diverged`` or ``failed``.
        text: What the training said last.
    """

    store: Path
    state: str
    text: str = ""


def jobs_of(sweep: Sweep, data: str, seeds: int | None = None) -> list[tuple[Job, int]]:
    """The runs with their seeds: the demo's for digits, the paper's for anything else.

    Args:
        sweep: What to run.
        data: As on the command line.
        seeds: Runs of each, with seeds from 0; the sweep's number if None.
    """
    demo = data.startswith("digits")
    count = seeds if seeds is not None else sweep.demo_seeds if demo else sweep.seeds
    jobs = sweep.demo if demo else sweep.paper
    return [(job, seed) for seed in range(count) for job in jobs]


def run_sweep(
    sweep: Sweep,
    data: str,
    folder: Path,
    *,
    seeds: int | None = None,
    processes: int = 1,
    settings: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
    checkpoint_every: int = 1000,
    overwrite: bool = False,
    report: Callable[[Result, int, int], None] = lambda result, done, count: None,  # noqa: ARG005 - its signature
) -> list[Result]:
    """Run what is missing of a sweep.

    A run that stopped before its end goes on at its checkpoint, or begins again where it has none.
    One that diverged is a result too.

    Args:
        sweep: What to run.
        data: As on the command line.
        folder: Where the runs are, ``<recipe>-seed<seed>.zarr``.
        seeds: See `jobs_of`.
        processes: Trainings at a time, each with one thread on a CPU.
        settings: What is set otherwise in all runs, over the jobs' own settings.
        options: Further arguments of ``propkit train`` for all.
        checkpoint_every: Steps between two checkpoints.
        overwrite: Run what is there already, too.
        report: Told of each result, of the number of results so far, and of that of all runs.

    Returns:
        One result per run, in the order of `jobs_of`.

    Raises:
        ValueError: ``processes`` is not positive, a setting is none of the recipe's, or a run that is
            there was made with other settings.
    """
    from propkit import recipes

    if processes < 1:
        raise ValueError(f"processes must be at least 1, found {processes}")
    jobs = jobs_of(sweep, data, seeds)
    stores = [folder / f"{job.recipe}-seed{seed}.zarr" for job, seed in jobs]
    for (job, _), store in zip(jobs, stores, strict=True):  # before anything is trained
        recipe = recipes.find(job.recipe).override({**job.settings, **(settings or {})})
        if not overwrite:
            _check_same(store, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    common = ["--data", data, "--quiet", "--checkpoint-every", str(checkpoint_every)]
    common += [*([] if "--threads" in options else ["--threads", "1"]), *options]

    def run(index: int) -> Result:
        (job, seed), store = jobs[index], stores[index]
        if not overwrite and (is_complete(store) or diverged(store)):
            return Result(store, "skipped")
        pairs = {**job.settings, **(settings or {})}
        arguments = [
            *(job.recipe, "-o", str(store), "--seed", str(seed), *common),
            *(part for key, value in pairs.items() for part in ("--set", f"{key}={value}")),
            "--resume" if _can_resume(store) and not overwrite else "--overwrite",
        ]
        done = subprocess.run(
            [sys.executable, "-m", "propkit", "train", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        text = (done.stderr if done.returncode else done.stdout).strip()
        if not done.returncode:
            return Result(store, "complete", text)
        return Result(store, "diverged" if diverged(store) else "failed", text)

    results: dict[int, Result] = {}
    with ThreadPoolExecutor(processes) as pool:
        futures = {pool.submit(run, index): index for index in range(len(jobs))}
        try:
            for future in as_completed(futures):
                results[futures[future]] = future.result()
                report(future.result(), len(results), len(jobs))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [results[index] for index in range(len(jobs))]


def _can_resume(store: Path) -> bool:
    return store.exists() and checkpoint_of(store).exists()


def _check_same(store: Path, recipe: Recipe) -> None:
    """Refuse a run that is there and was made with other settings."""
    from propkit.store.run import open as open_run

    try:
        there = open_run(store).attributes["config"]["recipe"]
    except (OSError, ValueError, LookupError):  # none, or cut off before its first commit
        return
    wanted = json.loads(json.dumps(recipe.config()))
    differing = sorted(k for k in {*there, *wanted} if there.get(k) != wanted.get(k))
    if differing:
        key = differing[0]
        raise ValueError(
            f"{store} is of another sweep: {key} was {there.get(key)!r}, now {wanted.get(key)!r}; name "
            "another folder with -o or replace what is there with --overwrite"
        )


def lines_of(results: Sequence[Result]) -> list[Line]:
    """What came out, network by network, in the order of the sweep."""
    by_network: dict[str, list[Path]] = {}
    for result in results:
        by_network.setdefault(result.store.name.rpartition("-seed")[0], []).append(result.store)
    return [line(network, stores) for network, stores in by_network.items()]


def is_complete(store: Path) -> bool:
    """Whether a run is there and came to its end."""
    if not store.exists():
        return False
    from propkit.store.run import open as open_run

    try:
        return open_run(store).state == "complete"
    except (OSError, ValueError, LookupError):  # cut off before its first commit
        return False


def checkpoint_of(store: str | os.PathLike[str]) -> Path:
    """Where the checkpoint of a run lies: ``RUN.zarr.checkpoint`` beside ``RUN.zarr``."""
    path = os.fspath(store).rstrip("/")
    if "://" in path:
        raise ValueError(f"checkpoints need a run on a local disk, found {path}")
    return Path(f"{path}.checkpoint")


def carry_out(sweep: Sweep, arguments: argparse.Namespace, settings: Mapping[str, str]) -> int:
    """Run a sweep as ``propkit train`` was told, and print what becomes of it.

    Returns:
        Number of runs that failed.
    """

    def report(result: Result, done: int, count: int) -> None:
        if not arguments.quiet:
            last = result.text.splitlines()[0] if result.text else ""
            print(f"{done}/{count} {result.state}: {result.store}  {last}".rstrip(), flush=True)

    settings = dict(settings)
    for name in ("steps", "every"):
        if getattr(arguments, name) is not None:
            settings[name] = str(getattr(arguments, name))
    options = ["--device", arguments.device, "--threads", str(arguments.threads or 1)]
    if arguments.image_size is not None:
        options += ["--image-size", str(arguments.image_size)]
    for name in ("bf16", "channels_last", "compile", "deterministic"):
        options += [f"--{name.replace('_', '-')}"] * getattr(arguments, name)
    folder = Path(arguments.output or sweep.name)
    results = run_sweep(
        sweep,
        arguments.data,
        folder,
        seeds=arguments.seeds,
        processes=arguments.jobs,
        settings=settings,
        options=options,
        checkpoint_every=arguments.checkpoint_every or 1000,
        overwrite=arguments.overwrite,
        report=report,
    )
    lines = lines_of(results)
    save(lines, folder / "results.csv")
    print(f"\nErrors in per cent (also in {folder / 'results.csv'}):\n{table(lines)}")
    failed = sum(result.state == "failed" for result in results)
    print(f"{len(results) - failed} of {len(results)} runs are there in {folder}")
    for figure in sweep.figures:
        print(f"Draw: python -m propkit.figures {figure} {folder}/*.zarr")
    return failed
