"""The compiler's cache: a function has a limited number of graphs, and a recorder's graphs count among them."""

import sys
import types

import torch
from torch._dynamo import eval_frame


class GraphCache:
    """The functions whose graphs hold one recorder's hooks.

    The compiler keeps at most ``torch._dynamo.config.recompile_limit`` graphs of one function (8 by default), for all
    models of a class together. Beyond that it runs the function eagerly, or raises an error under ``fullgraph=True``.
    A recorder takes two graphs or more for each one of the model's own, which nothing can use once it is detached.

    Args:
        unsaid: Takes a warning if a function may soon be compiled no more, once.
    """

    def __init__(self, unsaid: list[str]) -> None:
        self._unsaid = unsaid
        self._functions: dict[int, types.CodeType] = {}
        self._told = False

    def note(self) -> None:
        """Remember the function that is being traced."""
        code = torch._dynamo.symbolic_convert.InstructionTranslator.current_tx().f_code
        self._functions[id(code)] = code
        left = _limit() - _size(code) - 1
        if left <= 1 and not self._told:
            self._told = True
            self._unsaid.append(
                f"torch.compile may make {left} more graphs of a function of the attached model and then gives it up: "
                "a recorder needs two for each of the model's own, and models of one class share the limit, "
                "torch._dynamo.config.recompile_limit. Raise it, or pass isolate_recompiles=True to torch.compile"
            )

    def make_room(self) -> None:
        """Empty the cache of functions that are half full, for the next recorder's graphs.

        Graphs that others made of them are compiled again when they are needed. Nothing is done from within a compiled
        function: its graph is in use.
        """
        frame: types.FrameType | None = sys._getframe()
        while frame is not None:
            if frame.f_code in torch._dynamo.convert_frame.output_codes:
                return
            frame = frame.f_back
        for code in self._functions.values():
            if 2 * _size(code) >= _limit():
                torch._C._dynamo.eval_frame.reset_code(code)
        self._functions.clear()


def _limit() -> int:
    config = torch._dynamo.config
    limit: int = getattr(config, "recompile_limit", None) or config.cache_size_limit
    return limit


def _size(code: types.CodeType) -> int:
    """Number of graphs in the cache that is in use, which may be one of ``isolate_recompiles``."""
    if hasattr(eval_frame, "_get_cache_entries_for_region"):
        region = torch._C._dynamo.eval_frame.get_eval_frame_isolate_recompiles_id()
        return len(eval_frame._get_cache_entries_for_region(code, region))
    return len(eval_frame._debug_get_cache_entry_list(code))
