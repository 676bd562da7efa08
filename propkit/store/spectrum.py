"""One site's values of a variable that has a dimension of its own: its spectrum."""

import difflib
from typing import TYPE_CHECKING

import numpy as np

from propkit.schema import ROW_SIZE, SITE, SITE_INDEX, STEP

if TYPE_CHECKING:
    import xarray as xr


class SpectrumKeyError(KeyError):
    """No such site, step or variable; unlike KeyError's, the message is printed as it is."""

    def __str__(self) -> str:
        return str(self.args[0])


def spectrum(
    dataset: "xr.Dataset",
    site: str,
    *,
    group: str,
    step: int | None = None,
    method: str | None = None,
    variable: str | None = None,
) -> "xr.DataArray":
    """See `propkit.store.run.Run.spectrum`."""
    found = dataset[_variable(dataset, group, variable)]
    names = [str(name) for name in dataset[SITE].values]
    if site not in names:
        close = difflib.get_close_matches(str(site), names, 3, 0.4)
        hint = f"did you mean {', '.join(close)}?" if close else f"it has {_some(names)}"
        raise SpectrumKeyError(f"group {group!r} has no site {site!r}: {hint}")
    position = names.index(site)
    if SITE in found.dims:
        found = found.isel({SITE: position})
    else:
        # One site's values lie together: a slice of the store is read, not all of it.
        ends = np.cumsum(dataset[ROW_SIZE].values)
        start, stop = (int(ends[position - 1]) if position else 0), int(ends[position])
        own = {SITE: dataset[SITE].isel({SITE: position})}
        found = found.isel({found.dims[-1]: slice(start, stop)}).drop_vars(SITE_INDEX)
        found = found.assign_coords(own)
    if step is None:
        return found
    return found.isel({STEP: _row(dataset[STEP].values.tolist(), step, method, group)})


def _variable(dataset: "xr.Dataset", group: str, variable: str | None) -> str:
    own = [str(n) for n, v in dataset.data_vars.items() if set(v.dims) - {STEP, SITE}]
    if not own:
        raise SpectrumKeyError(
            f"group {group!r} has no spectra: {_some(list(map(str, dataset.data_vars)))} are one number per site, as "
            f"in run[{group!r}]. The probe 'singular_values' records spectra"
        )
    if variable is None:
        if len(own) > 1:
            raise SpectrumKeyError(
                f"group {group!r} has several spectra; say variable= one of {', '.join(own)}"
            )
        return own[0]
    if variable not in own:
        raise SpectrumKeyError(
            f"group {group!r} has no spectrum {variable!r}, only {', '.join(own)}"
        )
    return variable


def _row(steps: list[int], step: int, method: str | None, group: str) -> int:
    if method not in (None, "nearest"):
        raise ValueError(f"method={method!r}: expected None (that very step) or 'nearest'")
    if not steps:
        raise SpectrumKeyError(f"group {group!r} has no rows yet")
    distance = np.abs(np.array(steps) - step)
    nearest = int(distance.argmin())
    if distance[nearest] and method is None:
        raise SpectrumKeyError(
            f"group {group!r} has no step {step}, it has {_some(steps)}; the nearest is {steps[nearest]}: "
            "give that, or method='nearest'"
        )
    return nearest


def _some(items: list[int] | list[str]) -> str:
    shown = [str(i) for i in (items if len(items) <= 8 else [*items[:4], "...", *items[-3:]])]
    return ", ".join(shown)
