"""G^{-1/2} of many Hermitian positive matrices: by products of real matrices, or by eigenvalues.

A Hermitian matrix is carried as the real matrix Re + Im: the real part is symmetric, the imaginary
part antisymmetric, so that nothing is lost. With A, B such matrices of two that commute,

    A ∘ B = A (B + Bᵀ)/2 + Aᵀ (B − Bᵀ)/2

is that of their product: two real products, half of what a complex one costs.
"""

import torch
from torch import Tensor

_STEPS = (
    (3.8478, -9.5334, 6.6836),
    (2.9123, -4.3758, 2.4615),
    (2.0024, -1.5175, 0.5153),
)
"""(a, b, c) of a x + b x³ + c x⁵, one after the other for singular values x from 0.1 to 1.

Each is the polynomial nearest to 1 on the interval that the one before leaves, of which the upper
end is 1 (divided by 1.002 against rounding). So does the Polar Express, arXiv:2505.16932.
"""
_SMALLEST = 8
"""Order of matrices from which their products take less time than their eigenvalues."""
_CONVERGED = 1e-3
"""‖I − M‖_F / √m from which the last step leaves rounding errors."""


def spread_limit(rows: int, columns: int) -> float:
    """Standard deviation over mean of a Gram matrix' eigenvalues up to which `steps` are tried.

    They converge for singular values from 0.1 of a bound on the largest, which is likely of
    operators with at least 1.5 times as many columns as rows, and of all whose values have come
    together: for square kernels that is after about 6 projections.
    """
    return 0.85 if columns >= 1.5 * rows else 0.3


def steps(mean: Tensor, spread: Tensor, bound: Tensor) -> tuple[tuple[float, float, float], ...]:
    """The (a, b, c) of T = a + b M + c M², M = G / bound, that bring singular values to 1 ± 2e-4.

    The first two, which make values from 0.1 as large as 0.88, are left out where the smallest
    eigenvalue of a Marchenko-Pastur law is above that anyway.

    Args:
        mean: Of the eigenvalues of each G.
        spread: Their standard deviation over the mean.
        bound: On the largest.
    """
    lowest = float((mean * (1 - spread).square() / bound).amin())
    return _STEPS[(lowest > 0.2) + (lowest > 0.8) :]


def largest_bound(square: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """A bound on the largest eigenvalue of each matrix, of which the square is given."""
    return torch.minimum(
        torch.linalg.vector_norm(square, dim=(-2, -1)).sqrt(),
        mean * (1 + spread * (square.shape[-1] - 1) ** 0.5),
    ) * (1 + 1e-5)


def inverse_roots(gram: Tensor, trace: Tensor, columns: int) -> Tensor:
    """G^{-1/2}, each Hermitian matrix given, and returned, as Re + Im.

    In float32, for m >= 8, by products where `spread_limit` says that it is worth trying; where the
    residual says that they have not converged, and everywhere else, by `inverse_root`.

    Args:
        gram: ``(F, groups, m, m)``, float32 or float64.
        trace: Of the largest of each group, ``(groups,)``.
        columns: Of the operators whose Gram matrices they are.
    """
    m = gram.shape[-1]
    flat = gram.flatten(0, 1)
    traces = trace.repeat(len(gram))
    if gram.dtype != torch.float32 or m < _SMALLEST:
        return _by_eigenvalues(flat, traces).view_as(gram)
    mean = flat.diagonal(dim1=1, dim2=2).mean(1)
    norm = torch.linalg.vector_norm(flat, dim=(1, 2))
    spread = ((norm / mean).square() / m - 1).clamp_min(0).sqrt()
    tried = spread <= spread_limit(m, columns)
    if not tried.any():
        return _by_eigenvalues(flat, traces).view_as(gram)
    if tried.all():
        roots, converged = _by_products(flat, mean, spread)
    else:
        roots, converged = torch.empty_like(flat), torch.zeros_like(tried)
        roots[tried], converged[tried] = _by_products(flat[tried], mean[tried], spread[tried])
    if not converged.all():
        roots[~converged] = _by_eigenvalues(flat[~converged], traces[~converged])
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


def _by_products(gram: Tensor, mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """Roots of ``(N, m, m)``, and of which they are that, ``(N,)``.

    Z ← Z T and M ← M T² from Z = I: Newton-Schulz iterations (Higham 2008, Sec. 8.3) but for the
    polynomials; the last step, to rounding, is theirs: Z ← Z + Z (I − M) / 2.

    Args:
        gram: The matrices.
        mean: Of the eigenvalues of each.
        spread: Their standard deviation over the mean.
    """
    even, odd, square, t, w = (torch.empty_like(gram) for _ in range(5))

    def right(b: Tensor) -> None:
        """Make b the right factor of the products that follow."""
        torch.add(b, b.mT, out=even)
        torch.sub(even, b, alpha=2, out=odd)

    def times(a: Tensor, out: Tensor) -> Tensor:
        """A ∘ B; nothing is allocated."""
        torch.baddbmm(out, a, even, beta=0, alpha=0.5, out=out)
        return out.baddbmm_(a.mT, odd, alpha=-0.5)

    right(gram)
    times(gram, square)
    bound = largest_bound(square, mean, spread)
    scale = bound.reciprocal()[:, None, None]
    m, root = gram * scale, torch.empty_like(gram)
    square *= scale.square()
    for i, (a, b, c) in enumerate(steps(mean, spread, bound)):
        if i:
            right(m)
            times(m, square)
        torch.mul(square, c, out=t).add_(m, alpha=b)
        t.diagonal(dim1=1, dim2=2).add_(a)
        right(t)
        times(times(m, w), m)
        root.copy_(times(root, w) if i else t)
    left = m.neg_()
    left.diagonal(dim1=1, dim2=2).add_(1)
    right(left)
    root = times(root, w).div_(2).add_(root).mul_(scale.sqrt())
    return root, torch.linalg.vector_norm(left, dim=(1, 2)) < _CONVERGED * len(m[0]) ** 0.5
