"""`Diagnosis`: what `propkit.measure` found, as datasets, as a table and as verdicts."""

import functools
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from propkit.diagnosis.judging import Column, families, judge_layers, quotient, relative_to_last
from propkit.diagnosis.one_pass import Layer
from propkit.diagnosis.render import Sheet, number
from propkit.diagnosis.verdict import HEALTHY, NAN, Finding, Thresholds, checked, overall

if TYPE_CHECKING:
    import xarray as xr
    from rich.console import RenderableType

    from propkit.store.run import Run

_COLUMNS = {
    "activation_moment": ("q out", 4, "mean square of the output"),
    "error_moment": ("q error", 7, "mean square of the error at the output"),
    "error_ratio": ("to last", 1, "error moment relative to the last layer"),
    "consecutive_ratio": ("to next", 10, "error moment relative to the next layer"),
    "gradient_norm_ratio": (
        "out/in",
        9,
        "norm of the gradient at the output, relative to the input",
    ),
    "dead": ("dead", 3, "share of dead units"),
    "condition_number": ("cond", 8, "condition number of the representation"),
    "effective_rank": ("rank", 6, "effective rank of the representation"),
    "mean_cosine": ("cosine", 5, "mean cosine of the samples' representations"),
}
"""Variable -> title, rank (the type's is 2: see `Sheet`), long name."""

_COLORS = {
    "exploding": "red",
    "dead": "magenta",
    "vanishing": "tan",
    "singular": "blue",
    HEALTHY: "green",
}
"""Names that both rich and CSS know, of which there are few."""


