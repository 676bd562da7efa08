"""Values that are not finite: flagged in the run, and a probe that gives nothing else is switched off."""

from collections.abc import Mapping, Sequence

import numpy as np

from propkit.hooks.taps import Key
from propkit.recording.rows import AnyFloats, Values
from propkit.store.pauses import pause


class Health:
    """What the rows written so far say of the values.

    NaN and inf are data: they are recorded as they are. A probe whose values are all NaN while another probe's are
    finite measures nothing, however; a training that has diverged spoils all of them alike.

    Attributes:
        first: Probe -> where its first value that is not finite was met.
        faults: Probes to be switched off -> why.
    """

    def __init__(self, first: Mapping[str, str] | None = None) -> None:
        self.first = dict(first or {})
        self.faults: dict[str, str] = {}

    def look(self, keys: Sequence[Key], rows: Sequence[Values]) -> None:
        """Look at the values of some rows."""
        something: set[str] = set()
        nothing: set[str] = set()
        found, missing = (np.zeros(len(keys), bool) for _ in range(2))
        for row in rows:
            nan = np.isnan(row.values)
            missing[row.slots[nan]] = True
            found[row.slots[~nan]] = True
            if nan.any() or np.isinf(row.values).any():
                self._flag_slots(row, keys)
            for spectrum in row.spectra:
                key, values = keys[spectrum.slot], spectrum.values
                if not np.isfinite(values).all():
                    self._flag(row.step, key, values)
                if len(values):
                    (nothing if np.isnan(values).all() else something).add(key.probe)
            pause()
        if not (nothing or missing.any()):
            return
        something.update(keys[slot].probe for slot in np.flatnonzero(found).tolist())
        nothing.update(keys[slot].probe for slot in np.flatnonzero(missing).tolist())
        if something:
            for probe in nothing - something:
                self.faults[probe] = "it gave nothing but NaN where other probes gave finite values"

    def hear(self, faults: Sequence[Mapping[str, str]]) -> None:
        """Probes failed on other ranks: rank -> its faults."""
        for rank, here in enumerate(faults):
            for probe, why in here.items() if rank else ():
                self.faults.setdefault(probe, f"on rank {rank}, {why}")

    def unequal(self, key: Key, expected: int | None, found: int) -> None:
        """A rank gave more or fewer values than there are columns; they were left out."""
        self.faults[key.probe] = (
            f"expected {expected} values of {key.variable!r} at {key.site}, found {found} on another rank: the "
            "number must be the same on all ranks"
        )

    def _flag_slots(self, row: Values, keys: Sequence[Key]) -> None:
        """Flag the first slot of each probe that holds a value which is not finite."""
        for slot in np.unique(row.slots[~np.isfinite(row.values)]).tolist():
            if keys[slot].probe not in self.first:
                self._flag(row.step, keys[slot], row.values[row.slots == slot])

    def _flag(self, step: int, key: Key, values: AnyFloats) -> None:
        if key.probe not in self.first:
            found = values[~np.isfinite(values)][0]
            self.first[key.probe] = f"step {step}, {key.site}: {key.variable} is {found}"
