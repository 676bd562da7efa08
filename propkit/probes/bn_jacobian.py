"""Spectrum of the Jacobian of normalisation layers, in closed form (Xie, Xiong & Pu, CVPR 2017)."""

import torch
from torch import nn

from propkit.probe import probe
from propkit.probes._reductions import wide
from propkit.schedules import log_spaced
from propkit.spectra.batch_norm import blocks, bn_eigenvalues_from_variance, channel_moments
from propkit.spectra.normalization import power_sums

_BatchNorm = nn.modules.batchnorm._BatchNorm
_Normalization = _BatchNorm | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm


def _is_normalization(module: nn.Module) -> bool:
    return isinstance(module, _Normalization)


@probe(
    sites=_is_normalization,
    units=dict.fromkeys(("rho", "second", "rho_mean", "rho_min", "rho_max"), "output/input"),
    reduce={"rho_min": "min", "rho_max": "max"},
    dims={"rho": "channel", "second": "channel"},
    every=log_spaced(10),
    reference="arXiv:1703.01827, Eqs. 6 and 12-18",
)
def bn_jacobian(input: torch.Tensor, module: _Normalization) -> dict[str, torch.Tensor]:
    """Spectrum of a normalisation layer's Jacobian J, exact, without forming it.

    Batch normalisation of m elements per channel has the eigenvalues 0 (once), ρε/(σ² + ε) (once) and ρ = γ/√(σ² + ε)
    (m − 2 times) in each channel; all are ρ in evaluation mode. The paper takes J Jᵀ for ρ²I: ``deviation`` says how
    far off that is. Group, layer and RMS normalisation have a σ for each set of elements, and no closed form where γ
    varies in a set; their singular values interlace with abs(γ)/s, s = √(σ² + ε), and ``deviation`` is exact there too.

    Synchronised batch normalisation: σ² is that of this process, an estimate of the pooled one; m counts all processes,
    as if their batches had one size.

    Args:
        input: What the layer receives, samples first; read once, in blocks.
        module: The layer: ε, γ, groups and, in evaluation mode, the running variance.

    Returns:
        1-d, along ``channel``: ``rho``, for group, layer and RMS normalisation γ/s averaged over the sets that have the
        channel (a single value for layer and RMS normalisation without γ); ``second``, the second eigenvalue, of batch
        normalisation only. 0-d: ``rho_mean``, ``rho_min``, ``rho_max`` of abs(ρ) over channels and sets; ``deviation``
        ‖J Jᵀ − ρ²I‖_F/‖ρ²I‖_F with ρ² averaged over channels and sets; ``m``, elements per normalised set. Float64.

    >>> values = bn_jacobian(torch.tensor([[1.0], [3.0], [2.0], [6.0]]), nn.BatchNorm1d(1, eps=0.5))
    >>> values["rho"].tolist(), values["second"].tolist(), float(values["m"])
    ([0.5], [0.0625], 4.0)
    """
    if not input.numel():
        return {}
    if isinstance(module, _BatchNorm):
        return _of_channels(input, module)
    return _of_sets(input, module)


def _of_channels(x: torch.Tensor, module: _BatchNorm) -> dict[str, torch.Tensor]:
    """Batch normalisation: one set per channel."""
    m = x.numel() // x.shape[1]
    gamma = _gamma(module, x)
    if module.training or module.running_var is None:
        m *= _processes(module)
        variance = channel_moments(x)[1]
        values = bn_eigenvalues_from_variance(variance, m, gamma, module.eps).values
        zero, second, rho = values.unbind(1)
    else:
        rho = (module.running_var.to(wide(x)) + module.eps).rsqrt()
        zero = second = rho = rho if gamma is None else gamma * rho
    mean_square = rho.square().mean()

    def off(eigenvalues: torch.Tensor) -> torch.Tensor:
        return (eigenvalues.square() - mean_square).square().mean()

    square = (off(zero) + off(second) + (m - 2) * off(rho)) / m if m > 1 else off(zero)
    size = rho.abs()
    return {
        "rho": rho,
        "second": second,
        "rho_mean": size.mean(),
        "rho_min": size.amin(),
        "rho_max": size.amax(),
        "deviation": square.sqrt() / mean_square,
        "m": torch.full_like(mean_square, m),
    }


def _of_sets(
    x: torch.Tensor, module: nn.GroupNorm | nn.LayerNorm | nn.RMSNorm
) -> dict[str, torch.Tensor]:
    """Group, layer and RMS normalisation: sets within a sample, summed over block by block."""
    gamma = _gamma(module, x)
    if isinstance(module, nn.GroupNorm):
        samples = x.reshape(len(x), x.shape[1], -1)
        groups, centred, eps = module.num_groups, True, module.eps
    else:
        samples = x.reshape(-1, torch.Size(module.normalized_shape).numel(), 1)
        groups, centred = 1, isinstance(module, nn.LayerNorm)
        eps = torch.finfo(x.dtype).eps if module.eps is None else module.eps
        if gamma is None:  # all elements of a set are alike
            samples = samples.mT
    channels = samples.shape[1]
    gamma = torch.ones(channels, dtype=wide(x), device=x.device) if gamma is None else gamma
    gamma = gamma.reshape(groups, -1)
    size = samples.shape[2]
    second = fourth = inverse_square = inverse = torch.zeros((), dtype=wide(x), device=x.device)
    smallest, largest = [], []
    for block in blocks(samples):
        sets = block.reshape(len(block), groups, -1, size)
        mean = sets.mean(-1) if size > 1 else sets[..., 0]
        variance = (sets - mean[..., None]).square().mean(-1) if size > 1 else 0.0
        sums = power_sums(mean, variance, size, gamma, eps, centred=centred)
        second, fourth = second + sums[0].sum(), fourth + sums[1].sum()
        inverse = inverse + sums[2].reciprocal().sum(0)  # by group
        inverse_square = inverse_square + sums[2].square().reciprocal().sum(0)
        smallest.append(sums[2].amin(0))
        largest.append(sums[2].amax(0))
    # of |γ|/s over the sets: mean, mean square, ends
    n = len(samples)
    mean_inverse = (inverse / n)[:, None]
    mean_square = (gamma.square() * (inverse_square / n)[:, None]).mean()
    square = (fourth - 2 * mean_square * second) / x.numel() + mean_square.square()
    most = gamma.abs() / torch.stack(smallest).amin(0)[:, None]
    least = gamma.abs() / torch.stack(largest).amax(0)[:, None]
    return {
        "rho": (gamma * mean_inverse).flatten(),
        "rho_mean": (gamma.abs() * mean_inverse).mean(),
        "rho_min": least.amin(),
        "rho_max": most.amax(),
        "deviation": square.clamp_min(0).sqrt() / mean_square,
        "m": torch.full_like(mean_square, gamma.shape[1] * size),
    }


def _gamma(module: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
    """The layer's weight, flat."""
    weight = module.weight
    return weight.detach().flatten().to(wide(x)) if isinstance(weight, torch.Tensor) else None


def _processes(module: nn.Module) -> int:
    """Processes whose batches are normalised together."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not (isinstance(module, nn.SyncBatchNorm) and distributed):
        return 1
    return torch.distributed.get_world_size(module.process_group)
