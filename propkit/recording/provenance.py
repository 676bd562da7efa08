"""What a run says of itself: versions, command, host, model, configuration."""

import contextlib
import datetime
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from propkit import __version__
from propkit.redaction import redacted_command, redacted_settings
from propkit.schema import SCHEMA_VERSION


def describe_run(
    model: nn.Module, label: str | None, config: Mapping[str, Any] | None, seed: int | None
) -> dict[str, Any]:
    """Root attributes of a new run, all JSON-able, without secrets (see `propkit.redaction`).

    Raises:
        TypeError: `config` cannot be written as JSON; the message names the key.
    """
    config = dict(config or {})
    for key, value in config.items():
        try:
            json.dumps({key: value})
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"config[{key!r}] cannot be written as JSON ({error}); give numbers, strings, lists and dicts"
            ) from error
    device = next((p.device.type for p in model.parameters()), "cpu")
    return {
        "schema_version": SCHEMA_VERSION,
        "propkit_version": __version__,
        "torch_version": torch.__version__,
        "python_version": platform.python_version(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "command": redacted_command(sys.argv),
        "git_commit": _git_commit(),
        "label": label or "",
        "config": redacted_settings(config),
        "seed": seed,
        "device": device,
        "model": type(model).__name__,
        "model_summary": summarize(model),
        "state": "running",
        "reason": "",
        "notes": [],
        "faults": {},
    }


def summarize(model: nn.Module) -> str:
    """One line: class, number of parameters, number of modules by class, the most frequent first."""
    kinds: dict[str, int] = {}
    for module in model.modules():
        if next(module.children(), None) is None:
            kinds[type(module).__name__] = kinds.get(type(module).__name__, 0) + 1
    listed = ", ".join(f"{n} {k}" for k, n in sorted(kinds.items(), key=lambda item: -item[1])[:6])
    parameters = sum(0 if nn.parameter.is_lazy(p) else p.numel() for p in model.parameters())
    return f"{type(model).__name__}: {parameters:,} parameters; {listed}"


def _git_commit() -> str:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=2, check=False
        )
        return found.stdout.strip() if found.returncode == 0 else ""
    return ""
