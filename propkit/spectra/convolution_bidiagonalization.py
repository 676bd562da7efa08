"""The ends of the spectrum of a convolution that is only applied, by Golub-Kahan-Lanczos bidiagonalisation."""

import math
from typing import NamedTuple

import torch

from propkit.spectra.convolution_operator import ConvolutionOperator
from propkit.spectra.lanczos import generator

_EPSILON = 1e-15


class Extremes(NamedTuple):
    """Largest and smallest singular value of an operator.

    Attributes:
        largest: 0-d.
        smallest: 0-d; NaN where the iteration did not reach it.
        residuals: (2,): a singular value lies within the first of `largest`, one within the second of what stands for
            `smallest`, also where that is NaN.
        steps: Products with the operator, and as many with its transpose.
    """

    largest: torch.Tensor
    smallest: torch.Tensor
    residuals: torch.Tensor
    steps: int


def extremes(
    operator: ConvolutionOperator, tolerance: float, steps: int, smallest: bool
) -> Extremes:
    """Extreme singular values by bidiagonalisation without reorthogonalisation.

    Ritz values that converge twice do no harm at the ends of the spectrum, so no vectors are kept. It starts from a
    fixed random vector in the smaller of the two spaces.

    Args:
        operator: A.
        tolerance: Residual, relative to the value, at which an end counts as reached.
        steps: The most steps to take.
        smallest: Go on until the small end has been reached as well.

    Returns:
        `largest` as it is after `steps` steps if it has not been reached: its residual tells. It can be differentiated
        with respect to the operator's weight, at the cost of the same steps once more.
    """
    with torch.no_grad():
        run = _Bidiagonalization(operator)
        check = min(10, steps)
        while True:
            while len(run.diagonal) < check and not run.finished:
                run.step()
            left, values, right = torch.linalg.svd(run.matrix())
            residuals = (run.coupling[-1] * left[-1].abs())[[0, -1]]
            reached = residuals <= tolerance * values[[0, -1]]
            enough = bool(reached[0]) and (bool(reached[1]) or not smallest)
            if enough or run.finished or len(run.diagonal) >= steps:
                break
            check = min(steps, check + max(5, check // 4))
    top, bottom = values[0].to(operator.weight), values[-1].to(operator.weight)
    if not reached[1]:
        bottom = torch.full_like(bottom, float("nan"))
    if torch.is_grad_enabled() and operator.weight.requires_grad:
        u, v = _ritz_vectors(operator, left[:, 0], right[0])
        value = (u * run.product(v)).sum()  # σ = uᵀ A v, stationary in u and v
        top = top + (value - value.detach())
    return Extremes(top, bottom, residuals.to(operator.weight), len(run.diagonal))


class _Bidiagonalization:
    """A V = U B step by step, of A or of its transpose: whichever starts in the smaller space.

    Attributes:
        diagonal: Of the upper bidiagonal B, on the CPU.
        coupling: Above it; the last couples to what was not seen.
        finished: Nothing more can be reached.
        v: The next right vector.
        u: The last left vector.
    """

    def __init__(self, operator: ConvolutionOperator) -> None:
        forward = math.prod(operator.inputs) <= math.prod(operator.outputs)
        self.product = operator.apply if forward else operator.adjoint
        self._transposed = operator.adjoint if forward else operator.apply
        shape = operator.inputs if forward else operator.outputs
        v = torch.randn(1, *shape, generator=generator(0), dtype=torch.float64)
        self.v = (v / torch.linalg.vector_norm(v)).to(operator.weight)
        self.u = torch.zeros(1, dtype=self.v.dtype, device=self.v.device)
        self.diagonal: list[float] = []
        self.coupling: list[float] = []
        self.finished = False
        self._most = math.prod(shape)

    def step(self) -> None:
        """One product with A, one with its transpose."""
        w = self.product(self.v)
        if self.coupling:
            w -= self.coupling[-1] * self.u
        alpha = float(torch.linalg.vector_norm(w))
        self.u = w / alpha if alpha else w
        w = self._transposed(self.u) - alpha * self.v
        beta = float(torch.linalg.vector_norm(w))
        self.diagonal.append(alpha)
        self.coupling.append(beta)
        scale = max(*self.diagonal, *self.coupling)
        self.finished = len(self.diagonal) == self._most or not beta > _EPSILON * scale
        self.v = w / beta if beta else w

    def matrix(self) -> torch.Tensor:
        """B, float64."""
        b = torch.diag(torch.tensor(self.diagonal, dtype=torch.float64))
        above = torch.tensor(self.coupling[:-1], dtype=torch.float64)
        return b + torch.diag(above, 1)


@torch.no_grad()
def _ritz_vectors(
    operator: ConvolutionOperator, left: torch.Tensor, right: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """U `left` and V `right`, from the same steps once more: to keep U and V would take as many maps as steps."""
    run = _Bidiagonalization(operator)
    u, v = torch.zeros((), dtype=run.v.dtype, device=run.v.device), torch.zeros_like(run.v)
    for a, b in zip(left.tolist(), right.tolist(), strict=True):
        v = v + b * run.v
        run.step()
        u = u + a * run.u
    return u, v
