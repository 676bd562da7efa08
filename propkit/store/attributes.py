"""Root attributes of a run: how it begins, how it ends, and their form in JSON."""

import json
import math
import os
import socket
from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np

from propkit.redaction import redacted_text
from propkit.schema import SCHEMA_VERSION, STATES
from propkit.store.sync import boot_id


def birth(attributes: Mapping[str, object]) -> dict[str, object]:
    """Root attributes of a run that begins here and now; `attributes` takes precedence."""
    from propkit import __version__

    begun = {
        "schema_version": SCHEMA_VERSION,
        "propkit_version": __version__,
        "created": now(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "state": STATES[0],
        "reason": "",
    }
    return {**begun, **to_json(attributes)}


def ending(state: str, reason: str) -> dict[str, object]:
    """Root attributes of a run that ends.

    Raises:
        ValueError: A run cannot end in that state.
    """
    if state not in STATES[1:]:
        raise ValueError(f"a run ends as one of {', '.join(STATES[1:])}, found {state!r}")
    return {"state": state, "reason": redacted_text(reason)}


def stamp(
    seq: int,
    last: Mapping[str, int | None],
    rows: Mapping[str, int] | None = None,
    durable: Mapping[str, int] | None = None,
    generation: int = 0,
) -> dict[str, object]:
    """The root attribute ``commit``.

    Args:
        seq: Its number.
        last: Group -> last step.
        rows: Group -> number of rows, in a store.
        durable: Group -> number of rows that were on the disk for certain before the commit.
        generation: How often rows were removed by resuming: those who go on reading what they opened in an earlier one
            may meet other rows.

    Returns:
        ``seq``, ``time``, ``last_step``; of a store also ``generation``, and ``rows``, ``durable_rows`` and
        ``boot_id``, by which a reader knows after a power failure which rows to trust.
    """
    steps = {name: step for name, step in last.items() if step is not None}
    commit: dict[str, object] = {"seq": seq, "time": now(), "last_step": steps}
    if generation or rows is not None:
        commit["generation"] = generation
    if rows is not None:
        commit |= {
            "rows": {**rows},
            "durable_rows": {**(durable or {})},
            "boot_id": boot_id(),
        }
    return commit


def now() -> str:
    """The time, ISO 8601, UTC, in milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def to_json(value: Mapping[str, object]) -> dict[str, object]:
    """The attributes in JSON's own types, so that both kinds of runs carry the same ones.

    Numbers that JSON lacks become the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"`` (zarr's
    spelling), arrays and tensors become lists, and what JSON has no type for becomes its text.

    >>> to_json({"loss": float("nan"), "betas": (0.9, 0.99), 3: np.int64(7)})
    {'loss': 'NaN', 'betas': [0.9, 0.99], '3': 7}
    """
    return {str(name): _plain(item) for name, item in value.items()}


def texts(attributes: Mapping[str, object]) -> dict[str, str]:
    """The attributes, each as a member of a JSON object: most of them never change again."""
    return {
        name: f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)}"
        for name, value in to_json(attributes).items()
    }


def _plain(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, np.generic) or (hasattr(value, "tolist") and hasattr(value, "shape")):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return to_json(value)
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)
