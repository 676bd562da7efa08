"""A layer of a run: its values at one moment, and what they say about it."""

from dataclasses import dataclass, field

from propkit.diagnosis.judging import observations
from propkit.diagnosis.verdict import HEALTHY, Finding


@dataclass
class Layer:
    """One call of a site.

    Attributes:
        site: Its name, with the number of the call after the first.
        depth: Number of parametric layers that ran by then.
        type: The module's class.
        output_shape: Shape of what it returned, as it was recorded.
        values: Name of a column -> value, of those that were measured there.
        findings: What is wrong with it, the most severe first; None where a layer is not judged.
    """

    site: str
    depth: int
    type: str
    output_shape: str
    values: dict[str, float] = field(default_factory=dict)
    findings: list[Finding] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The output's shape as numbers; () where it is not known."""
        parts = self.output_shape.strip("()").split(",")
        return tuple(int(n) for n in parts if n.strip().isdigit())

    @property
    def observations(self) -> int:
        """Samples times positions that are seen of one unit."""
        return observations(self.shape, "Conv" in self.type)

    @property
    def verdict(self) -> str:
        """The most severe verdict in a word; empty where the layer is not judged."""
        if self.findings is None:
            return ""
        return self.findings[0].verdict if self.findings else HEALTHY

    @property
    def evidence(self) -> str:
        """The numbers behind the verdict, in words."""
        if self.findings:
            return "; ".join(f.reason for f in self.findings)
        parts = {
            "error_ratio": "error moment {:.3g} x that of the last layer",
            "dead": "{:.0%} of the units dead",
            "effective_rank": "effective rank {:.3g}",
        }
        known = [p.format(self.values[k]) for k, p in parts.items() if k in self.values]
        return "; ".join(known) or "nothing out of bounds"
