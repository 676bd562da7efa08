"""`Run.derived`: derived quantities of one run, by name."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import xarray as xr

from propkit import derived

_NOTES = {
    "residual_bound": "The spectral norm in the group 'weight' does not do: it is that of a kernel as a matrix, not "
    "of the convolution."
}


class Groups(Protocol):
    """What holds the datasets (a `propkit.Run`)."""

    def __getitem__(self, group: str) -> xr.Dataset:
        """One group."""


class Derived:
    """The functions of `propkit.derived`, with the groups that they need taken from a run.

    ``run.derived.error_ratio()`` is ``propkit.derived.error_ratio(run["error_moment"])``; other arguments are
    given by name. A group that is given by name (``run.derived.error_ratio(error_moment=some_steps)``) is not read.
    """

    def __init__(self, run: Groups) -> None:
        self._run = run

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in derived.QUANTITIES:
            raise AttributeError(
                f"no derived quantity {name!r}; there are {', '.join(derived.QUANTITIES)}"
            )
        function: Callable[..., Any] = getattr(derived, name)
        parameters = inspect.signature(function).parameters.values()
        positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
        groups = [p.name for p in parameters if p.kind is positional and p.default is p.empty]

        @functools.wraps(function)
        def bound(**arguments: Any) -> Any:
            given = {group: arguments.pop(group) for group in groups if group in arguments}
            try:
                datasets = self._take(groups, given)
            except KeyError as error:
                error.add_note(
                    f"{name} is computed from {', '.join(groups)}. {_NOTES.get(name, '')}"
                )
                raise
            return function(**datasets, **arguments)

        own = [p.replace(kind=p.KEYWORD_ONLY) for p in parameters if p.name not in groups]
        bound.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]  # what help() shows
        return bound

    def _take(
        self, groups: Sequence[str], given: Mapping[str, xr.Dataset]
    ) -> dict[str, xr.Dataset]:
        """The groups that a quantity needs: those given by name, the others from the run."""
        return {group: given[group] if group in given else self._run[group] for group in groups}

    def __dir__(self) -> list[str]:
        return list(derived.QUANTITIES)

    def __repr__(self) -> str:
        return f"<derived quantities: {', '.join(derived.QUANTITIES)}>"
