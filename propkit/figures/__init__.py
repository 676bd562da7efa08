"""Figures of recorded runs: one file per figure, ``figure(run)`` -> `matplotlib.figure.Figure`.

::

    propkit.figures.fig3(run)                             # one run
    propkit.figures.fig3("l2.zarr", "orthonormal.zarr")   # several are compared
    python -m propkit.figures fig3 run.zarr -o fig3.pdf   # the same from a shell
    python -m propkit.figures --list

``propkit.figures.names()`` lists them. A figure is a file here that has a function of the file's
name, or an entry point of group ``propkit.figures`` that names a module with such a function.
Nothing here needs torch, uses pyplot or changes matplotlib's settings; nothing is saved unless
asked.
"""

from typing import TYPE_CHECKING

from propkit._lazy import publish
from propkit.figures.registry import MODULES, describe, find, names

if TYPE_CHECKING:
    from propkit.figures.fig2 import fig2
    from propkit.figures.fig3 import fig3
    from propkit.figures.fig4 import fig4

__all__ = ["describe", "fig2", "fig3", "fig4", "find", "names"]

publish(__name__, MODULES)
