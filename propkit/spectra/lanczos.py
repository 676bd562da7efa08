"""Golub-Kahan-Lanczos bidiagonalisation and Hutchinson's estimator: spectra of operators that can only be applied."""

from collections.abc import Callable
from typing import NamedTuple

import torch


def generator(seed: int) -> torch.Generator:
    """Random numbers of their own, on the CPU: the global generator is left alone.

    The seed is scrambled: a plain ``manual_seed(0)`` would repeat the very numbers that a network seeded with 0 was
    initialised with, and a starting vector equal to a row of its first weight is anything but random.
    """
    return torch.Generator().manual_seed((seed * 2654435761 + 1779033703) % 2**32)


class Operator(NamedTuple):
    """A linear operator A that can only be applied.

    Attributes:
        apply: ``v -> A v``.
        transposed: ``u -> Aᵀ u``.
        order: Its number of columns.
        epsilon: Relative rounding of the products: what is smaller counts as nothing.
        zero: 0-d, of the dtype and on the device of all vectors.
    """

    apply: Callable[[torch.Tensor], torch.Tensor]
    transposed: Callable[[torch.Tensor], torch.Tensor]
    order: int
    epsilon: float
    zero: torch.Tensor


class Bidiagonal(NamedTuple):
    """A V = U B and Aᵀ U = V Bᵀ + β_k v_{k+1} e_kᵀ after k steps, with orthonormal columns in V and U.

    Attributes:
        basis: V transposed, (k, n): the right Lanczos vectors as rows.
        diagonal: α_1..α_k, the diagonal of B.
        coupling: β_1..β_k: the first k − 1 stand above the diagonal of B, the last couples to what was not seen.
    """

    basis: torch.Tensor
    diagonal: torch.Tensor
    coupling: torch.Tensor

    @property
    def matrix(self) -> torch.Tensor:
        """B, (k, k), upper bidiagonal."""
        return torch.diag(self.diagonal) + torch.diag(self.coupling[:-1], 1)

    def ritz(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ritz values, descending; how far the nearest singular value of A is at most; quadrature weights.

        The weights are those of Gauss' rule for the measure that the first basis vector has on the spectrum of AᵀA:
        Σ_i w_i f(θ_i²) ≈ v_1ᵀ f(AᵀA) v_1, exact for polynomials f of degree up to 2k − 1 (Golub & Meurant 2010,
        chapter 6).
        """
        b = self.matrix
        if not torch.isfinite(b).all():
            nothing = torch.full_like(self.diagonal, float("nan"))
            return nothing, nothing, nothing
        left, values, right = torch.linalg.svd(b)
        return values, self.coupling[-1] * left[-1].abs(), right[:, 0].square()


def bidiagonalize(operator: Operator, steps: int, random: torch.Generator) -> Bidiagonal:
    """Golub-Kahan-Lanczos bidiagonalisation from a random vector, both bases fully reorthogonalised.

    Without that, copies of converged Ritz values appear: harmless for the largest, but not for the smallest or for
    counting. It stores 2·steps vectors.

    Args:
        operator: A, (m, n).
        steps: Number of products with A, and of those with Aᵀ.
        random: See `generator`.

    Returns:
        At most `steps` steps; fewer where all that the vector can reach was seen. NaN where a product is not finite.
    """
    n = operator.order
    steps = min(steps, n)
    start = torch.randn(n, generator=random, dtype=torch.float64).to(operator.zero)
    right = operator.zero.new_zeros(steps, n)
    left: torch.Tensor | None = None
    right[0] = start / torch.linalg.vector_norm(start)
    diagonal, coupling = operator.zero.new_zeros(2, steps)
    scale = operator.zero
    k = 0
    for k in range(steps):
        u = operator.apply(right[k])
        left = u.new_zeros(steps, len(u)) if left is None else left
        if k:
            u = u - coupling[k - 1] * left[k - 1]
        diagonal[k] = _normalize(u, left[:k], left[k])
        scale = torch.maximum(scale, diagonal[k])
        if not diagonal[k] > operator.epsilon * scale:  # also where it is NaN
            break
        v = operator.transposed(left[k]) - diagonal[k] * right[k]
        coupling[k] = _normalize(v, right[: k + 1], right[k + 1] if k + 1 < steps else None)
        scale = torch.maximum(scale, coupling[k])
        if not coupling[k] > operator.epsilon * scale or k + 1 == n:
            coupling[k] *= 0
            break
    return Bidiagonal(right[: k + 1], diagonal[: k + 1], coupling[: k + 1])


def _normalize(
    vector: torch.Tensor, basis: torch.Tensor, into: torch.Tensor | None
) -> torch.Tensor:
    """Norm of `vector` without its part in the span of the rows of `basis`; the unit vector goes to `into`."""
    vector = vector - basis.mT @ (basis @ vector)  # once: the large part was subtracted already
    norm: torch.Tensor = torch.linalg.vector_norm(vector)
    if into is not None:
        torch.div(vector, torch.where(norm > 0, norm, torch.ones_like(norm)), out=into)
    return norm


class Estimate(NamedTuple):
    """A mean over random vectors.

    Attributes:
        value: 0-d.
        error: Standard error of `value`, 0-d; NaN for a single vector.
    """

    value: torch.Tensor
    error: torch.Tensor


def trace_moments(
    operator: Operator, probes: int, random: torch.Generator, known: Bidiagonal | None = None
) -> tuple[Estimate, Estimate]:
    """Traces of AᵀA and of (AᵀA)² by Hutchinson's estimator, with random signs.

    What a bidiagonalisation has seen is exact, and only the rest is estimated, which makes the estimate good also
    where few directions dominate (Meyer et al., arXiv:2010.09649; Chen & Hallman, arXiv:2205.01736).

    Args:
        operator: A.
        probes: Number of random vectors: as many products with A and with Aᵀ.
        random: See `generator`.
        known: A bidiagonalisation of A.
    """
    seen = operator.zero.new_zeros(2)
    if known is not None:
        b = known.matrix
        seen[0] = b.square().sum()  # ‖A V‖_F²
        seen[1] = (b.mT @ b).square().sum() + (known.coupling[-1] * known.diagonal[-1]).square()
    samples = operator.zero.new_zeros(2, probes)
    for i in range(probes):
        signs = torch.randint(0, 2, (operator.order,), generator=random)
        z = (2 * signs - 1).to(operator.zero)
        if known is not None:
            z = z - known.basis.mT @ (known.basis @ z)
        for k, product in enumerate((operator.apply, operator.transposed)):
            z = product(z)
            samples[k, i] = torch.dot(z, z)
    values = seen + samples.mean(1)
    errors = samples.std(1) / probes**0.5 if probes > 1 else torch.full_like(values, torch.nan)
    return Estimate(values[0], errors[0]), Estimate(values[1], errors[1])
