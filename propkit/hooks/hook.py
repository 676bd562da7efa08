"""Hooks that a copied or pickled model carries on as callables that do nothing, and that `torch.compile` may trace."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch


class Hook:
    """A module hook for eager calls; in a graph that is being traced it does nothing."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = torch.compiler.disable(function)  # not compiled by itself either

    def __call__(self, *args: Any) -> None:
        """Call the function, unless a graph is being traced or exported."""
        if not torch.compiler.is_compiling():
            self.function(*args)

    def __reduce__(self) -> Any:
        # takes anything, returns None, needs no propkit
        return getattr, (contextlib.nullcontext(), "__exit__")


class NoticedHook(Hook):
    """A hook that calls its function also while a graph is traced: once per trace, not when the graph runs."""

    def __call__(self, *args: Any) -> None:
        """Call the function."""
        if not torch.compiler.is_compiling():
            self.function(*args)
        elif torch.compiler.is_dynamo_compiling() and torch.is_grad_enabled():
            self.notice()

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # how tracing calls plain Python
    def notice(self) -> bool:
        """Call the function in the middle of a trace."""
        self.function()
        return True
