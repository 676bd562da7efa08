"""Many runs as one dataset with a dimension ``run``: seeds, depths, settings."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from propkit.diagnosis.render import Sheet
from propkit.notices import say
from propkit.schema import SITE, STATES, STEP
from propkit.store.alignment import ALIGNMENTS, JOINS, check_choice
from propkit.store.collection import (
    ABSENT,
    AnyRun,
    as_array,
    distinct_labels,
    find_runs,
    setting,
    settings_of,
)
from propkit.store.run import DIED, MissingGroupError, Run

if TYPE_CHECKING:
    import xarray as xr

    Data = TypeVar("Data", xr.Dataset, xr.DataArray)

_ALWAYS = ("seed", "state", "path")
_NAMED = 3
"""How many runs a remark names."""


class Study:
    """Several runs, in one dataset per group with dims (run, step, site); made by `open_study`.

    ``study["error_moment"]`` reads nothing but coordinates; values are read from the runs when they are used, and
    only those that are: ``study["error_moment"]["output"].sel(site="fc")`` costs one site of each run.

    Attributes:
        runs: Label -> `Run`, labels being unique.
        remarks: What was left out when the study was opened.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        by: Sequence[str] = (),
        align: str = SITE,
        join: str = "outer",
        remarks: Sequence[str] = (),
    ) -> None:
        check_choice("align", align, ALIGNMENTS)
        check_choice("join", join, JOINS)
        self.runs = dict(zip(distinct_labels(runs), runs, strict=True))
        self.remarks = tuple(remarks)
        self._by, self._align, self._join = tuple(by), align, join
        values = {key: [setting(run, key) for run in runs] for key in _ALWAYS}
        values |= {key: settings_of(runs, key) for key in self._by}
        self._coordinates = {
            key: as_array(found)
            for key, found in values.items()
            if any(v is not ABSENT and v is not None for v in found)
        }
        self._said: set[str] = set()

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups that a run or several have."""
        return tuple(dict.fromkeys(group for run in self.runs.values() for group in run))

    @property
    def coordinates(self) -> "xr.Dataset":
        """What tells the runs apart, along ``run``: ``seed``, ``state``, ``path`` and the settings asked for."""
        import xarray as xr

        coords: dict[str, Any] = {"run": np.array(list(self.runs), np.str_)}
        return xr.Dataset(coords=coords | {k: ("run", v) for k, v in self._coordinates.items()})

    def map(
        self,
        function: "Callable[[Run], Data]",
        *,
        align: str | None = None,
        join: str | None = None,
    ) -> "Data":
        """What a function gives for each run, side by side along ``run``.

        ::

            study.map(lambda run: run.derived.error_ratio())                       # a derived quantity
            study.map(lambda run: run.spectrum("fc"))                              # (run, step, singular_value)
            study.map(lambda run: run["log"].isel(step=-1).reset_coords("step"))   # whatever the last step was

        Args:
            function: Of a run, a Dataset or DataArray. Runs that lack the group it asks for, or have no row of it yet,
                are left out with a remark.
            align: What sites are matched by; the study's if None. See `open_study`.
            join: Which steps to keep; the study's if None.

        Raises:
            MissingGroupError: No run has the group.
            TypeError: The function gives something else.
            ValueError: The runs cannot be matched; the message says why.
        """
        align, join = align or self._align, join or self._join
        check_choice("align", align, ALIGNMENTS)
        check_choice("join", join, JOINS)
        from propkit.store.stack import RUN, stack

        found, variable, name = self._apply(function)
        whole: Any = stack(found, align, join)
        chosen = [i for i, label in enumerate(self.runs) if label in found]
        for key, values in self._coordinates.items():
            if key in whole.variables or key in whole.dims:
                self._say(f"the data has its own {key!r}: the runs' {key!r} is left out of it")
            else:
                whole = whole.assign_coords({key: (RUN, values[chosen])})
        result: Data = whole[variable].rename(name) if variable else whole
        return result

    def select(self, predicate: Callable[[Run], bool] | None = None, **settings: object) -> "Study":
        """The study of some of the runs.

        Args:
            predicate: Whether to keep a run.
            **settings: A value, or a list of values of which a run must have one: ``seed=[0, 1]``,
                ``state="complete"``, ``label="plain44-ortho"``, ``lr=0.1``; see `open_study` for the names.

        Raises:
            KeyError: No run has such a setting.
            ValueError: No run is left; the message says which values there are.
        """
        runs = list(self.runs.values())
        kept = [predicate is None or bool(predicate(run)) for run in runs]
        for key, wanted in settings.items():
            several = isinstance(wanted, list | tuple | set | frozenset | range)
            allowed = list(wanted) if several else [wanted]  # type: ignore[call-overload]  # a list gives a list
            values = list(self.runs) if key == "run" else settings_of(runs, key)
            kept = [k and v in allowed for k, v in zip(kept, values, strict=True)]
            if not any(kept):
                there = ", ".join(dict.fromkeys(repr(v) for v in values if v is not ABSENT))
                raise ValueError(f"no run is left with {key}={wanted!r}; there are {there}")
        if not any(kept):
            raise ValueError(f"no run is left of {', '.join(self.runs)}")
        chosen = [run for run, keep in zip(runs, kept, strict=True) if keep]
        return Study(chosen, self._by, self._align, self._join, self.remarks)

    def refresh(self) -> "Study":
        """The same runs as they are now; runs that are new are found by `open_study`."""
        runs = [run.refresh() for run in self.runs.values()]
        return Study(runs, self._by, self._align, self._join, self.remarks)

    def print(self) -> None:
        """Print the table of the runs in the terminal, all of it."""
        from rich.console import Console

        Console().print(self._sheet().rich())

    def __getitem__(self, group: str) -> "xr.Dataset":
        """One group of all runs, dims (run, step, site); runs without it are left out with a remark.

        Raises:
            KeyError: No run has it; the message says how to record it.
        """
        return self.map(lambda run: run[group])

    def __contains__(self, group: object) -> bool:
        return group in self.groups

    def __iter__(self) -> Iterator[str]:
        return iter(self.groups)

    def __repr__(self) -> str:
        return self._sheet().text()

    def _repr_html_(self) -> str:
        return self._sheet().html()

    def _apply(
        self, function: "Callable[[Run], Data]"
    ) -> "tuple[dict[str, xr.Dataset], str, object]":
        """Label -> what the function gives; for arrays also the variable they are in and their name."""
        import xarray as xr

        found: dict[str, xr.Dataset] = {}
        empty: dict[str, xr.Dataset] = {}
        left_out: list[str] = []
        missing: MissingGroupError | None = None
        variable, names = "", set()
        for label, run in self.runs.items():
            try:
                result: Any = function(run)
            except MissingGroupError as error:
                missing = missing or error
                what = str(error).split(": ")[0].removeprefix(f"run {run.label!r} ")
                left_out.append(f"run {label!r} {what}")
                continue
            if isinstance(result, xr.DataArray):
                variable = "_value"
                names.add(result.name)
                result = result.rename(variable).to_dataset()
            if not isinstance(result, xr.Dataset):
                raise TypeError(
                    f"expected a Dataset or DataArray of each run, found {type(result).__name__} for {label!r}"
                )
            (found if result.sizes.get(STEP, 1) else empty)[label] = result
        if found:
            left_out += [f"run {label!r} has no row of it yet" for label in empty]
        elif empty:
            found = empty
        elif missing is not None:
            raise missing
        if left_out:
            more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
            self._say(f"left out of the study: {'; '.join(left_out[:_NAMED])}{more}")
        return found, variable, names.pop() if len(names) == 1 else None

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            say(text)

    def _sheet(self) -> Sheet:
        shown = [key for key in self._coordinates if key not in ("path", "state")]
        groups = self.groups
        rows = []
        for i, (label, run) in enumerate(self.runs.items()):
            last = max(
                (c.last_step for c in run.contents.values() if c.last_step is not None),
                default=None,
            )
            own = [str(self._coordinates[key][i]) for key in shown]
            rows.append([label, *own, "" if last is None else str(last), run.state])
        colors = [_COLORS.get(row[-1], "") for row in rows]
        numeric = [
            False,
            *(self._coordinates[key].dtype.kind in "if" for key in shown),
            True,
            False,
        ]
        return Sheet(
            f"<propkit.Study: {len(self.runs)} runs, aligned by {self._align}, {self._join} join of steps>",
            ["run", *shown, "last step", "state"],
            rows,
            colors,
            numeric,
            [*(self._holders(group) for group in groups), *self._unfinished(), *self.remarks],
        )

    def _holders(self, group: str) -> str:
        have = [run for run in self.runs.values() if group in run]
        variables = dict.fromkeys(v for run in have for v in run.contents[group].variables)
        some = f" (in {len(have)} of the runs)" if len(have) < len(self.runs) else ""
        return f"{group}{some}: {', '.join(variables)}"

    def _unfinished(self) -> Iterable[str]:
        running = [label for label, run in self.runs.items() if run.state == STATES[0]]
        if running:
            more = ", ..." if len(running) > _NAMED else ""
            yield f"still being written, as of now: {', '.join(running[:_NAMED])}{more}; refresh() reads on"


_COLORS = {STATES[0]: "blue", STATES[2]: "tan", STATES[3]: "red", DIED: "red"}


def open_study(
    runs: AnyRun | Iterable[AnyRun],
    *,
    by: str | Sequence[str] = (),
    align: str = SITE,
    join: str = "outer",
) -> Study:
    """Open many runs as one dataset.

    ::

        study = propkit.open_study("runs/*.zarr", by=["lr"])             # ["s3://bucket/runs/*.zarr", "here.zarr"]
        study["error_moment"]["output"].sel(site="fc").mean("run")       # over seeds
        study.select(lr=0.1)["log"]["loss"].plot(hue="run")
        propkit.open_study("depths/*.zarr", align="relative_depth")      # networks of different depths

    Args:
        runs: A pattern of paths, a folder of runs, or several paths, patterns or runs; URLs as in `propkit.open`.
        by: Settings of the runs to have as coordinates along ``run``, beside ``seed``, ``state`` and ``path``: keys of
            their configuration (``"lr"``, or ``"recipe.lr"`` where that is not unique), or root attributes
            (``"device"``).
        align: How the sites of different networks are matched. ``"site"``: by name; a run has NaN at sites that it
            lacks. ``"depth"``: by depth, the dimension being ``depth``. ``"relative_depth"``: 0 for the first site, 1
            for the last; on those of the run with most sites, each other run gives its nearest site, no value being
            interpolated. For the last two a depth must belong to one site.
        join: ``"outer"``: all steps, NaN where a run lacks one; ``"inner"``: the steps that all runs have.

    Raises:
        ImportError, OSError: There is no such run, nothing matches, or what is at a URL cannot be read or listed.
        KeyError: No run has a setting of `by`.
        TypeError: Something is neither a run nor a path.
        ValueError: A path is no run, or an argument is wrong.
    """
    found, remarks = find_runs(runs)
    return Study(found, [by] if isinstance(by, str) else list(by), align, join, remarks)
