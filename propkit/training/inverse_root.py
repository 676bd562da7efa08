"""G^{-1/2} of many Hermitian positive matrices: by products of real matrices, or by eigenvalues.

A Hermitian matrix is carried as the real matrix Re + Im: the real part is symmetric, the imaginary
part antisymmetric, so that nothing is lost. With A, B such matrices of two that commute,

    A ∘ B = A (B + Bᵀ)/2 + Aᵀ (B − Bᵀ)/2

is that of their product: two real products, half of what a complex one costs.

The products are those of Newton-Schulz iterations, Z ← Z T and M ← M T² from Z = I and M = G / bound
(Higham 2008, Sec. 8.3), but for T: see `POLYNOMIAL`, `RATIONAL` and `STEP`, which bring the singular
values √M of well-conditioned matrices near 1 in two steps, and `FINISH`.
"""

import torch
from torch import Tensor

POLYNOMIAL = (3.8159282, -9.2786151, 6.4626869)
"""(a, b, c) of T = a + b M + c M²: singular values x from 0.11 to 1 become 0.4075 to 1.

The polynomial a x + b x³ + c x⁵ is the one whose least value on the interval is the largest, of those
that do not exceed 1 (as in the Polar Express, arXiv:2505.16932); so are the two below, of their kinds.
"""
RATIONAL = (2.300435, -1.9126303, 209.9631724, 11514.926)
"""(a, b, s, p) of T = a + b M + s (I + p M)^{-1}: values from 0.002 to 1 become 0.406 to 1."""
LOWEST = 0.406
STEP = (2.8337703, -4.0411082, 2.2073379)
"""(a, b, c) as in `POLYNOMIAL`: values from `LOWEST` to 1 become 0.9044 to 1."""
CENTRE = (1 + 0.9044**2) / 2
"""Of the eigenvalues of M then."""
FINISH = (1.00000003, 0.49998087, 0.37496963, 0.31737431, 0.27872797)
"""Coefficients of the polynomial of degree 4 nearest to (1 − e)^{-1/2} for |e| <= 1/8: to 5e-7."""
_NEAR = 4e-4
"""‖0.32 E³ + 0.28 E⁴‖_F / √m up to which `FINISH` is enough: no |e| is above 0.22 for m <= 64."""
_TRIED = 0.01
"""‖E²‖_F / √m up to which `FINISH` is tried first."""
_AGAIN = 2
"""How many more steps those get that have not converged."""
_SMALLEST = 8
"""Order of matrices from which their products take less time than their eigenvalues."""
_LARGEST = 96
"""Order up to which that is so with `RATIONAL`."""


def polynomial_limit(rows: int, columns: int) -> float:
    """Standard deviation over mean of a Gram matrix' eigenvalues up to which `POLYNOMIAL` is tried.

    It needs singular values from 0.11 of a bound on the largest, which is likely of operators with
    at least 1.8 times as many columns as rows, and of all whose values have come together: for square
    kernels that is after about 6 projections.
    """
    return 0.85 if columns >= 1.8 * rows else 0.3


def largest_bound(fourth: Tensor, mean: Tensor, spread: Tensor, order: int) -> Tensor:
    """A bound on the largest eigenvalue of each matrix: by its distance to the mean.

    Args:
        fourth: (Σ (1 − λ / mean)⁴)^{1/2} of each.
        mean: Of the eigenvalues λ of each.
        spread: Their standard deviation over the mean.
        order: How many there are.
    """
    return mean * (1 + torch.minimum(fourth.sqrt(), spread * (order - 1) ** 0.5)) * (1 + 1e-5)


