"""Which runs belong to a study: found by path or pattern, each with a label of its own and what tells it apart."""

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from propkit.store.root import local
from propkit.store.run import Run
from propkit.store.run import open as open_run
from propkit.store.search import OPENED_AT_ONCE, natural, nothing_matches, runs_at

AnyRun = Run | str | os.PathLike[str]
"""A run, the path or URL of one, a folder of runs, or a pattern of paths."""

ABSENT = object()
"""What `setting` returns where a run does not have it."""


def find_runs(source: AnyRun | Iterable[AnyRun]) -> tuple[list[Run], list[str]]:
    """Open the runs that are meant.

    Args:
        source: A pattern such as ``"runs/*.zarr"`` (``**`` goes through folders), a folder of runs, the path of a run,
            URLs for these (see `propkit.store.search.runs_at`), a `Run`, or several of them.

    Returns:
        The runs, those of a pattern in the order of their names (``seed2`` before ``seed10``), and remarks on
        what a pattern matched that is no run.

    Raises:
        FileNotFoundError: Nothing matches a pattern, or a path does not exist.
        ImportError: A URL needs a package that is not installed.
        OSError: What is at a URL cannot be reached or listed.
        TypeError: Something is neither a run nor a path.
        ValueError: A path is no run, or no run was given.
    """
    items = [source] if isinstance(source, Run | str | os.PathLike) else list(source)
    for item in items:
        if not isinstance(item, Run | str | os.PathLike):
            raise TypeError(
                f"expected runs, paths or patterns of paths, found {type(item).__name__}"
            )
    runs: list[Run] = []
    remarks: list[str] = []
    with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:  # answers of servers are waited for together
        urls = {item: pool.submit(runs_at, item) for item in items if _is_url(item)}
        for item in items:
            if isinstance(item, Run):
                runs.append(item)
                continue
            found, left_out = urls[item].result() if item in urls else _runs_here(item)
            runs += found
            remarks += left_out
    if not runs:
        raise ValueError("no run was given")
    return runs, remarks


def distinct_labels(runs: Sequence[Run]) -> list[str]:
    """A label for each run: its own, with the seed, the path or a number where several runs share it."""
    labels = [run.label for run in runs]
    result: list[str] = []
    for run, label in zip(runs, labels, strict=True):
        twins = [r for r, other in zip(runs, labels, strict=True) if other == label]
        mark = _distinction(run, twins) if len(twins) > 1 else ""
        wanted = candidate = f"{label} ({mark})" if mark else label
        number = 1
        while candidate in result:
            number += 1
            candidate = f"{wanted} ({number})"
        result.append(candidate)
    return result


def setting(run: Run, key: str) -> Any:
    """What a run says of itself under a name.

    Args:
        run: The run.
        key: ``"seed"``, ``"state"``, ``"label"``, ``"path"``, a root attribute such as ``"device"``, or a key of its
            configuration: ``"recipe.lr"``, or ``"lr"`` where only one part of the configuration has an ``lr``.

    Returns:
        The value, or `ABSENT`.

    Raises:
        ValueError: The configuration has several keys of that name.
    """
    own = {"label": run.label, "state": run.state, "path": place_of(run)}
    if key in own:
        return own[key]
    config = dict(_flat(run.attributes.get("config") or {}))
    if key in config:
        return config[key]
    if key != "config" and run.attributes.get(key) is not None:
        return run.attributes[key]
    ends = [name for name in config if name.endswith(f".{key}")]
    if len(ends) > 1:
        raise ValueError(
            f"{key!r} may be {' or '.join(map(repr, ends))} in the configuration of run {run.label!r}: say which"
        )
    return config[ends[0]] if ends else ABSENT


def place_of(run: Run) -> str:
    """The path or URL of a run; empty in memory and in stores that were opened before."""
    return run.name if run.path or "://" in run.name else ""


def settings_of(runs: Sequence[Run], key: str) -> list[Any]:
    """`setting` of each run.

    Raises:
        KeyError: No run has it; the message says in which settings the runs differ.
        ValueError: See `setting`.
    """
    values = [setting(run, key) for run in runs]
    if all(value is ABSENT for value in values):
        raise MissingSettingError(f"no run has {key!r} in its configuration; {_differing(runs)}")
    return values


class MissingSettingError(KeyError):
    """No run has such a setting; unlike KeyError's, the message is printed as it is."""

    def __str__(self) -> str:
        return str(self.args[0])


def as_array(values: Sequence[Any]) -> npt.NDArray[Any]:
    """Settings of several runs as an array of numbers if they are numbers, else of text; NaN or "" where absent.

    >>> as_array([1, ABSENT]), as_array(["a", None, [1, 2]])
    (array([ 1., nan]), array(['a', '', '[1, 2]'], dtype='<U6'))
    """
    known = [None if value is ABSENT else value for value in values]
    there = [value for value in known if value is not None]
    if there and all(isinstance(value, bool) for value in known):
        return np.array(known)
    if there and all(isinstance(v, int | float) and not isinstance(v, bool) for v in there):
        return np.array(known, np.float64 if None in known else None)
    return np.array(["" if value is None else str(value) for value in known], np.str_)


def _pattern(place: Path) -> str | None:
    """The pattern that a path stands for; None if it is the path of a run."""
    if place.exists():
        folder = place.is_dir() and not (place / "zarr.json").exists()
        return os.path.join(glob.escape(str(place)), "*") if folder else None  # noqa: PTH118 - a pattern
    return str(place) if glob.has_magic(str(place)) else None


def _is_url(item: object) -> TypeGuard[str]:
    return isinstance(item, str) and "://" in item and not item.startswith("file://")


def _runs_here(item: str | os.PathLike[str]) -> tuple[list[Run], list[str]]:
    """The runs that a path stands for, and remarks."""
    place = local(os.fspath(item).removeprefix("file://"))
    pattern = _pattern(place)
    if pattern is None:
        return [open_run(place)], []
    runs: list[Run] = []
    remarks: list[str] = []
    for path in sorted(glob.glob(pattern, recursive=True), key=natural):  # noqa: PTH207 - pathlib's also takes hidden files
        try:
            runs.append(open_run(path))
        except (OSError, ValueError) as error:
            remarks.append(f"left out: {error}")
    if not runs:
        raise nothing_matches(pattern, remarks)
    return runs, remarks


def _distinction(run: Run, twins: Sequence[Run]) -> str:
    """What tells a run from those of the same label: the seed, or as much of the path as it takes."""
    seeds = [r.attributes.get("seed") for r in twins]
    if None not in seeds and len(set(map(str, seeds))) == len(twins):
        return f"seed {run.attributes['seed']}"
    if all(map(place_of, twins)):
        for parts in range(1, 5):
            tails = ["/".join(PurePath(place_of(r)).with_suffix("").parts[-parts:]) for r in twins]
            if len(set(tails)) == len(twins):
                return tails[list(twins).index(run)]
    return ""


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _differing(runs: Sequence[Run]) -> str:
    configs = [dict(_flat(run.attributes.get("config") or {})) for run in runs]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    differ = [k for k in keys if len({str(config.get(k)) for config in configs}) > 1]
    shown = differ or keys
    kind = "they differ in" if differ else "they have"
    return (
        f"{kind} {', '.join(shown[:12])}{', ...' if len(shown) > 12 else ''}"
        if shown
        else ("their configuration is empty (propkit.attach(..., config={...}) remembers one)")
    )
