"""A compiled model on steps in which nothing is measured: one hook a site, which does nothing.

A graph is guarded by what the hooks hold that it was traced with, some microseconds a layer whenever it runs, and not
by the absence of hooks. So hooks that a graph has are taken out for unsampled steps, and one is left at each site to
tell the graph of these steps from that of the sampled ones.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch.utils.hooks import RemovableHandle

from propkit.hooks.hook import Hook, exporting


class Gate(Hook):
    """What stays at a site. It does nothing; traced, it asks its function whether this is a graph of the recorder's."""

    def __call__(self, *_: Any, **__: Any) -> None:
        """Nothing, in an eager call and in a graph."""
        if torch.compiler.is_dynamo_compiling() and not exporting():
            self.notice(True)

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch has no types for it
    def notice(self, training: bool) -> bool:  # noqa: ARG002 - as every hook's
        """A graph is traced."""
        self.traced = self.function() or self.traced
        return True


class Absent(NamedTuple):
    """A hook that is out, and where it belongs.

    Attributes:
        hooks: The hooks of its kind at its module.
        key: Its own among them.
        hook: The hook.
        before: Keys of those that came before it.
        after: Keys of those that came after it.
        flags: What says of the module's hooks that they take keywords, or are always called, and says so of it.
    """

    hooks: OrderedDict[int, Any]
    key: int
    hook: Any
    before: frozenset[int]
    after: frozenset[int]
    flags: tuple[OrderedDict[int, bool], ...]


def take_out(handles: Iterable[RemovableHandle]) -> list[Absent]:
    """Take hooks out of their modules; their handles stay good."""
    found = []
    for handle in handles:
        hooks = handle.hooks_dict_ref()
        if hooks is not None and handle.id in hooks:
            keys = list(hooks)
            marks = (flags() for flags in handle.extra_dict_ref)
            flags = tuple(m for m in marks if m is not None and handle.id in m)
            place = keys.index(handle.id)
            before, after = frozenset(keys[:place]), frozenset(keys[place + 1 :])
            found.append(Absent(hooks, handle.id, hooks[handle.id], before, after, flags))
    for a in found:
        for mark in (a.hooks, *a.flags):
            del mark[a.key]
    return found


def put_back(absent: Iterable[Absent]) -> None:
    """Put hooks back where they were; hooks of others that came meanwhile keep their order."""
    for a in sorted(absent, key=lambda a: len(a.before)):
        for flags in a.flags:
            flags[a.key] = True
        a.hooks.pop(a.key, None)
        keys = list(a.hooks)
        # Of those that were not there, as another recorder's, the later ones have the greater keys.
        earlier = [k in a.before or (k not in a.after and k < a.key) for k in keys]
        later = keys[max((i + 1 for i, e in enumerate(earlier) if e), default=0) :]
        # Not `move_to_end`: graphs are guarded by the order in the plain dict below, which knows nothing of it.
        for key, hook in [(a.key, a.hook), *((key, a.hooks.pop(key)) for key in later)]:
            a.hooks[key] = hook
