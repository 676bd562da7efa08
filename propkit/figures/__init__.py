"""Figures of recorded runs: one file per figure, ``figure(run)`` -> `matplotlib.figure.Figure`.

::

    propkit.figures.fig3(run)                             # one run
    propkit.figures.fig3("l2.zarr", "orthonormal.zarr")   # several are compared
    propkit.figures.procrustes_grid("runs/*.zarr")        # a pattern, a folder or a study of them
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
    from propkit.figures.activation_images import activation_images
    from propkit.figures.activations import activations
    from propkit.figures.bn_spectra import bn_spectra
    from propkit.figures.conditioning import conditioning
    from propkit.figures.fig2 import fig2
    from propkit.figures.fig3 import fig3
    from propkit.figures.fig4 import fig4
    from propkit.figures.fig5 import fig5
    from propkit.figures.fig6 import fig6
    from propkit.figures.generalisation_gap import generalisation_gap
    from propkit.figures.intervention import intervention
    from propkit.figures.isometry import isometry
    from propkit.figures.learning_curves import learning_curves
    from propkit.figures.mean_field import mean_field
    from propkit.figures.norm_ratios import norm_ratios
    from propkit.figures.overview import overview
    from propkit.figures.parameter_efficiency import parameter_efficiency
    from propkit.figures.procrustes_grid import procrustes_grid
    from propkit.figures.spectra import spectra
    from propkit.figures.surface import surface

__all__ = [
    "activation_images",
    "activations",
    "bn_spectra",
    "conditioning",
    "describe",
    "fig2",
    "fig3",
    "fig4",
    "fig5",
    "fig6",
    "find",
    "generalisation_gap",
    "intervention",
    "isometry",
    "learning_curves",
    "mean_field",
    "names",
    "norm_ratios",
    "overview",
    "parameter_efficiency",
    "procrustes_grid",
    "spectra",
    "surface",
]

publish(__name__, MODULES)
