"""Figures of recorded runs: one file per figure, ``figure(run)`` -> `matplotlib.figure.Figure`.

::

    propkit.figures.fig3(run)                             # one run
    propkit.figures.fig3("l2.zarr", "orthonormal.zarr")   # several are compared
    python -m propkit.figures fig3 run.zarr -o fig3.pdf   # the same from a shell
    python -m propkit.figures --list

    with propkit.figures.style.use_style("dark"):         # or "paper"
        propkit.figures.overview(run)

``propkit.figures.names()`` lists them. A figure is a file here that has a function of the file's
name, or an entry point of group ``propkit.figures`` that names a module with such a function.
Nothing here needs torch, uses pyplot or changes matplotlib's settings; nothing is saved unless
asked.
"""

from typing import TYPE_CHECKING

from propkit._lazy import publish
from propkit.figures.registry import MODULES, describe, find, names

if TYPE_CHECKING:
    from propkit.figures.activations import activations
    from propkit.figures.bn_spectra import bn_spectra
    from propkit.figures.conditioning import conditioning
    from propkit.figures.fig2 import fig2
    from propkit.figures.fig3 import fig3
    from propkit.figures.fig4 import fig4
    from propkit.figures.isometry import isometry
    from propkit.figures.learning_curves import learning_curves
    from propkit.figures.mean_field import mean_field
    from propkit.figures.norm_ratios import norm_ratios
    from propkit.figures.overview import overview
    from propkit.figures.spectra import spectra
    from propkit.figures.surface import surface

__all__ = [
    "activations",
    "bn_spectra",
    "conditioning",
    "describe",
    "fig2",
    "fig3",
    "fig4",
    "find",
    "isometry",
    "learning_curves",
    "mean_field",
    "names",
    "norm_ratios",
    "overview",
    "spectra",
    "surface",
]

publish(__name__, MODULES)
