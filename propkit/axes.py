"""Dimensions that variables of one probe may have beside step and site."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from propkit.schema import COORDINATES, ROW_SIZE, SITE, SITE_INDEX, STEP

if TYPE_CHECKING:
    from propkit.probe import Measurement


def check_axes(measurements: "Sequence[Measurement]") -> None:
    """Refuse dimensions that one group cannot have.

    Raises:
        ValueError: A name is taken or no identifier, coordinates contradict each other, or two dimensions are ragged.
    """
    name = measurements[-1].function.__name__
    taken = {STEP, SITE, ROW_SIZE, SITE_INDEX, *COORDINATES}
    found: dict[str, tuple[float, ...] | None] = {}
    for m in measurements:
        for variable, dim in m.dims.items():
            if dim in taken or dim in m.dims or not dim.isidentifier():
                raise ValueError(
                    f"probe function {name!r}: {variable!r} cannot lie along {dim!r}; give the dimension a name that "
                    f"is a Python identifier, no variable and none of {', '.join(sorted(taken))}"
                )
            if found.setdefault(dim, m.coords.get(dim)) != m.coords.get(dim):
                raise ValueError(
                    f"probe function {name!r}: dimension {dim!r} has two sets of coords in one probe"
                )
            if not m.coords.get(dim, (0.0,)):
                raise ValueError(f"probe function {name!r}: coords[{dim!r}] is empty")
    ragged = [dim for dim, values in found.items() if values is None]
    if len(ragged) > 1:
        raise ValueError(
            f"probe function {name!r}: one ragged dimension per probe, found {', '.join(ragged)}; give coords to the "
            "others, or make another probe of them"
        )