class InverseRoots:
    """G^{-1/2} of batch after batch of Hermitian matrices, each given, and returned, as Re + Im.

    In float32, for m >= 8, by products; where the residual says that they have not converged, and
    everywhere else, by `inverse_root`. After a batch of which most has not converged, as where a
    channel is zero, products are not tried again.

    Args:
        number: How many matrices a batch has at most.
        like: A matrix of their order, dtype and device.
        columns: Of the operators whose Gram matrices they are.
    """

    def __init__(self, number: int, like: Tensor, columns: int) -> None:
        self._limit = polynomial_limit(len(like), columns)
        self._tried = like.dtype == torch.float32 and len(like) >= _SMALLEST
        # Fresh memory in each batch would cost more than what is done with it.
        self._work = like.new_empty(8, number if self._tried else 0, *like.shape)

    def __call__(self, gram: Tensor, trace: Tensor) -> Tensor:
        """The roots, in memory that the next call writes over.

        Args:
            gram: ``(F, groups, m, m)``.
            trace: Of the largest of each group, ``(groups,)``.
        """
        flat = gram.flatten(0, 1)
        traces = trace.repeat(len(gram))
        if not self._tried:
            return _by_eigenvalues(flat, traces).view_as(gram)
        roots, converged = _Products(self._work[:, : len(flat)]).roots(flat, self._limit)
        left = (~converged).nonzero()[:, 0]
        if len(left):
            self._tried = 2 * len(left) <= len(flat)
            roots[left] = _by_eigenvalues(flat[left], traces[left])
        return roots.view_as(gram)


def inverse_root(gram: Tensor, trace: Tensor) -> Tensor:
    """G^{-1/2} of symmetric or Hermitian matrices ``(..., groups, m, m)`` by their eigenvalues.

    Eigenvalues below ε times the trace are rounding and raised to that: a direction in which the
    operator is zero gets no gain out of noise.

    Args:
        gram: The matrices.
        trace: Of the largest of each group, ``(groups,)``.
    """
    values, vectors = torch.linalg.eigh(gram)
    info = torch.finfo(values.dtype)
    floor = (trace.to(values.dtype) * info.eps).clamp_min(info.tiny)[:, None]
    root: Tensor = (vectors * values.maximum(floor).rsqrt()[..., None, :]) @ vectors.mH
    return root


def _by_eigenvalues(gram: Tensor, trace: Tensor) -> Tensor:
    whole = torch.complex(gram + gram.mT, gram - gram.mT).div_(2)
    root = inverse_root(whole, trace)
    return root.real + root.imag


