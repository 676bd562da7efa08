"""What is measured: a probe is a pure function whose parameter names say which signals it needs.

>>> import torch
>>> @probe(units="1", reduce="mean", reference="He et al., arXiv:1502.01852")
... def mean_square(output):
...     '''Mean square of a layer's output.'''
...     return output.square().mean()
>>> mean_square.name, mean_square.measurements[0].signals
('mean_square', ('output',))
>>> mean_square(torch.tensor([1.0, 3.0]))
tensor(5.)
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, overload

import torch
from torch import nn

from propkit.axes import check_axes
from propkit.schedules import Schedule, as_schedule

Reduction = Literal["mean", "sum", "norm", "max", "min"]
Function = Callable[..., Any]

SIGNALS: Mapping[str, str] = {
    "input": "first floating-point tensor that the module receives",
    "output": "first floating-point tensor that the module returns",
    "grad_input": "gradient with respect to that input tensor, all its consumers included",
    "grad_output": "gradient with respect to that output tensor, all its consumers included",
    "weight": "the module's weight before the optimiser's step",
    "update": "change of the weight in this optimiser step",
    "function": "the module's forward as a pure function of its input tensor (see `propkit.module_map`), not compiled",
    "module": "the module itself",
}
"""Every signal that a probe may name as a parameter, with its meaning."""

KINDS = ("parametric", "filters", "layer", "block")
"""Named selections of sites: see `propkit.sites.is_kind`."""


@dataclass(frozen=True)
class Measurement:
    """One function of a probe and how its values are labelled and combined.

    Attributes:
        function: Pure function of the signals; returns a tensor, or a dict of named ones. Of signals on the CPU it may
            return Python floats, too; on other devices reading a number would wait for the device, and is refused.
        signals: Its parameter names, each a key of `SIGNALS`.
        units: Units of the values, or a dict by variable name.
        reduce: How values of one step are combined over micro-batches, calls and ranks: ``mean`` (weighted
            by the number of elements of the first signal), ``sum``, ``norm`` (root of the sum of
            squares), ``max`` or ``min``; or a dict by variable name.
        degree: Power with which the values grow with the loss (1 for a gradient's norm, 2 for its mean square):
            values of a scaled loss are divided by that power of the scale. None: the gradient itself is divided before
            the function sees it, which costs a copy.
        dims: Variable -> dimension of its own: its values are 1-d tensors, others' are 0-d.
        coords: Dimension -> coordinate values, where they are the same at all sites; a dimension without is ragged.
        dtype: Variable -> ``"float32"`` or ``"float64"``, where it is not the usual one (see `dtype_of`).
        once: The values depend on the weight and on the shapes of the other signals, not on their contents.
    """

    function: Function
    signals: tuple[str, ...]
    units: str | Mapping[str, str] = "1"
    reduce: Reduction | Mapping[str, Reduction] = "mean"
    degree: int | None = None
    dims: Mapping[str, str] = field(default_factory=dict)
    coords: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    dtype: Mapping[str, str] = field(default_factory=dict)
    once: bool = False

    def is_ragged(self, variable: str) -> bool:
        """Whether the variable has a length for each site."""
        return variable in self.dims and self.dims[variable] not in self.coords

    def dtype_of(self, variable: str) -> str:
        """How its values are kept: float32 where there are many, as of a ragged variable, else float64."""
        return self.dtype.get(variable, "float32" if self.is_ragged(variable) else "float64")

    def describe(self, variable: str) -> tuple[str, Reduction, str]:
        """Units, reduction and one-line description of one of the function's variables."""
        units = self.units if isinstance(self.units, str) else self.units.get(variable, "1")
        reduce = self.reduce if isinstance(self.reduce, str) else self.reduce.get(variable, "mean")
        summary = (inspect.getdoc(self.function) or variable.replace("_", " ")).splitlines()[0]
        if not isinstance(self.units, str) and len(self.units) > 1:  # they share the docstring
            summary = f"{variable.replace('_', ' ')}: {summary}"
        return units, reduce, summary.rstrip(".")


@dataclass(frozen=True)
class Probe:
    """A named group of measurements at the same sites; calling it calls its first function.

    Attributes:
        name: Name of the probe, of its file and of its group in the run.
        sites: Where it applies: one of `KINDS`, or a predicate ``module -> bool``.
        reference: Paper and equation.
        measurements: Its functions, in the order in which they were added.
        every: Period or schedule of a dear probe, which it keeps unless it is given one; None: a cheap one.
    """

    name: str
    sites: str | Callable[[nn.Module], bool]
    reference: str
    measurements: list[Measurement] = field(default_factory=list)
    every: int | Schedule | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Value of the probe's first function; numbers as 0-d tensors, float64."""
        value = self.measurements[0].function(*args, **kwargs)
        if isinstance(value, dict):
            return {name: _tensor(v) for name, v in value.items()}
        return _tensor(value)

    def __repr__(self) -> str:
        signals = sorted({s for m in self.measurements for s in m.signals})
        return f"Probe({self.name!r}, sites={self.sites!r}, signals={signals})"

    @property
    def signals(self) -> frozenset[str]:
        """All signals that its functions need."""
        return frozenset(s for m in self.measurements for s in m.signals)

    @property
    def axes(self) -> dict[str, tuple[float, ...] | None]:
        """Dimensions that variables have beside ``step`` and ``site`` -> coordinate values, None for a ragged one."""
        return {d: m.coords.get(d) for m in self.measurements for d in m.dims.values()}

    def also(
        self,
        *,
        units: str | Mapping[str, str] = "1",
        reduce: Reduction | Mapping[str, Reduction] = "mean",
        degree: int | None = None,
        dims: Mapping[str, str] | None = None,
        coords: Mapping[str, Sequence[float]] | None = None,
        dtype: Mapping[str, str] | None = None,
        once: bool = False,
    ) -> Callable[[Function], Function]:
        """Decorator that adds a function of other signals to the same group.

        A variable is measured when its signals are there, so that nothing needs to be kept: the moment of the
        error at a layer's output and the one at its input are two functions. Arguments as those of `probe`.
        """

        def add(function: Function) -> Function:
            new = _measurement(function, units, reduce, degree, dims, coords, dtype, once)
            check_axes([*self.measurements, new])
            self.measurements.append(new)
            return function

        return add


@overload
def probe(function: Function, /) -> Probe: ...


@overload
def probe(
    *,
    sites: str | Callable[[nn.Module], bool] = ...,
    units: str | Mapping[str, str] = ...,
    reduce: Reduction | Mapping[str, Reduction] = ...,
    degree: int | None = ...,
    dims: Mapping[str, str] | None = ...,
    coords: Mapping[str, Sequence[float]] | None = ...,
    dtype: Mapping[str, str] | None = ...,
    once: bool = ...,
    every: int | Schedule | None = ...,
    reference: str = ...,
    name: str | None = ...,
) -> Callable[[Function], Probe]: ...


def probe(
    function: Function | None = None,
    /,
    *,
    sites: str | Callable[[nn.Module], bool] = "parametric",
    units: str | Mapping[str, str] = "1",
    reduce: Reduction | Mapping[str, Reduction] = "mean",
    degree: int | None = None,
    dims: Mapping[str, str] | None = None,
    coords: Mapping[str, Sequence[float]] | None = None,
    dtype: Mapping[str, str] | None = None,
    once: bool = False,
    every: int | Schedule | None = None,
    reference: str = "",
    name: str | None = None,
) -> Probe | Callable[[Function], Probe]:
    """Make a probe of a pure function of signals.

    >>> import torch
    >>> @probe(dims={"kernel_norms": "kernel"}, sites="filters", units="weight", reduce="max", every=100)
    ... def kernel_norms(weight):
    ...     '''Norm of each kernel: as many as the layer has.'''
    ...     return weight.flatten(1).norm(dim=1)
    >>> kernel_norms(torch.eye(2)), kernel_norms.axes
    (tensor([1., 1.]), {'kernel': None})

    Args:
        function: Function whose parameters are names of `SIGNALS`. It returns a tensor, recorded under the function's
            name, or a dict of named tensors: 0-d, or 1-d for a variable with a dimension.
        sites: Where it applies: ``"parametric"`` (layers with a weight matrix or kernel), ``"filters"`` (those
            whose weight is a bank of filters: convolutions and linear layers), ``"layer"`` (parametric
            layers and nonlinearities), ``"block"``, or a predicate on modules.
        units: Units, ``"1"`` for pure numbers; a dict by variable where the function returns a dict.
        reduce: How the values of one step are combined; see `Measurement`.
        degree: Power with which they grow with the loss; see `Measurement`.
        dims: Variable -> name of the dimension that it has beside step and site. It is ragged, the number of values may
            differ from site to site (but stays what it was at each), unless `coords` has it. One ragged dimension per
            probe.
        coords: Dimension -> its coordinate values, the same at all sites (``{"quantile": (0.0, 0.5, 1.0)}``).
        dtype: Variable with a dimension -> ``"float32"`` (usual for a ragged one) or ``"float64"`` (usual for others).
        once: The values depend on the weight and on the shapes of the other signals only: measured once in a step for
            each shape, not in every micro-batch and evaluation.
        every: For a dear probe: the period or schedule that it keeps unless `propkit.attach` is given one for it.
        reference: Paper and equation that define the quantity.
        name: Name of the probe, the function's by default.

    Raises:
        TypeError: A parameter is no signal, or the signals are never available together.
        ValueError: `sites`, `reduce` or `dtype` is unknown, `every` is no schedule, or the dimensions contradict
            each other.
    """
    if isinstance(sites, str) and sites not in KINDS:
        raise ValueError(f"sites={sites!r}: expected one of {KINDS} or a predicate on modules")

    if every is not None:
        as_schedule(every)

    def make(function: Function) -> Probe:
        measurement = _measurement(function, units, reduce, degree, dims, coords, dtype, once)
        check_axes([measurement])
        return Probe(name or function.__name__, sites, reference, [measurement], every)

    return make if function is None else make(function)


def _measurement(
    function: Function,
    units: str | Mapping[str, str],
    reduce: Reduction | Mapping[str, Reduction],
    degree: int | None,
    dims: Mapping[str, str] | None,
    coords: Mapping[str, Sequence[float]] | None,
    dtype: Mapping[str, str] | None,
    once: bool,
) -> Measurement:
    signals = tuple(inspect.signature(function).parameters)
    unknown = [s for s in signals if s not in SIGNALS]
    if unknown or not signals:
        found = f"parameter {unknown[0]!r}" if unknown else "no parameter"
        raise TypeError(
            f"probe function {function.__name__!r} has {found}; its parameters must be signals: {', '.join(SIGNALS)}"
        )
    if "update" in signals and not {"update", "weight", "module"}.issuperset(signals):
        raise TypeError(
            f"probe function {function.__name__!r}: 'update' is known only after the optimiser's step, when "
            "just 'weight' and 'module' are there too; split it into two functions (see Probe.also)"
        )
    if "function" in signals and not {"function", "input", "weight", "module"}.issuperset(signals):
        raise TypeError(
            f"probe function {function.__name__!r}: 'function' is known just before the module runs, when only "
            "'input', 'weight' and 'module' are there too; split it into two functions (see Probe.also)"
        )
    for rule in [reduce] if isinstance(reduce, str) else reduce.values():
        if rule not in get_args(Reduction):
            raise ValueError(f"reduce={rule!r}: expected one of {get_args(Reduction)}")
    dims, dtype = dict(dims or {}), dict(dtype or {})
    fixed = {d: tuple(float(v) for v in values) for d, values in (coords or {}).items()}
    for what, names, known in (("coords", fixed, dims.values()), ("dtype", dtype, dims)):
        stray = [n for n in names if n not in known]
        if stray:
            raise ValueError(
                f"probe function {function.__name__!r}: {what} names {stray[0]!r}, which dims={dims} does not"
            )
    for kind in dtype.values():
        if kind not in ("float32", "float64"):
            raise ValueError(f"dtype={kind!r}: expected 'float32' or 'float64'")
    return Measurement(function, signals, units, reduce, degree, dims, fixed, dtype, once)


def _tensor(value: Any) -> Any:
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, float) else value
