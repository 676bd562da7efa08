"""What a writer of runs does, wherever it puts them."""

from collections.abc import Mapping
from typing import Protocol

from propkit.schema import Group
from propkit.store.table import Floats, Steps


class Writer(Protocol):
    """Where a recorder puts its rows; used from one thread at a time.

    Nothing becomes visible to readers before `commit`, and then everything at once.
    """

    def define(self, group: Group) -> None:
        """Add a group with no rows.

        A group may be defined again with more variables, and with more sites after those there are: NaN in its
        earlier rows.

        Raises:
            ValueError: Its names or coordinates cannot be stored, or it exists and would not grow so.
        """

    def append(self, group: str, step: Steps, columns: Mapping[str, Floats]) -> None:
        """Take a copy of R rows.

        Args:
            group: Name of a group that was defined.
            step: Steps of the rows, shape (R,), increasing and larger than all before.
            columns: Variable name -> values, shape (R, S), (R, S, K) with a fixed axis of its own, (R, V) with a ragged
                one, or (R,) where the group has no sites. A variable that is left out is not available (NaN) in these
                rows.

        Raises:
            ValueError: No such group or variable, a wrong shape, steps that do not increase, or
                the run is closed.
        """

    def update(self, **attributes: object) -> None:
        """Set root attributes, visible at the next commit; see `attributes.to_json` for the values."""

    def commit(self) -> None:
        """Make everything since the last commit visible, atomically.

        Raises:
            OSError: It could not be written. Nothing has changed, neither for readers nor for the
                writer: call it again.
        """

    def close(self, state: str, reason: str = "") -> None:
        """Commit for the last time and let the store go; more calls do nothing.

        Args:
            state: How the run ended: ``"complete"``, ``"interrupted"`` or ``"failed"``.
            reason: Why, in words.

        Raises:
            ValueError: A run cannot end in that state.
            OSError: As `commit`; the run is still open and may be closed again.
        """
