"""The architectures that the papers train."""

from typing import TYPE_CHECKING

from propkit._lazy import publish

if TYPE_CHECKING:
    from propkit.models.plain import CifarNet, PlainBlock, plain

__all__ = ["CifarNet", "PlainBlock", "plain"]

publish(
    __name__,
    {
        "CifarNet": "propkit.models.plain",
        "PlainBlock": "propkit.models.plain",
        "plain": "propkit.models.plain",
    },
)
