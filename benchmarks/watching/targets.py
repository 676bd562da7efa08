"""The targets, each with what was measured."""

from typing import NamedTuple

from watching.rounds import Spread
from watching.tools import ERRORS_HERE, EVERY, IDLE, LEAST, MOMENTS, PEERS


class Measured(NamedTuple):
    """What is known of one configuration: ratios to bare, shares of the bare step, peak memory."""

    wall: Spread
    cpu: Spread
    hooks: Spread
    peak: float
    reductions: float | None = None

    @property
    def overhead(self) -> float:
        """Overhead in the loop, or the time in hooks if the loop's noise hides it."""
        return max(self.cpu.median - 1, self.hooks.median)


def print_targets(
    found: dict[str, Measured],
    cycles: tuple[float, float] | None,
    dispatch: dict[str, Spread],
    compiled: dict[str, float] | None,
) -> None:
    """Each target with what was measured."""
    rows: list[tuple[str, str, bool]] = []
    if found:
        for where, label in (("outputs", ERRORS_HERE), ("both ends", MOMENTS)):
            m = found[label]
            hooks, loop = m.hooks.median, m.cpu.median
            rows += [
                (
                    f"errors at {where}, every step, time in hooks <= 1.01",
                    f"{1 + hooks:.4f}",
                    hooks <= 0.01,
                ),
                (
                    f"errors at {where}, every step, in the loop <= 1.03",
                    f"{loop:.3f}",
                    loop <= 1.03,
                ),
            ]
        alone = found[ERRORS_HERE].reductions
        if alone is not None:
            target = "errors at outputs, every step, the reductions <= 1.01"
            rows.insert(0, (target, f"{1 + alone:.4f}", alone <= 0.01))
        worst = max(
            (label for label in found if label.startswith("propkit")),
            key=lambda label: found[label].peak,
        )
        rows.append(
            (
                f"peak memory <= 1.01 (worst: {worst.removeprefix('propkit: ')})",
                f"{found[worst].peak:.4f}",
                found[worst].peak <= 1.01,
            )
        )
    if cycles:
        rows.append(
            (
                f"all default probes, every={EVERY}, whole cycles <= 1.005",
                f"{cycles[0]:.4f} (bare again {cycles[1]:.4f})",
                cycles[0] / cycles[1] <= 1.005,
            )
        )
    if dispatch:
        idle = dispatch[IDLE].median
        rows.append(("unsampled steps <= 10 us a layer", f"{idle:.1f} us", idle <= 10))
    if compiled:
        gap = compiled["unsampled"] - compiled["again"]
        rows.append(
            (
                "compiled, unsampled: as fast as bare compiled (+-0.01)",
                f"{compiled['unsampled']:.3f} (bare again {compiled['again']:.3f})",
                gap <= 0.01,
            )
        )
        rows.append(("0 graph breaks", f"{compiled['breaks']:.0f}", compiled["breaks"] == 0))
    for c in PEERS if found else ():
        if c.label in found and c.label != LEAST:
            theirs, ours = found[c.label].overhead, found[c.rival].overhead
            times = theirs / max(ours, 1e-9)
            rows.append(
                (
                    f"4x less than {c.label}",
                    f"{times:.1f}x ({100 * ours:.2f} % to {100 * theirs:.2f} %)",
                    times >= 4,
                )
            )
    print(
        "\nTargets (CPU time; the overhead of a row is that in the loop or that in its hooks, whichever is more)"
    )
    for target, value, met in rows:
        print(f"{target:75}{value:>30}  {'met' if met else 'NOT MET'}")
    if LEAST in found:
        bound = found[LEAST].overhead
        print(
            f"Hooks by hand that read every error once and keep nothing take {100 * bound:.2f} %. Beside them:"
        )
        for c in PEERS:
            if c.label in found and not c.package:
                print(f"  {c.label:40}{found[c.label].overhead / max(bound, 1e-9):5.1f}x")
