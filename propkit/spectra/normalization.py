"""Singular values of the Jacobians of layer, group and RMS normalisation.

Each of them normalises sets of n elements on their own, so that the Jacobian is block-diagonal with blocks

    J = Γ B,   B = (I − (e eᵀ + x̂ x̂ᵀ)/n)/s,   Γ = diag(γ),   s = √(σ² + ε),   x̂ = (x − μ)/s

(RMS normalisation: no e, μ = 0, σ² the mean square). Two cases:

* γ constant within a set: ρ = γ/s, and J has the eigenvalues of batch normalisation: 0, ρε/(σ² + ε), and ρ for the
  rest, of which there are n − 2 (RMS: n − 1, and no 0).
* γ varies: J is not symmetric and has no closed form, but is Γ/s up to rank 2. Elements with the same γ (the positions
  of one channel, in group normalisation) form classes. Within a class, what is orthogonal to the parts of e and x̂ that
  lie in it is an eigenspace of JJᵀ with singular value |γ|/s; the rest is one small matrix with two rows per class (one
  where classes have one element). So all singular values are exact, at the cost of that matrix. By interlacing
  |γ|_(k+2)/s <= σ_k <= |γ|_(k)/s with both sorted in descending order (RMS: k + 1), whatever x is; and sums of squares
  and fourth powers are closed forms for any γ (`power_sums`).
"""

import torch

from propkit.spectra.batch_norm import Spectrum, wide

_DENSE = 2048
"""Largest order of the small matrix that is decomposed."""


def layer_norm_singular_values(
    x: torch.Tensor, gamma: torch.Tensor | None = None, eps: float = 1e-5
) -> Spectrum:
    """Singular values of the Jacobian of layer normalisation over the last dimension, for each set.

    Args:
        x: (..., n), floating; flatten the normalised dimensions first where they are several.
        gamma: (n,), the layer's ``weight``, or None.
        eps: The layer's ε.

    Returns:
        γ constant: ``values`` (..., 3) = 0, |ρ|ε/(σ² + ε), |ρ| with multiplicities 1, 1, n − 2; else ``values``
        (..., n) once each, descending, from a decomposition per set.

    Raises:
        ValueError: Shapes do not fit, ε < 0, or γ varies and n > 2048.

    Source: the Jacobian of Ba, Kiros & Hinton, arXiv:1607.06450, Eq. 4; its spectrum as in this file's head.

    >>> layer_norm_singular_values(torch.tensor([1.0, 3.0, 2.0, 6.0]), eps=0.5).values.tolist()
    [0.0, 0.0625, 0.5]
    """
    return _of_sets(x, gamma, eps, centred=True)


def rms_norm_singular_values(
    x: torch.Tensor, gamma: torch.Tensor | None = None, eps: float | None = None
) -> Spectrum:
    """Singular values of the Jacobian of RMS normalisation over the last dimension, for each set.

    Args:
        x: (..., n), floating.
        gamma: (n,), the layer's ``weight``, or None.
        eps: The layer's ε; None is PyTorch's default, the machine epsilon of `x`.

    Returns:
        γ constant: ``values`` (..., 2) = |ρ|ε/(mean(x²) + ε), |ρ| with multiplicities 1, n − 1; else ``values``
        (..., n) once each, descending.

    Raises:
        ValueError: As for `layer_norm_singular_values`.

    Source: the Jacobian of Zhang & Sennrich, arXiv:1910.07467, Eq. 4.
    """
    eps = torch.finfo(x.dtype).eps if eps is None and x.is_floating_point() else eps
    return _of_sets(x, gamma, 0.0 if eps is None else eps, centred=False)