class _Products:
    """Roots of up to N matrices by products, in memory that is there."""

    def __init__(self, work: Tensor) -> None:
        self._even, self._odd, self._m, self._square, self._t, self._w, self._z, self._spare = work

    def roots(self, gram: Tensor, limit: float) -> tuple[Tensor, Tensor]:
        """Roots of ``(N, m, m)``, and of which they are that, ``(N,)``."""
        order = gram.shape[-1]
        mean = _diagonal(gram).mean(1)
        torch.mul(gram, _wide(-mean.reciprocal()), out=self._m)
        _diagonal(self._m).add_(1)
        spread = _norm(self._m) / order**0.5
        self._right(self._m)
        self._times(self._m, self._square)
        fourth = _norm(self._square)
        if bool((fourth <= _TRIED * order**0.5).all()):
            roots, converged = self._finish()
            if converged.all():
                return roots.mul_(_wide(mean.rsqrt())), converged
        bound = largest_bound(fourth, mean, spread, order)
        self._scale(mean / bound)
        wide = spread > limit
        if order > _LARGEST and wide.all():
            return self._z, wide.logical_not_()
        if order <= _LARGEST and wide.any():
            self._rational()
            self._step()
        elif float((mean * (1 - spread).square() / bound).amin()) < LOWEST**2:
            self._polynomial(POLYNOMIAL)
            self._step()
        else:
            self._polynomial(STEP)
        roots, converged = self._end(_AGAIN)
        return roots.mul_(_wide(bound.rsqrt())), converged

    def _right(self, b: Tensor) -> None:
        """Make b the right factor of the products that follow."""
        torch.add(b, b.mT, out=self._even)
        torch.sub(self._even, b, alpha=2, out=self._odd)

    def _times(self, a: Tensor, out: Tensor) -> None:
        """A ∘ B."""
        torch.baddbmm(out, a, self._even, beta=0, alpha=0.5, out=out)
        out.baddbmm_(a.mT, self._odd, alpha=-0.5)

    def _scale(self, ratio: Tensor) -> None:
        """From E = I − G / mean and its square to M = G / bound and its own."""
        self._m.neg_()
        _diagonal(self._m).add_(1)
        self._m.mul_(_wide(ratio))
        self._square.mul_(_wide(ratio.square())).addcmul_(self._m, _wide(2 * ratio))
        _diagonal(self._square).sub_(ratio.square()[:, None])

    def _polynomial(self, coefficients: tuple[float, float, float]) -> None:
        """Z = T and M ← M T², of M and its square."""
        torch.mul(self._square, coefficients[2], out=self._z)
        self._z.add_(self._m, alpha=coefficients[1])
        _diagonal(self._z).add_(coefficients[0])
        self._right(self._z)
        self._times(self._m, self._w)
        self._times(self._w, self._m)

    def _rational(self) -> None:
        """Z = T and M ← M T², of M and its square: M S = (I − S) / p, S the inverse in T, costs nothing."""
        a, b, s, p = RATIONAL
        self._right(self._m)  # twice the real and −2 the imaginary part
        _diagonal(self._even.mul_(p / 2)).add_(1)
        factor, _ = torch.linalg.cholesky_ex(torch.complex(self._even, self._odd.mul_(-p / 2)))
        inverse = torch.cholesky_inverse(factor)
        torch.add(inverse.real, inverse.imag, out=self._w)  # S
        torch.mul(self._w, s, out=self._z).add_(self._m, alpha=b)
        _diagonal(self._z).add_(a)
        self._m.mul_(a).add_(self._square, alpha=b).sub_(self._w, alpha=s / p)
        _diagonal(self._m).add_(s / p)  # M T
        self._right(self._z)
        self._times(self._m, self._w)
        self._m, self._w = self._w, self._m

    def _step(self) -> None:
        """Z ← Z T and M ← M T², T by `STEP`."""
        a, b, c = STEP
        self._right(self._m)
        self._times(self._m, self._square)
        torch.mul(self._square, c, out=self._t).add_(self._m, alpha=b)
        _diagonal(self._t).add_(a)
        self._right(self._t)
        self._times(self._m, self._w)
        self._times(self._w, self._m)
        self._times(self._z, self._w)
        self._z, self._w = self._w, self._z

    def _end(self, again: int) -> tuple[Tensor, Tensor]:
        """Roots, those that have not converged after up to so many more steps."""
        mean = _diagonal(self._m).mean(1)
        self._m.mul_(_wide(-mean.reciprocal()))
        _diagonal(self._m).add_(1)  # E
        self._right(self._m)
        self._times(self._m, self._square)
        t, converged = self._finish()
        self._right(t)
        self._times(self._z, self._spare)
        roots = self._spare.mul_(_wide(mean.rsqrt()))
        left = (~converged).nonzero()[:, 0]
        if again and 0 < 2 * len(left) <= len(roots):
            rest = _Products(roots.new_empty(8, len(left), *roots.shape[1:]))
            torch.mul(self._m[left], _wide(-mean[left]), out=rest._m)
            _diagonal(rest._m).add_(mean[left][:, None])
            rest._z.copy_(self._z[left])
            rest._step()
            roots[left], converged[left] = rest._end(again - 1)
        return roots, converged

    def _finish(self) -> tuple[Tensor, Tensor]:
        """(I − E)^{-1/2} of E and its square, and for which it is that."""
        torch.mul(self._m, FINISH[3], out=self._t).add_(self._square, alpha=FINISH[4])
        self._right(self._square)
        self._times(self._t, self._w)
        order = self._w.shape[-1]
        converged = _norm(self._w) <= _NEAR * order**0.5
        self._w.add_(self._square, alpha=FINISH[2]).add_(self._m, alpha=FINISH[1])
        _diagonal(self._w).add_(FINISH[0])
        return self._w, converged


def _norm(a: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(a, dim=(1, 2))
    return norm


def _diagonal(a: Tensor) -> Tensor:
    return a.diagonal(dim1=1, dim2=2)


def _wide(a: Tensor) -> Tensor:
    return a[:, None, None]
