"""Pictures that a probe recorded flat: folded, tiled, and drawn without an axis."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib.axes import Axes

from propkit.figures.runs import FigureError

Floats = npt.NDArray[np.float64]


def folded(dataset: xr.Dataset, site: int, sizes: Sequence[str], figure: str) -> Floats:
    """One site's values at all steps of a dataset, in the shape that was recorded beside them.

    Args:
        dataset: A group with the ragged variable ``value``, and `sizes`.
        site: Position of the site.
        sizes: Variables that hold the lengths of the last dimensions.
        figure: Who asks, for the message.

    Returns:
        (step, ..., *sizes), float64; the dimension before the last ones is as long as it has to be.

    Raises:
        FigureError: The values do not fold so.
    """
    ends = np.cumsum(dataset["row_size"].values)
    start = int(ends[site] - dataset["row_size"].values[site])
    flat = dataset["value"].isel({dataset["value"].dims[1]: slice(start, int(ends[site]))})
    known = [dataset[name].isel(site=site).values for name in sizes]
    shape = [int(values[np.isfinite(values)][0]) if np.isfinite(values).any() else 0 for values in known]  # fmt: skip
    if min(shape, default=0) < 1 or flat.shape[1] % int(np.prod(shape)):
        name = str(dataset["site"].values[site])
        raise FigureError(
            f"{figure}: the {flat.shape[1]} values of {name!r} cannot be folded to "
            f"{' x '.join(map(str, shape))}; is the run complete?"
        )
    return np.asarray(flat.values, dtype=np.float64).reshape(len(flat), -1, *shape)


def tiled(tiles: Floats, columns: int, gap: int = 1) -> Floats:
    """One picture of many of the same size, with gaps of NaN.

    Args:
        tiles: (count, height, width) or (count, height, width, channels).
        columns: Tiles to a row.
        gap: Pixels between two tiles.

    >>> tiled(np.arange(3.0).reshape(3, 1, 1), 2)
    array([[ 0., nan,  1.],
           [nan, nan, nan],
           [ 2., nan, nan]])
    """
    count, height, width, *rest = tiles.shape
    rows = -(-count // columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, *rest)
    whole = np.full(shape, np.nan)
    for i, tile in enumerate(tiles):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        whole[y : y + height, x : x + width] = tile
    return whole


def bare(ax: Axes) -> None:
    """Axes without ticks, lines and grid."""
    ax.grid(visible=False)
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)
