"""Hooks that a copied or pickled model carries on as callables that do nothing, and that `torch.compile` may trace."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)
"""Whether the trace under way is an export's."""


compiler_callback: Callable[[], Any] = getattr(
    torch._C._dynamo.eval_frame, "get_eval_frame_callback", lambda: True
)
"""Gives None where no compiler looks at the frames that are entered; keeping it away costs time for nothing there."""


def is_compiled(model: nn.Module) -> bool:
    """Whether the model, or a part of it, is compiled already, so that hooks put in now may never run."""
    return any(
        isinstance(m, torch._dynamo.eval_frame.OptimizedModule)
        or getattr(m, "_compiled_call_impl", None) is not None
        for m in model.modules()
    )


class Hook:
    """A module hook for eager calls; in a graph that is being traced it does nothing."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.uncompiled = torch.compiler.disable(function)
        self.traced = False
        """Whether it is part of a graph, which is guarded by it from then on."""

    def __call__(self, *args: Any) -> None:
        """Call the function, unless a graph is being traced or exported."""
        if not torch.compiler.is_compiling():
            (self.function if compiler_callback() is None else self.uncompiled)(*args)
        elif torch.compiler.is_dynamo_compiling() and not exporting():
            self.notice(torch.is_grad_enabled())

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # how tracing calls plain Python
    def notice(self, training: bool) -> bool:  # noqa: ARG002 - for those that do more
        """Note that a graph is traced; called once per trace, not when the graph runs."""
        self.traced = True
        return True

    @property
    def __name__(self) -> str:
        """There is none; asked for by ``torch.jit.script``, which would compile the hooks of a module.

        Raises:
            AttributeError: Always, with the way out.
        """
        raise AttributeError(
            "propkit observes this model by Python hooks, which torch.jit.script cannot compile: "
            "call recorder.detach() first"
        )

    def __reduce__(self) -> Any:
        # takes anything, returns None, needs no propkit
        return getattr, (contextlib.nullcontext(), "__exit__")


class NoticedHook(Hook):
    """A hook that calls its function also while a graph is traced, with gradients enabled."""

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def notice(self, training: bool) -> bool:
        """Call the function in the middle of a trace."""
        self.traced = True
        if training:
            self.function()
        return True
