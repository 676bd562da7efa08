"""The scale of the loss: what a gradient scaler multiplies it by, so that recorded errors carry none of it."""

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler


class LossScale:
    """The scale of the losses of a training.

    Args:
        scaler: The training's gradient scaler. None: the only enabled one in the process is looked for when the first
            gradient arrives, or when the first step that is made ends.
        ranks: Number of processes whose gradients the training averages: an error of one rank's loss is that many times
            the error of the mean loss.
        note: Told when there are several scalers to choose from.
    """

    def __init__(
        self,
        scaler: GradScaler | None = None,
        ranks: int = 1,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._scaler = scaler
        self._ranks = ranks
        self._constant = torch.tensor(float(ranks)) if ranks > 1 else None
        self._looked = scaler is not None
        self._note = note
        self._restore: Callable[[], None] = lambda: None
        self._on_update: Callable[[], None] | None = None
        self._before_update: torch.Tensor | None = None

    def current(self) -> torch.Tensor | None:
        """The scale, 0-d on the scaler's device; None for 1. The device is not waited for."""
        if not self._looked:
            self.look()
        scale: torch.Tensor | None = None if self._scaler is None else self._scaler._scale
        if self._before_update is not None:
            scale = self._before_update
        if scale is None:
            return self._constant
        return scale if self._ranks == 1 else scale * self._ranks

    def look(self) -> None:
        """Find the scaler, unless that was tried."""
        if not self._looked:
            self._looked = True
            self._scaler = self._find()
            self._listen()

    def on_update(self, callback: Callable[[], None]) -> None:
        """Call `callback` after each ``scaler.update()``, the end of a step whether it was skipped or not.

        `current` is still the scale of that step's losses then.
        """
        self._on_update = callback
        self._listen()

    def remove(self) -> None:
        """Leave the scaler as it was."""
        self._restore()
        self._restore = lambda: None
        self._on_update = None
        self._scaler = None

    def _listen(self) -> None:
        scaler, callback = self._scaler, self._on_update
        if scaler is None or callback is None:
            return
        update = scaler.update

        def watched(*args: Any, **kwargs: Any) -> None:
            scale = scaler._scale
            before = None if scale is None else scale.clone()  # it is changed in place
            update(*args, **kwargs)
            if self._on_update is not None:
                self._before_update = before
                try:
                    self._on_update()
                finally:
                    self._before_update = None

        scaler.update = watched  # type: ignore[method-assign]  # on this instance only

        def restore() -> None:
            if scaler.__dict__.get("update") is watched:
                del scaler.__dict__["update"]

        self._restore = restore

    def _find(self) -> GradScaler | None:
        found = _scalers_in_use()
        if len(found) > 1:
            gc.collect()  # some may be left over from a training that is gone
            found = _scalers_in_use()
        if len(found) > 1:
            self._note(
                f"{len(found)} gradient scalers are in use, so recorded errors keep the scale of the loss: say which "
                "is this training's by attach(..., scaler=...)"
            )
        return found[0] if len(found) == 1 else None


def _scalers_in_use() -> list[GradScaler]:
    """Enabled scalers that have scaled a loss."""
    # By type(): isinstance would ask lazy objects for their __class__, which wakes them.
    scalers = [o for o in gc.get_objects() if issubclass(type(o), GradScaler)]
    return [s for s in scalers if s.is_enabled() and s._scale is not None]