class Diagnosis:
    """What one batch says about a model; made by `propkit.measure`.

    ``diagnosis["error_moment"]`` is the dataset that an attached run would have, with one step.

    Attributes:
        run: All of it as a run: the datasets, and its attributes (versions, notes, faults, loss).
        loss: The loss, None where there was none.
        thresholds: What the verdicts are made by.
    """

    def __init__(
        self,
        run: "Run",
        layers: Iterable[Layer],
        measured: Collection[tuple[str, str, str]],
        thresholds: Thresholds,
        loss: float | None,
    ) -> None:
        self.run = run
        self.loss = loss
        self.thresholds = checked(thresholds)
        self._layers = {layer.site: layer for layer in layers}
        self._measured = frozenset(measured)

    def __getitem__(self, group: str) -> "xr.Dataset":
        """The dataset of one probe; KeyError names those there are."""
        return self.run[group]

    def judged_by(self, thresholds: Thresholds) -> "Diagnosis":
        """The same measurement judged by other thresholds, ``propkit.diagnosis.verdict.Thresholds(dead=0.7)``, say."""
        return Diagnosis(self.run, self._layers.values(), self._measured, thresholds, self.loss)

    @functools.cached_property
    def table(self) -> "xr.Dataset":
        """One row per layer in the order of execution, dims (site,); NaN where a quantity was not measured.

        Errors are compared with the last layer whose output has as many dimensions (convolutions with the last
        convolution, the classifier's layers with the classifier), so that pooling is not counted as propagation.
        ``gradient_norm_ratio`` is that of arXiv:1805.07477, output to input: above 1 the gradient shrinks. ``verdict``
        is the most severe one, ``problems`` all of them, ``reason`` the reason for the first; empty where a site is not
        judged (a block).
        """
        import xarray as xr

        layers, sites = list(self._layers.values()), list(self._layers)
        data: dict[str, Any] = {
            name: ("site", np.array([column.get(s, NAN) for s in sites], dtype=np.float64))
            for name, column in self._columns.items()
        }
        for name, (_, _, title) in _COLUMNS.items():
            data[name] = (*data[name], {"long_name": title})
        found = [self._findings.get(s) for s in sites]
        data["verdict"] = ("site", _strings(f if f is None else _verdict(f) for f in found))
        data["problems"] = ("site", _strings(f and ", ".join(x.verdict for x in f) for f in found))
        data["reason"] = ("site", _strings(f[0].reason if f else "" for f in found))
        coords = {
            "site": _strings(sites),
            "depth": ("site", np.array([layer.depth for layer in layers], dtype=np.int64)),
            "type": ("site", _strings(layer.type for layer in layers)),
            "output_shape": ("site", _strings(str(layer.shape) for layer in layers)),
        }
        return xr.Dataset(data, coords, {"verdict": self.verdict})

    @functools.cached_property
    def verdict(self) -> str:
        """One line for the whole model."""
        line = overall(list(self._findings), list(self._findings.values()))
        if not self._blameless:
            return line
        many = f"{len(self._blameless)} layers" if self._blameless[1:] else self._blameless[0]
        return (
            f"the input itself is not finite ({self._strange_input}), so {many} whose output or error is not finite "
            f"cannot be judged; {line}"
        )

    @property
    def problems(self) -> dict[str, list[Finding]]:
        """Site -> what is wrong there, the most severe first; sites where nothing is are left out."""
        return {site: found for site, found in self._findings.items() if found}

    @property
    def healthy(self) -> bool:
        """Whether nothing was found at any layer, and the input was not what made one impossible to judge."""
        return not self.problems and not self._blameless

    def print(self) -> None:
        """Print the whole table to the terminal, in color where it has any."""
        from rich.console import Console

        Console().print(self)

    def __rich__(self) -> "RenderableType":
        return self._sheet().rich()

    def __repr__(self) -> str:
        return self._sheet().text()

    def _repr_html_(self) -> str:
        return self._sheet().html()

    @functools.cached_property
    def _columns(self) -> Mapping[str, Column]:
        errors = self._read("error_moment", "output")
        norms = [self._read("gradient_norm", end) for end in ("output", "input")]
        following: dict[str, float] = {}
        for family in families(errors, self._layers):
            for s, after in itertools.pairwise(family):
                following[s] = errors[s] / errors[after] if errors[after] else NAN
        return {
            "activation_moment": self._read("activation", "mean_square"),
            "error_moment": errors,
            "error_ratio": relative_to_last(errors, self._layers),
            "consecutive_ratio": following,
            "gradient_norm_ratio": quotient(*norms),
            "dead": self._read("activation", "dead"),
            **{
                name: self._read("representation", name)
                for name in ("condition_number", "effective_rank", "mean_cosine")
            },
        }

    @functools.cached_property
    def _findings(self) -> dict[str, list[Finding]]:
        """What was found at each site that can be judged, in the order of execution."""
        return self._judge(finite_input=not self._strange_input)

    @functools.cached_property
    def _blameless(self) -> list[str]:
        """Sites that are not judged because the input was not finite."""
        return [s for s in self._judge(finite_input=True) if s not in self._findings]

    def _judge(self, finite_input: bool) -> dict[str, list[Finding]]:
        columns = {**self._columns, "weight_norm": self._read("weight", "norm")}
        return judge_layers(columns, self._layers, self.thresholds, finite_input=finite_input)

    @property
    def _strange_input(self) -> str:
        return str(self.run.attributes.get("input_not_finite", ""))

    def _read(self, group: str, variable: str) -> dict[str, float]:
        """Site -> value, of the sites where it was measured."""
        if group not in self.run or variable not in self.run[group]:
            return {}
        values = self.run[group][variable].isel(step=0)
        pairs = zip(values["site"].values.tolist(), values.values.tolist(), strict=True)
        return {s: v for s, v in pairs if (group, variable, s) in self._measured}

    def _sheet(self) -> Sheet:
        table = self.table
        shown = [name for name in _COLUMNS if table[name].notnull().any()]
        rows, colors = [], []
        for i, layer in enumerate(self._layers.values()):
            verdict = str(table["verdict"].values[i])
            numbers = [number(float(table[name].values[i])) for name in shown]
            problems = str(table["problems"].values[i]) or verdict
            rows.append([str(layer.depth), layer.site, layer.type, *numbers, problems])
            colors.append(_COLORS.get(verdict, ""))
        mode = "training" if self.run.attributes.get("training") else "evaluation"
        loss = "no loss: forward only" if self.loss is None else f"loss {self.loss:.4g}"
        name = self.run.attributes.get("model", "model")
        notes = self.run.attributes.get("notes") or []
        return Sheet(
            f"{name} ({mode} mode, {loss}): {self.verdict}",
            ["depth", "site", "type", *(_COLUMNS[c][0] for c in shown), "verdict"],
            rows,
            colors,
            [True, False, False, *(True for _ in shown), False],
            list(notes),
            ranks=[0, 0, 2, *(_COLUMNS[c][1] for c in shown), 0],
            elsewhere=".table",
        )


def _verdict(found: Sequence[Finding]) -> str:
    return found[0].verdict if found else HEALTHY


def _strings(values: Any) -> Any:
    return np.array([v or "" for v in values], dtype=np.str_)
