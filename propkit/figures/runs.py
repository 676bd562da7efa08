"""What a figure is given: runs or their paths, labels, and the quantity it needs from each."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Protocol

import xarray as xr

from propkit.store.whole import damage


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


class StudyLike(Protocol):
    """What figures use of a `propkit.Study`."""

    @property
    def runs(self) -> Mapping[str, RunLike]:
        """Label -> run."""


AnyRun = RunLike | StudyLike | str | os.PathLike[str]
"""A run, the path of one, a pattern of paths, a folder of runs, or a study."""


_DEFAULT = {"error_moment", "gradient_norm", "activation", "filter_correlation", "weight"}
"""The probes that are recorded unless others are named; `propkit.registry` has them, and imports torch."""


class FigureError(ValueError):
    """The runs given lack what the figure shows; the message says what to do."""


def gather(
    runs: Iterable[AnyRun | Sequence[AnyRun]], labels: Sequence[str] | str | None = None
) -> dict[str, RunLike]:
    """Runs by label, opened where they are paths.

    Args:
        runs: Runs, their paths, patterns of paths, folders of runs, studies, or sequences of these.
        labels: One label per run. None: each run's own label, else the stem of its path; a study's
            labels for its runs.

    Returns:
        Label -> run in the order given; labels that would coincide are told apart by path, else by
        number.

    Raises:
        FigureError: No run, or as many labels as there are not runs.
        OSError, ValueError: A path cannot be opened, see `propkit.open`.
    """
    found: list[tuple[str, RunLike]] = []
    for run in runs:
        for one in run if isinstance(run, (list, tuple)) else [run]:
            found.extend(_opened(one))  # type: ignore[arg-type]  # no sequence any more
    labels = [labels] if isinstance(labels, str) else labels
    if not found:
        raise FigureError("no run was given")
    if labels is not None and len(labels) != len(found):
        raise FigureError(f"expected one label per run, found {len(labels)} for {len(found)}")
    opened = [run for _, run in found]
    wanted = labels or [own or _label(run, i) for i, (own, run) in enumerate(found, start=1)]
    return dict(zip(_distinct(list(wanted), opened), opened, strict=True))


def need(run: RunLike, group: str, figure: str) -> xr.Dataset:
    """The group of a run, with at least one row.

    Args:
        run: The run.
        group: Name of the group, which is that of the probe.
        figure: Who asks, for the message.

    Raises:
        FigureError: The run has no such group, or no row or no layer in it, or arrays of it are missing.
    """
    name = f"run {_label(run, 0)!r}" if run.label or run.path else "the run"
    faults = run.attributes.get("faults")
    fault = faults.get(group) if isinstance(faults, Mapping) else None
    broken = f" The probe was switched off during the run: {fault}." if fault else ""
    if group not in run:
        if _begun(run, group):
            raise FigureError(_no_row(figure, name, group, run.state, broken))
        raise FigureError(
            f"{figure} needs {group!r}, which {name} does not have "
            f"(it has: {', '.join(run) or 'nothing'}).{broken} {_how_to_record(group)}"
        )
    if wrong := damage(run, group):
        raise FigureError(f"{figure}: {wrong}")
    dataset = run[group]
    if not dataset.sizes.get("step"):
        raise FigureError(_no_row(figure, name, group, run.state, broken))
    if dataset.sizes.get("site") == 0:
        raise FigureError(
            f"{figure}: {name} has no layer in {group!r}: no module was of the kind that this probe "
            "measures, or include=, exclude= and blocks= of attach() left none"
        )
    return dataset


def _begun(run: RunLike, group: str) -> bool:
    """Whether a group may yet come, or was to come: a run has it from its first rows on."""
    sampling = run.attributes.get("sampling")
    if isinstance(sampling, Mapping) and group in sampling:
        return run.state != "complete"
    # No run says beforehand that it will have a log.
    return group == "log" and run.state == "running" and not list(run)


def _no_row(figure: str, name: str, group: str, state: str, broken: str) -> str:
    ending = " Rows appear with the first sampled step that is flushed"
    if state != "running":
        ending = " It ended before a row was written"
    told = broken or ending  # a probe that was switched off gives no row any more
    return f"{figure}: {name} has no row of {group!r} yet (state: {state}).{told}"


def _how_to_record(group: str) -> str:
    if group == "log":
        return (
            "The training loop records it with recorder.log(loss=loss, accuracy=accuracy); "
            "`python -m propkit train RECIPE -o run.zarr` does so too"
        )
    unless = ", or leave out probes=" if group in _DEFAULT else ""
    return (
        f"Record it with propkit.attach(model, ..., probes=[{group!r}]){unless}; "
        f"`python -m propkit train RECIPE -o run.zarr --set probes={group}` records it too"
    )


def configured(run: RunLike, key: str) -> Any:
    """What a run's configuration says under a name, see `propkit.store.collection.setting`; None: nothing."""
    from propkit.store.collection import ABSENT, setting

    value = setting(run, key)  # type: ignore[arg-type]  # it looks at what a RunLike has
    return None if value is ABSENT else value


def _opened(run: AnyRun) -> list[tuple[str, RunLike]]:
    """The runs that are meant, each with the label that a study gives it, else an empty one."""
    if isinstance(run, (str, os.PathLike)):
        if "://" in os.fspath(run):
            from propkit.store.run import open as open_run

            return [("", open_run(run))]
        from propkit.store.collection import find_runs

        return [("", one) for one in find_runs([run])[0]]
    if isinstance(getattr(run, "runs", None), Mapping):
        return list(run.runs.items())  # type: ignore[union-attr]  # just looked
    if not hasattr(run, "attributes"):
        raise TypeError(
            f"expected a propkit.Run, the path of one or a propkit.Study, found {type(run).__name__}"
        )
    return [("", run)]  # type: ignore[list-item]  # what is no study is a run


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
