"""Arguments of `propkit.attach` of a wrong type: found before anything is created or put into a model."""

import re
from collections.abc import Collection, Iterable
from typing import Any

import torch

from propkit.probe import Probe


def check_arguments(
    *,
    optimizer: object,
    scaler: object,
    probes: object,
    include: object,
    exclude: object,
    blocks: object,
    config: object,
) -> None:
    """Refuse arguments of `propkit.attach`.

    Raises:
        TypeError: One has the wrong type; the message names it, what was expected and what was found.
    """
    if not isinstance(optimizer, torch.optim.Optimizer | None):
        raise _wrong(
            "optimizer",
            "a torch.optim.Optimizer",
            optimizer,
            "for a loop without one leave it out and call recorder.step() once per step",
        )
    if not (scaler is None or _is_scaler(scaler)):
        raise _wrong(
            "scaler", "the training's torch.amp.GradScaler", scaler, "leave it out if there is none"
        )
    if not isinstance(probes, str | Probe | Iterable | None):
        raise _wrong(
            "probes",
            "names of probes, or functions decorated with @propkit.probe",
            probes,
            "write a list of them, such as ['weight', 'activation']",
        )
    for name, pattern in (("include", include), ("exclude", exclude)):
        if not isinstance(pattern, str | re.Pattern | None):
            raise _wrong(
                name,
                "a regular expression for the whole names of modules",
                pattern,
                "several names are written as 'first|second'",
            )
    if not (isinstance(blocks, str | None) or _are_names(blocks)):
        raise _wrong(
            "blocks",
            "a regular expression for the whole names of modules",
            blocks,
            "several names are written as 'first|second'",
        )
    if not (config is None or (hasattr(config, "keys") and not isinstance(config, type))):
        raise _wrong("config", "a dict of settings", config, "of a namespace give vars(...)")


def _is_scaler(value: Any) -> bool:
    """Whether it is an instance of a scaler, PyTorch's or one like it."""
    return (
        not isinstance(value, type)
        and callable(getattr(value, "update", None))
        and hasattr(value, "_scale")
    )


def _are_names(value: object) -> bool:
    return isinstance(value, Collection) and all(isinstance(name, str) for name in value)


def _wrong(argument: str, expected: str, found: object, remedy: str) -> TypeError:
    what = (
        f"the class {found.__name__}, not an instance"
        if isinstance(found, type)
        else f"{type(found).__name__} {found!r:.60}"
    )
    return TypeError(f"{argument}: expected {expected}, found {what}; {remedy}")
