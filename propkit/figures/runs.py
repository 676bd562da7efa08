"""What a figure is given: runs or their paths, labels, and the quantity it needs from each."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Protocol

import xarray as xr


class RunLike(Protocol):
    """What figures use of a `propkit.Run`."""

    @property
    def label(self) -> str:
        """Short name for legends."""

    @property
    def state(self) -> str:
        """``running``, ``complete``, and so on."""

    @property
    def path(self) -> str | os.PathLike[str] | None:
        """Where the run is stored, None in memory."""

    @property
    def attributes(self) -> Mapping[str, object]:
        """The root's attributes."""

    def __contains__(self, group: object, /) -> bool:
        """Whether the run has that group."""

    def __iter__(self) -> Iterator[str]:
        """Names of the groups."""

    def __getitem__(self, group: str, /) -> xr.Dataset:
        """The dataset of a group."""


AnyRun = RunLike | str | os.PathLike[str]
"""A run, or the path of one."""


class FigureError(ValueError):
    """The runs given lack what the figure shows; the message says what to do."""


def gather(
    runs: Iterable[AnyRun | Sequence[AnyRun]], labels: Sequence[str] | str | None = None
) -> dict[str, RunLike]:
    """Runs by label, opened where they are paths.

    Args:
        runs: Runs, paths, or sequences of them.
        labels: One label per run. None: each run's own label, else the stem of its path.

    Returns:
        Label -> run in the order given; labels that would coincide are told apart by path, else by
        number.

    Raises:
        FigureError: No run, or as many labels as there are not runs.
        OSError, ValueError: A path cannot be opened, see `propkit.open`.
    """
    flat: list[AnyRun] = []
    for run in runs:
        flat.extend(run if isinstance(run, (list, tuple)) else [run])  # type: ignore[list-item]
    labels = [labels] if isinstance(labels, str) else labels
    if not flat:
        raise FigureError("no run was given")
    if labels is not None and len(labels) != len(flat):
        raise FigureError(f"expected one label per run, found {len(labels)} for {len(flat)}")
    opened = [_opened(run) for run in flat]
    wanted = labels or [_label(run, i) for i, run in enumerate(opened, start=1)]
    return dict(zip(_distinct(list(wanted), opened), opened, strict=True))


def need(run: RunLike, group: str, figure: str) -> xr.Dataset:
    """The group of a run, with at least one row.

    Args:
        run: The run.
        group: Name of the group, which is that of the probe.
        figure: Who asks, for the message.

    Raises:
        FigureError: The run has no such group, or no row or no layer in it.
    """
    name = f"run {_label(run, 0)!r}" if run.label or run.path else "the run"
    faults = run.attributes.get("faults")
    fault = faults.get(group) if isinstance(faults, Mapping) else None
    broken = f" The probe was switched off during the run: {fault}." if fault else ""
    if group not in run:
        raise FigureError(
            f"{figure} needs {group!r}, which {name} does not have "
            f"(it has: {', '.join(run) or 'nothing'}).{broken} Record it with "
            f"propkit.attach(model, ..., probes=[{group!r}]), or leave out probes=; "
            "`python -m propkit train RECIPE -o run.zarr` records it too"
        )
    dataset = run[group]
    if not dataset.sizes.get("step"):
        raise FigureError(
            f"{figure}: {name} has no row of {group!r} yet (state: {run.state}).{broken} "
            "Rows appear with the first sampled step that is flushed"
        )
    if dataset.sizes.get("site") == 0:
        raise FigureError(
            f"{figure}: {name} has no layer in {group!r}: no module was of the kind that this probe "
            "measures, or include=, exclude= and blocks= of attach() left none"
        )
    return dataset


def _opened(run: AnyRun) -> RunLike:
    if isinstance(run, (str, os.PathLike)):
        from propkit.store.run import open as open_run

        opened: RunLike = open_run(run)
        return opened
    if not hasattr(run, "attributes"):
        raise TypeError(f"expected a propkit.Run or the path of one, found {type(run).__name__}")
    return run


def _place(run: RunLike, folders: int = 0) -> str:
    """The stem of the run's path, with some of the folders before it; empty in memory."""
    parts = PurePath(str(run.path)).with_suffix("").parts if run.path else ()
    return "/".join(parts[-folders - 1 :])


def _label(run: RunLike, number: int) -> str:
    return run.label or _place(run) or (f"run {number}" if number else "run")


def _distinct(labels: list[str], runs: list[RunLike]) -> list[str]:
    """Tell equal labels apart: by as much of the path as it takes, else by number."""
    result: list[str] = []
    for label, run in zip(labels, runs, strict=True):
        twins = [r for r, other in zip(runs, labels, strict=True) if other == label]
        # Twins at one path, or without one, cannot be told apart by it.
        for folders in range(4 if len(twins) > 1 else 0):
            places = [_place(r, folders) for r in twins]
            if len(set(places)) == len(places) and all(places):
                label = f"{label} ({_place(run, folders)})"
                break
        number, candidate = 1, label
        while candidate in result:
            number += 1
            candidate = f"{label} ({number})"
        result.append(candidate)
    return result