def group_norm_singular_values(
    x: torch.Tensor, groups: int, gamma: torch.Tensor | None = None, eps: float = 1e-5
) -> Spectrum:
    """Singular values of the Jacobian of group normalisation, for each sample and group.

    Instance normalisation has a group per channel.

    Args:
        x: (N, C, *spatial), floating.
        groups: Number of groups G, a divisor of C.
        gamma: (C,), the layer's ``weight``, or None.
        eps: The layer's ε.

    Returns:
        γ constant within each group: ``values`` (N, G, 3) with multiplicities 1, 1, n − 2, n = C/G·(spatial size). Else
        ``values`` (N, G, 3C/G): those of the small matrix, then |γ_c|/s of each of the group's channels with
        multiplicity (spatial size) − 2; (N, G, C/G) without spatial dimensions.

    Raises:
        ValueError: Shapes do not fit, ε < 0, or γ varies in groups of more than 1024 channels.

    Source: the Jacobian of Wu & He, arXiv:1803.08494, Eqs. 1-6.
    """
    _check(x, eps, 2)
    n, channels = x.shape[:2]
    if groups < 1 or channels % groups:
        raise ValueError(
            f"expected a number of groups that divides {channels} channels, found {groups}"
        )
    if gamma is not None and gamma.shape != (channels,):
        raise ValueError(
            f"expected gamma of shape ({channels},), one per channel, found {tuple(gamma.shape)}"
        )
    values = x.detach().to(wide(x)).reshape(n, groups, channels // groups, -1)
    g = None if gamma is None else gamma.detach().to(values).reshape(groups, -1)
    if g is None or bool((g == g[:, :1]).all()):
        values = values.flatten(2).unsqueeze(2)
        g = values.new_ones(groups, 1) if g is None else g[:, :1]
    return _spectrum(
        values.mean(-1), values.var(-1, correction=0), values.shape[-1], g, eps, centred=True
    )


def power_sums(
    mean: torch.Tensor,
    variance: torch.Tensor | float,
    size: int,
    gamma: torch.Tensor,
    eps: float,
    *,
    centred: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sums of squares and of fourth powers of the singular values of each set, for any γ in closed form.

    Args:
        mean: (..., G, k), mean of each of the k classes of elements that share a γ, for each of the G sets of a sample.
        variance: The same shape, biased variance within each class; 0 where classes have one element.
        size: Elements per class.
        gamma: (G, k), γ of each class.
        eps: The layer's ε.
        centred: Whether the mean is removed (layer and group normalisation) or not (RMS normalisation).

    Returns:
        tr JJᵀ, tr (JJᵀ)², and s = √(σ² + ε), each of shape (..., G). Rounding is relative to the powers of γ/s.
    """
    n = size * mean.shape[-1]
    e = float(centred)
    if centred:
        mean = mean - mean.mean(-1, keepdim=True)
    square = mean.square() + variance
    sigma2 = square.mean(-1)
    s2 = sigma2 + eps
    twice = 2 - sigma2 / s2  # 2 − κ
    gamma2, gamma4 = gamma.square(), gamma.square().square()
    # JJᵀ = Γ²/s² − W Wᵀ, where W has the columns Γe/(s√n) and Γx̂√((2 − κ)/n)/s
    w11 = e * gamma2.sum(-1) / s2
    w22 = twice * _weighted(square, gamma2) / s2.square()
    w4 = e * gamma4.sum(-1) + twice * _weighted(square, gamma4) / s2
    second = size * (gamma2.sum(-1) / s2 - (w11 + w22) / n)
    cross = twice * _weighted(mean, gamma2).square() / s2**3 if centred else 0.0
    both = w11.square() + 2 * cross + w22.square()
    fourth = size * (gamma4.sum(-1) - 2 * w4 / n) / s2.square() + (size / n) ** 2 * both
    return second, fourth, s2.sqrt()


def _weighted(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.einsum("...gk,gk->...g", values, weight)


def _of_sets(x: torch.Tensor, gamma: torch.Tensor | None, eps: float, centred: bool) -> Spectrum:
    _check(x, eps, 1)
    n = x.shape[-1]
    if gamma is not None and gamma.shape != (n,):
        raise ValueError(
            f"expected gamma of shape ({n},), one per normalised element, found {tuple(gamma.shape)}"
        )
    values = x.detach().to(wide(x)).unsqueeze(-1)
    g = None if gamma is None else gamma.detach().to(values)
    if g is None or bool((g == g[0]).all()):
        values = values.mT
        g = values.new_ones(1) if g is None else g[:1]
    return _spectrum(
        values.mean(-1), values.var(-1, correction=0), values.shape[-1], g, eps, centred=centred
    )


def _spectrum(
    mean: torch.Tensor,
    variance: torch.Tensor,
    size: int,
    gamma: torch.Tensor,
    eps: float,
    *,
    centred: bool,
) -> Spectrum:
    """All singular values from class statistics (..., k), of sets with γ of shape (k,) or one that broadcasts."""
    classes = mean.shape[-1]
    n = size * classes
    if centred:
        mean = mean - mean.mean(-1, keepdim=True)
    sigma2 = (variance + mean.square()).mean(-1)
    s = (sigma2 + eps).sqrt()
    bulk = gamma.abs() / s[..., None]
    if classes == 1:  # γ is constant
        along = bulk * (eps / (sigma2 + eps))[..., None]
        if not centred:
            return Spectrum(torch.cat([along, bulk], -1), torch.tensor([1, n - 1]))
        values = torch.cat([torch.zeros_like(bulk), along, bulk], -1)
        return Spectrum(values, torch.tensor([1, 1, n - 2] if n > 1 else [1, 0, 0]))
    order = classes if size == 1 else 2 * classes
    if order > _DENSE:
        raise ValueError(
            f"gamma varies, so that the singular values need a matrix of order {order} for each set, which is more "
            f"than {_DENSE}; they lie within |gamma|/s, see power_sums for exact sums"
        )
    # Basis: per class the constant direction, then that of x within the class.
    a, inner = mean / s[..., None], (size * variance).sqrt() / s[..., None]
    x_hat = size**0.5 * a if size == 1 else torch.cat([size**0.5 * a, inner], -1)
    projection = torch.eye(order, dtype=s.dtype, device=s.device)
    if centred:
        e = torch.zeros(order, dtype=s.dtype, device=s.device)
        e[:classes] = size**0.5
        projection = projection - torch.outer(e, e) / n
    rho = gamma / s[..., None]
    rho = rho if size == 1 else torch.cat([rho, rho], -1)
    small = rho[..., None] * (projection - x_hat[..., None] * x_hat[..., None, :] / n)
    values = torch.linalg.svdvals(small)
    if size == 1:
        return Spectrum(values, torch.ones(order, dtype=torch.int64))
    counts = torch.tensor([1] * order + [size - 2] * classes)
    return Spectrum(torch.cat([values, bulk.expand(*values.shape[:-1], classes)], -1), counts)


def _check(x: torch.Tensor, eps: float, dims: int) -> None:
    if x.ndim < dims or not x.numel() or not x.is_floating_point():
        raise ValueError(
            f"expected x with at least {dims} dimension(s), floating and not empty, "
            f"found shape {tuple(x.shape)}, {x.dtype}"
        )
    if not eps >= 0:
        raise ValueError(f"expected eps >= 0, found {eps}")
