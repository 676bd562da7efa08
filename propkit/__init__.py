"""propkit: what happens to the signals in your network?

::

    model --attach--> sites --signals--> probes --values--> recorder --rows--> store (zarr)
                                                                                  |
                             figures, report, notebook <--dataset (xarray)--------+

Three lines are enough::

    import propkit
    recorder = propkit.attach(model)     # the training loop stays as it is
    recorder.run["error_moment"]         # xarray.Dataset with dims (step, site)

Importing propkit imports neither torch nor xarray, zarr or matplotlib: each name below loads what it needs when it
is first used.
"""

from typing import TYPE_CHECKING

from propkit._lazy import publish

if TYPE_CHECKING:
    from propkit import data, derived, figures, models, probes, recipes, spectra, training
    from propkit.attach import attach
    from propkit.compatibility import compatibility
    from propkit.measure import measure
    from propkit.module_map import module_map
    from propkit.probe import Probe, probe
    from propkit.recording.recorder import Recorder
    from propkit.schedules import log_spaced
    from propkit.store.run import Run, open
    from propkit.store.study import Study, open_study

__version__ = "0.1.0"
__all__ = [
    "Probe",
    "Recorder",
    "Run",
    "Study",
    "attach",
    "compatibility",
    "data",
    "derived",
    "figures",
    "log_spaced",
    "measure",
    "models",
    "module_map",
    "open",
    "open_study",
    "probe",
    "probes",
    "recipes",
    "spectra",
    "training",
]

publish(
    __name__,
    {
        "Probe": "propkit.probe",
        "Recorder": "propkit.recording.recorder",
        "Run": "propkit.store.run",
        "Study": "propkit.store.study",
        "attach": "propkit.attach",
        "compatibility": "propkit.compatibility",
        "data": "propkit.data",
        "derived": "propkit.derived",
        "figures": "propkit.figures",
        "log_spaced": "propkit.schedules",
        "measure": "propkit.measure",
        "models": "propkit.models",
        "module_map": "propkit.module_map",
        "open": "propkit.store.run",
        "open_study": "propkit.store.study",
        "probe": "propkit.probe",
        "probes": "propkit.probes",
        "recipes": "propkit.recipes",
        "spectra": "propkit.spectra",
        "training": "propkit.training",
    },
)
