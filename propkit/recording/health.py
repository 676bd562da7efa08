"""Values that are not finite: flagged in the run, and a probe that gives nothing else is switched off."""

from collections.abc import Sequence

import numpy as np

from propkit.hooks.taps import Key
from propkit.recording.rows import Floats, Values


class Health:
    """What the rows written so far say of the values.

    NaN and inf are data: they are recorded as they are. A probe whose values are all NaN while another probe's are
    finite measures nothing, however; a training that has diverged spoils all of them alike.

    Attributes:
        first: Probe -> where its first value that is not finite was met.
        useless: Probes that have given nothing but NaN.
    """

    def __init__(self) -> None:
        self.first: dict[str, str] = {}
        self.useless: set[str] = set()

    def look(self, keys: Sequence[Key], rows: Sequence[Values]) -> None:
        """Look at the values of some rows."""
        something: set[str] = set()
        nothing: set[str] = set()
        for row in rows:
            finite = np.isfinite(row.values)
            for slot in np.unique(row.slots[~finite]).tolist():
                key = keys[slot]
                if key.probe not in self.first:
                    found = _first(row.values[row.slots == slot])
                    self.first[key.probe] = (
                        f"step {row.step}, {key.site}: {key.variable} is {found}"
                    )
            something.update(
                keys[slot].probe for slot in np.unique(row.slots[~np.isnan(row.values)])
            )
            nothing.update(keys[slot].probe for slot in np.unique(row.slots[np.isnan(row.values)]))
        if something:
            self.useless |= nothing - something


def _first(values: Floats) -> str:
    return str(values[~np.isfinite(values)][0])
