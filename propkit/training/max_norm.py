"""Max-norm: each unit's incoming weights are kept within a ball.

Srebro et al., NIPS 2004; Srivastava et al., JMLR 15 (2014), Sec. 5.1; used in deep plain networks by
Oyedotun et al., ICPR 2020, Eq. 2.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from propkit.training.after_step import AfterStep


@torch.no_grad()
def max_norm_(
    target: nn.Module | Tensor, c: float = 2.0, *, groups: int = 1, transposed: bool = False
) -> nn.Module | Tensor:
    """Scale down each unit's incoming weights whose norm is above c, in place.

    A unit is an output channel or output: the norm is over all dimensions of the weight but the
    first; for a transposed convolution over its input channels and taps. Keras' ``MaxNorm(c)``
    likewise, but for its ε. Weights with a norm of at most c keep their bits.

    Args:
        target: A weight, or a module, all of whose convolutions and linear layers change; biases
            and everything else stay.
        c: Largest norm. After He's initialisation the mean of the squared norms is 2.
        groups: Of the transposed convolution that a weight belongs to.
        transposed: The weight is that of a transposed convolution, ``(c_in, c_out / groups, ...)``.

    Returns:
        The target.

    Raises:
        ValueError: c is not positive, a weight has fewer than two dimensions, or is computed from
            other parameters (`torch.nn.utils.parametrize`).

    Example:
        >>> max_norm_(torch.tensor([[3.0, 4.0], [0.6, 0.8]]), 2.0)
        tensor([[1.2000, 1.6000],
                [0.6000, 0.8000]])
    """
    if not c > 0:
        raise ValueError(f"the largest norm must be positive, found {c}")
    if isinstance(target, Tensor):
        _clip(target, c, groups, transposed)
        return target
    if groups != 1 or transposed:
        raise ValueError("groups and transposed describe a weight; a module knows its own")
    for name, module in target.named_modules():
        if not isinstance(module, (_ConvNd, nn.Linear)):
            continue
        weight = module._parameters.get("weight")
        if weight is None:
            raise ValueError(
                f"the weight of {name or 'the module'} is computed from other parameters; limit those"
            )
        if isinstance(module, _ConvTransposeNd):
            _clip(weight, c, module.groups, True)
        else:
            _clip(weight, c, 1, False)
    return target


def max_norm(
    model: nn.Module,
    c: float = 2.0,
    every: float = 1,
    *,
    optimizer: torch.optim.Optimizer | None = None,
) -> AfterStep:
    """Apply `max_norm_` to a model after each optimiser step.

    Args:
        model: Its weights change in place; the optimiser's state does not.
        c: Largest norm of a unit's incoming weights.
        every: Steps from one time to the next.
        optimizer: Listen to this one only; any that holds parameters of the model if None.

    Returns:
        A handle: a context manager with ``remove()``; calling it applies the limit at once.

    Raises:
        ValueError: c or ``every`` is not positive.
    """
    if not c > 0:
        raise ValueError(f"the largest norm must be positive, found {c}")
    return AfterStep(model, lambda: max_norm_(model, c), every, optimizer)


def _clip(weight: Tensor, c: float, groups: int, transposed: bool) -> None:
    if weight.ndim < 2:
        raise ValueError(f"a weight has two or more dimensions, found shape {tuple(weight.shape)}")
    units = weight.detach()
    if transposed:
        units = units.unflatten(0, (groups, -1)).transpose(1, 2)
        dims = tuple(range(2, units.ndim))
    else:
        dims = tuple(range(1, units.ndim))
    dtype = torch.promote_types(weight.dtype, torch.float32)
    norm = torch.linalg.vector_norm(units, dim=dims, keepdim=True, dtype=dtype)
    units.mul_(torch.where(norm > c, c / norm, 1.0))
