"""The hooks on a model, as the recorder sees them."""

from typing import Protocol

from propkit.hooks.taps import Place


class Hooks(Protocol):
    """What the recorder needs of the hooks on the model (see `propkit.hooks.taps.Taps`)."""

    places: dict[tuple[str, int], Place]
    disabled: set[str]

    def install(self, probes: frozenset[str]) -> None:
        """Measure these probes from now on."""

    def remove(self) -> None:
        """Take out every hook."""

    def finish_step(self) -> None:
        """Measure what the step changed."""

    def stop_discovering(self) -> None:
        """The places are known."""
