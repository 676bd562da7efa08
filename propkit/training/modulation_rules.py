"""When the magnitudes of consecutive layers' errors mismatch: arXiv:1703.01827, Sec. 4, read in five ways.

The paper modulates "when the magnitudes of propagated signals of consecutive layers mismatch" and does
not say how that is decided. A rule maps second-order moments of errors, 0-d tensors, to the one that
the layer's errors are to have; the errors are multiplied by the root of their ratio.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Moment = Tensor
Rule = Callable[[Moment, Moment, Moment], Moment]
"""(moment that arrives at the layer, moment at the layer above after its own modulation, moment at the
highest layer) -> the moment that the layer's errors are to have."""

RuleName = Literal["decade", "drift", "ratio", "always", "never"]

_TAU = {"drift": 10.0, "ratio": 1.5}


def find_rule(rule: str | Rule, tau: float | None = None) -> Rule:
    """A rule by name, or the function itself.

    Args:
        rule: ``"decade"``: the moment of the layer above, where the two have another order of
            magnitude, that is where ⌊log10 q⌋ differs. ``"drift"``: the moment of the highest layer,
            where the layer's is more than τ times as large or as small. ``"ratio"``: that of the
            layer above, where the layer's is more than τ times as large or as small. ``"always"``:
            that of the layer above. ``"never"``: as it is.
        tau: τ; by default 10 for ``drift`` and 1.5 for ``ratio``. In plain networks with batch norm the
            moments of consecutive layers differ by 1.3 to 1.5 times at first, so that a ratio of 10
            never fires.

    Raises:
        ValueError: The rule is unknown, τ is not above 1, or the rule has no τ.

    Example:
        >>> q, above, top = torch.tensor([12.0, 9.0, 1.0])
        >>> [float(find_rule(name)(q, above, top)) for name in ("decade", "drift", "always", "never")]
        [9.0, 1.0, 9.0, 12.0]
    """
    if callable(rule):
        if tau is not None:
            raise ValueError("tau belongs to the rules 'drift' and 'ratio', found a function")
        return rule
    known: dict[str, Rule] = {"decade": _decade, "always": _always, "never": _never}
    if rule in known:
        if tau is not None:
            raise ValueError(f"tau belongs to the rules 'drift' and 'ratio', found {rule!r}")
        return known[rule]
    if rule not in _TAU:
        names = ", ".join([*known, *_TAU])
        raise ValueError(f"rule must be one of {names} or a function, found {rule!r}")
    limit = _TAU[rule] if tau is None else tau
    if not 1 < limit < math.inf:
        raise ValueError(f"tau must be above 1 and finite, found {limit}")

    def ratio(q: Moment, above: Moment, top: Moment) -> Moment:  # noqa: ARG001 - a rule
        return torch.where(_apart(q, above, limit), above, q)

    def drift(q: Moment, above: Moment, top: Moment) -> Moment:  # noqa: ARG001 - a rule
        return torch.where(_apart(q, top, limit), top, q)

    return drift if rule == "drift" else ratio


def _decade(q: Moment, above: Moment, top: Moment) -> Moment:  # noqa: ARG001 - a rule
    return torch.where(q.log10().floor() != above.log10().floor(), above, q)


def _always(q: Moment, above: Moment, top: Moment) -> Moment:  # noqa: ARG001 - a rule
    return above


def _never(q: Moment, above: Moment, top: Moment) -> Moment:  # noqa: ARG001 - a rule
    return q


def _apart(q: Moment, other: Moment, tau: float) -> Tensor:
    return (q > tau * other) | (other > tau * q)
