"""Independent random streams from one seed."""

import numpy as np
import torch

STREAMS = ("init", "shuffle", "augment")
"""What draws random numbers; each has a generator of its own, so that none disturbs another."""


def generator(seed: int, stream: str) -> torch.Generator:
    """A CPU generator for one of `STREAMS`, the same on every machine and device.

    Args:
        seed: The run's seed, at least 0.
        stream: What the numbers are for.

    Raises:
        ValueError: The stream is unknown or the seed negative.
    """
    if stream not in STREAMS:
        raise ValueError(f"stream must be one of {', '.join(STREAMS)}, found {stream!r}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, found {seed}")
    sequence = np.random.SeedSequence(seed, spawn_key=(STREAMS.index(stream),))
    # torch wants a signed 64-bit seed.
    return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))
