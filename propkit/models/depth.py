"""How many blocks per stage make a network of a given depth."""


def blocks_per_stage(depth: int, layers: int, extra: int) -> int:
    """n, for a network of ``layers * n + extra`` layers.

    Args:
        depth: Layers that have weights, as the network's name counts them.
        layers: How many each n adds: layers of a block times stages.
        extra: Layers outside the blocks.

    Raises:
        ValueError: There is no such n >= 1; the message names the nearest depths.

    Example:
        >>> blocks_per_stage(164, 9, 2)
        18
    """
    n, rest = divmod(depth - extra, layers)
    if n < 1 or rest:
        below = layers * max(n, 1) + extra
        raise ValueError(
            f"depth must be {layers}n+{extra}, found {depth}; "
            f"the nearest are {below} and {below + layers}"
        )
    return n
