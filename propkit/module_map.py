"""A module seen as a map from its input tensor to its output tensor, which can be evaluated without leaving a trace."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from propkit.hooks.signals import first_tensor
from propkit.sites import is_sharded
from propkit.untouched import untouched

Function = Callable[[torch.Tensor], torch.Tensor]


@contextlib.contextmanager
def module_map(
    module: nn.Module, /, *args: Any, forward: Callable[..., Any] | None = None, **kwargs: Any
) -> Iterator[tuple[Function, torch.Tensor]]:
    """The module as a pure function of its first floating-point input, and that input, detached.

    Within the context the function may be called and differentiated any number of times. It gives the same value each
    time (buffers and random states are those at entry: one dropout mask), holds the other arguments, runs under the
    autocast of the entry, and leaves no trace: see `propkit.untouched.untouched`. Recorders do not notice.

    >>> import torch, propkit.spectra.jacobian as spectra
    >>> block = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    >>> with module_map(block, torch.randn(8, 3)) as (function, x):
    ...     moments = spectra.jacobian_moments(function, x)
    >>> int(block[1].num_batches_tracked)
    0

    Args:
        module: The module, in the mode (training or evaluation) that is meant.
        *args: What it takes. All places that hold the very tensor that is varied are varied together
            (self-attention's query, key and value).
        forward: What runs, the module itself by default: ``module.forward`` leaves out its own hooks.
        **kwargs: Arguments by name.

    Yields:
        ``(function, x)``: the function takes tensors shaped like `x`, and returns the first floating-point tensor of
        the module's result.

    Raises:
        ValueError: There is no floating-point input (a language model takes token numbers: take its blocks); or the
            module exchanges data with other processes in its forward, where products on this one would hang.
    """
    received = first_tensor((args, kwargs))
    if received is None:
        raise ValueError(
            f"module_map: {type(module).__name__} received no floating-point tensor, so it has no Jacobian; take a "
            "part of it that does"
        )
    _check_alone(module)
    autocast = _autocast()
    flat, structure = pytree.tree_flatten((args, kwargs))
    varied = [value is received for value in flat]
    held = [value.detach() if isinstance(value, torch.Tensor) else value for value in flat]

    def function(z: torch.Tensor) -> torch.Tensor:
        given = [z if vary else value for value, vary in zip(held, varied, strict=True)]
        # The module may change what it is given in place, but not what is to be used again.
        given = [value.clone() if isinstance(value, torch.Tensor) else value for value in given]
        positional, named = pytree.tree_unflatten(given, structure)
        with untouched(module), autocast():
            returned = first_tensor((forward or module)(*positional, **named))
        if returned is None:
            raise ValueError(
                f"module_map: {type(module).__name__} returned no floating-point tensor"
            )
        return returned

    # The outer one covers backward passes too: a checkpoint runs the module's forward again in them.
    with untouched(module), _outside_checkpoints():
        yield function, received.detach()


@contextlib.contextmanager
def _outside_checkpoints() -> Iterator[None]:
    """A checkpoint under way counts the tensors that are saved for backward, and may keep results: not those here."""
    with torch.autograd.graph.saved_tensors_hooks(_same, _same), _disable_current_modes():
        yield


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _check_alone(module: nn.Module) -> None:
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    several = torch.distributed.get_world_size() > 1
    for name, part in module.named_modules():
        synchronised = several and isinstance(part, nn.SyncBatchNorm) and part.training
        if synchronised or is_sharded(part):
            raise ValueError(
                f"module_map: {name or 'the module'} ({type(part).__name__}) exchanges data with other processes in "
                "its forward; give a copy without sharding or in evaluation mode"
            )


def _autocast() -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """A factory of contexts with the autocast settings of now."""
    settings = [
        (d, torch.get_autocast_dtype(d), torch.is_autocast_enabled(d)) for d in ("cpu", "cuda")
    ]

    def context() -> contextlib.AbstractContextManager[Any]:
        stack = contextlib.ExitStack()
        for device, dtype, enabled in settings:
            # What is cast here, perhaps without gradients, is not for the training's forward to find in the cache.
            stack.enter_context(torch.autocast(device, dtype, enabled, cache_enabled=False))
        return stack

    return context
