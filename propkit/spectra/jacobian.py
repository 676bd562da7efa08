"""Singular values of the Jacobian of a function at a point, from products with it: extremes, density, moments.

The Jacobian is that of the whole batch. A network that treats its samples separately has a block diagonal one, a
block per sample, whose spectrum is the union of theirs; batch normalisation in training mode couples the samples.
`propkit.module_map.module_map` makes a function of a module.
"""

from typing import NamedTuple

import torch

from propkit.spectra.lanczos import Estimate, bidiagonalize, generator, trace_moments
from propkit.spectra.linearize import Function, Jacobian


class Extremes(NamedTuple):
    """The two ends of a spectrum, as far as a Krylov space shows them; all 0-d, float64.

    Attributes:
        largest: Lower bound of the largest singular value, which usually is exact to many digits.
        smallest: Upper bound of the smallest of the min(m, n) ones.
        largest_error: A singular value is no farther than this from `largest`.
        smallest_error: The same for `smallest`. It is resolved where this is small beside it, which takes many steps
            unless the spectrum has a gap there.
    """

    largest: torch.Tensor
    smallest: torch.Tensor
    largest_error: torch.Tensor
    smallest_error: torch.Tensor


class Density(NamedTuple):
    """The distribution of min(m, n) singular values, as a quadrature rule.

    Attributes:
        nodes: Ascending values σ, (k,), float64.
        weights: The share of the spectrum that each stands for, (k,); they sum to 1.
    """

    nodes: torch.Tensor
    weights: torch.Tensor

    def quantile(self, q: float) -> torch.Tensor:
        """The smallest node below or at which the share `q` of the singular values lies, 0-d.

        Raises:
            ValueError: `q` is not between 0 and 1.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"quantile: expected a share between 0 and 1, found {q}")
        share = self.weights.cumsum(0)
        return self.nodes[torch.searchsorted(share, q * share[-1]).clamp_max(len(share) - 1)]

    def moment(self, power: float) -> torch.Tensor:
        """The mean of σ to that power, 0-d."""
        return (self.weights * self.nodes**power).sum()


class Moments(NamedTuple):
    """Means over the n input dimensions, ‖J‖_F²/n and ‖JᵀJ‖_F²/n; all 0-d, float64.

    Attributes:
        mean_square: Mean of σ² with its standard error: by what factor J changes the mean square length of a random
            vector; 1 where it preserves norms on average.
        mean_fourth: Mean of σ⁴ with its standard error; equal to `mean_square` squared where all σ are alike.
    """

    mean_square: Estimate
    mean_fourth: Estimate


def jacobian_matrix(f: Function, x: torch.Tensor) -> torch.Tensor:
    """The Jacobian ∂f/∂x as a matrix (m, n), rows by elements of f(x), float64; min(m, n) products.

    Args:
        f: Function of one tensor, which returns one; see `propkit.spectra.linearize.Jacobian`.
        x: Where, any shape, the batch dimension included.

    Raises:
        ValueError: It has more than `propkit.spectra.linearize.DENSE_LIMIT` elements.
    """
    return Jacobian(f, x).dense()


def jacobian_singular_values(f: Function, x: torch.Tensor) -> torch.Tensor:
    """All min(m, n) singular values of the Jacobian ∂f/∂x, descending, float64: for small ones, by a dense SVD.

    >>> weight = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> jacobian_singular_values(lambda x: x @ weight.T, torch.zeros(2, 2))  # two samples, the same twice
    tensor([3., 3., 1., 1.], dtype=torch.float64)

    Args:
        f: As in `jacobian_matrix`.
        x: As in `jacobian_matrix`.

    Raises:
        ValueError: The Jacobian has more than `DENSE_LIMIT` elements; the other functions here have no limit.
    """
    return Jacobian(f, x).singular_values()


def jacobian_extremes(
    f: Function, x: torch.Tensor, *, iterations: int = 40, seed: int = 0
) -> Extremes:
    """The largest and the smallest of the min(m, n) singular values of ∂f/∂x, by Golub-Kahan-Lanczos.

    Ritz values lie within the spectrum. The largest converges fast (40 steps: below 1e-3 relative without any gap). The
    smallest is resolved within few steps only where the spectrum is narrow or min(m, n) is not much larger than the
    number of steps; its error says whether it is. From `iterations` >= min(m, n) on both are exact. Values below
    the rounding of f's dtype times the largest one are noise.

    Args:
        f: As in `jacobian_matrix`.
        x: As in `jacobian_matrix`.
        iterations: Products with J, and with Jᵀ; 2·iterations float64 vectors of the sizes of x and f(x) are stored.
        seed: Of the random starting vector; the global generator is not used.

    Returns:
        Values and bounds of their errors (of the Lanczos process, not of rounding in f).
    """
    _positive("iterations", iterations)
    run = bidiagonalize(Jacobian(f, x).smaller(), iterations, generator(seed))
    values, errors, _ = run.ritz()
    return Extremes(values[0], values[-1], errors[0], errors[-1])


def jacobian_density(
    f: Function, x: torch.Tensor, *, probes: int = 8, steps: int = 40, seed: int = 0
) -> Density:
    """The distribution of the min(m, n) singular values of ∂f/∂x by stochastic Lanczos quadrature.

    Ubaru, Chen & Saad, SIAM J. Matrix Anal. Appl. 38 (2017). Each random vector's rule integrates polynomials in σ²
    up to degree 2·steps − 1 exactly. A share of the spectrum has a sampling error of about 1/√(probes·min(m, n)), and
    values near zero are told apart only as far as σ_max/`steps`.

    >>> density = jacobian_density(lambda x: 2 * x, torch.zeros(100))
    >>> round(float(density.quantile(0.5)), 6), round(float(density.moment(2)), 6)
    (2.0, 4.0)

    Args:
        f: As in `jacobian_matrix`.
        x: As in `jacobian_matrix`.
        probes: Random vectors.
        steps: Products with J, and with Jᵀ, for each; so many float64 vectors are stored twice.
        seed: Of the random vectors; the global generator is not used.

    Returns:
        At most probes·steps nodes with their weights.
    """
    _positive("probes", probes)
    _positive("steps", steps)
    operator = Jacobian(f, x).smaller()
    random = generator(seed)
    rules = [bidiagonalize(operator, steps, random).ritz() for _ in range(probes)]
    nodes, order = torch.cat([values for values, _, _ in rules]).sort()
    return Density(nodes, torch.cat([weights for _, _, weights in rules])[order] / probes)


def jacobian_moments(f: Function, x: torch.Tensor, *, probes: int = 32, seed: int = 0) -> Moments:
    """Mean of σ² and of σ⁴ over the n input dimensions of ∂f/∂x, by Hutchinson's estimator with random signs.

    Hutchinson, Commun. Stat. Simul. Comput. 18 (1989).

    Args:
        f: As in `jacobian_matrix`.
        x: As in `jacobian_matrix`.
        probes: Random vectors: as many products with J and with Jᵀ.
        seed: Of the random vectors; the global generator is not used.
    """
    _positive("probes", probes)
    operator = Jacobian(f, x).smaller()
    traces = trace_moments(operator, probes, generator(seed))
    square, fourth = (Estimate(t.value / x.numel(), t.error / x.numel()) for t in traces)
    return Moments(square, fourth)


def _positive(name: str, number: int) -> None:
    if not isinstance(number, int) or number < 1:
        raise ValueError(f"{name}: expected a positive integer, found {number!r}")
