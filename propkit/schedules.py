"""When to measure: functions ``step -> bool``."""

from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int], bool]


@dataclass(frozen=True)
class _Every:
    n: int

    def __call__(self, step: int) -> bool:
        return step % self.n == 0

    def __repr__(self) -> str:
        return f"every({self.n})"


@dataclass(frozen=True)
class _LogSpaced:
    per_decade: int

    def __call__(self, step: int) -> bool:
        if step < 2:
            return True
        return _mark(step, self.per_decade) > _mark(step - 1, self.per_decade)

    def __repr__(self) -> str:
        return f"log_spaced({self.per_decade})"


def every(n: int) -> Schedule:
    """Steps 0, n, 2n, ...

    >>> [step for step in range(7) if every(3)(step)]
    [0, 3, 6]
    """
    return _period(n, "every")


def _period(n: int, argument: str) -> Schedule:
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(
            f"{argument}={n!r}: expected a number of steps >= 1 or a function step -> bool"
        )
    return _Every(n)


def log_spaced(per_decade: int = 10) -> Schedule:
    """About `per_decade` steps in each factor of ten, for long runs: dense at the start, where most happens.

    >>> log_spaced(4)
    log_spaced(4)
    >>> [step for step in range(101) if log_spaced(4)(step)]
    [0, 1, 2, 4, 6, 10, 18, 32, 57, 100]
    """
    if per_decade < 1:
        raise ValueError(f"per_decade={per_decade!r}: expected at least 1")
    return _LogSpaced(per_decade)


def _mark(step: int, per_decade: int) -> int:
    """Largest k whose mark, 10^(k/per_decade) rounded up, is at most `step`."""
    k = int(per_decade * len(str(step)))
    while _ceil_power(k, per_decade) > step:
        k -= 1
    return k


def _ceil_power(k: int, per_decade: int) -> int:
    value = 10 ** (k / per_decade)
    nearest = round(value)
    return nearest if abs(value - nearest) < 1e-9 * value else int(value) + 1


def as_schedule(when: int | Schedule, argument: str = "every") -> Schedule:
    """A schedule from a period or a schedule, which error messages call `argument`.

    Raises:
        ValueError: Neither a period >= 1 nor a function.
    """
    return when if callable(when) else _period(when, argument)


def tried(when: Schedule, argument: str, step: int) -> Schedule:
    """The schedule, if it can say whether to measure in a step: one that cannot is found before a recording begins.

    Raises:
        ValueError: It raises, or what it gives is neither true nor false.
    """
    try:
        answer = when(step)
        clear = hasattr(type(answer), "__bool__")  # a function or a text, say, would be true always
        bool(answer)
    except Exception as error:
        raise ValueError(
            f"{argument}: expected a function step -> bool, found {name_of(when)}, which raises "
            f"{type(error).__name__} at step {step}: {error}"
        ) from error
    if not clear:
        raise ValueError(
            f"{argument}: expected a function step -> bool, found {name_of(when)}, which gives "
            f"{type(answer).__name__} {answer!r:.60} at step {step}"
        )
    return when


def name_of(when: int | Schedule) -> int | str:
    """A schedule as a run remembers it: the period, or its text (``"log_spaced(10)"``), or the function's name.

    >>> name_of(50), name_of(every(50)), name_of(log_spaced(10)), name_of(name_of)
    (50, 50, 'log_spaced(10)', 'name_of')
    """
    if isinstance(when, _Every):
        return when.n
    return when if isinstance(when, int) else getattr(when, "__qualname__", repr(when))
