"""Singular values of convolutions: propkit beside the published recipe, one thread, in interleaved rounds.

    python benchmarks/convolution_spectra.py [--rounds 9] [--quick]

The recipe is that of arXiv:1805.10408 in NumPy, ``svd(fft2(kernel, size, axes=[0, 1]), compute_uv=False)``, with the
kernel in its layout (height, width, in, out) and in float64: the FFT of the NumPy of its time gave complex128 for any
kernel. propkit's numbers are float64 as well, from the same kernel in PyTorch's layout, sorted.

Each round times every way once, in random order. A time is CPU time; a ratio is the median over the rounds of
recipe / way. The recipe knows no stride: for layers that have one it is given the map at their input and, in brackets,
that at their output. Neither gives the values of the layer, nor as many.
"""

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from propkit.models import plain
from propkit.spectra import conv_singular_values, conv_spectral_norm

Layer = tuple[int, int, int, int, int]  # filters, channels, kernel, map at the input, stride
SIZES: list[Layer] = [
    (64, 3, 3, 32, 1),
    (16, 16, 3, 32, 1),
    (64, 64, 3, 32, 1),
    (128, 64, 3, 16, 1),
    (256, 128, 3, 8, 1),
    (512, 256, 3, 8, 1),
]
EVERYWHERE, WIDENING = (
    2.3,
    4.0,
)  # the targets; the second where a layer at least doubles its channels
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def layers_of_plain44() -> list[Layer]:
    """The distinct convolutions of the 44-layer plain network on 32x32 images."""
    found: dict[Layer, None] = {}

    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor], _: torch.Tensor) -> None:
        filters, channels, kernel, _ = module.weight.shape
        found[filters, channels, kernel, inputs[0].shape[-1], module.stride[0]] = None

    network = plain(depth=44)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(note)
    with torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    return list(found)


def official(kernel: np.ndarray, size: int) -> np.ndarray:
    """Sedghi, Gupta and Long's function."""
    transforms = np.fft.fft2(kernel, (size, size), axes=[0, 1])
    return np.linalg.svd(transforms, compute_uv=False)


def rounds(ways: dict[str, Callable[[], object]], number: int) -> dict[str, list[float]]:
    """CPU seconds of each way in each round."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(number):
        for name in random.sample(list(ways), len(ways)):
            begin = time.process_time()
            ways[name]()
            times[name].append(time.process_time() - begin)
    return times


def ratio(times: dict[str, list[float]], above: str, below: str) -> float:
    return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))


def compare(layer: Layer, number: int) -> tuple[bool, str]:
    filters, channels, k, size, stride = layer
    weight = torch.randn(filters, channels, k, k, generator=torch.Generator().manual_seed(0))
    weight = weight.double()
    kernel = weight.permute(2, 3, 1, 0).contiguous().numpy()
    ways = {
        "official": lambda: official(kernel, size),
        "all": lambda: conv_singular_values(weight, size, stride),
        "accurate": lambda: conv_singular_values(weight, size, stride, accurate=True),
        "norm": lambda: conv_spectral_norm(weight, size, stride),
    }
    if stride > 1:
        ways["output"] = lambda: official(kernel, size // stride)
    times = rounds(ways, number)
    exact = ways["accurate"]()
    if stride == 1:
        exact = torch.from_numpy(np.sort(ways["official"](), axis=None)[::-1].copy())
    error = float((ways["all"]() - exact).abs().max() / exact[0])
    norm_error = abs(float(ways["norm"]() / exact[0]) - 1)
    target = WIDENING if filters >= 2 * channels else EVERYWHERE
    faster = ratio(times, "official", "all")
    met = faster >= target
    at_output = f" [{ratio(times, 'output', 'all'):.1f}]" if stride > 1 else ""
    milliseconds = {name: 1e3 * statistics.median(t) for name, t in times.items()}
    return met, (
        f"{f'({filters},{channels},{size})' + (f'/{stride}' if stride > 1 else ''):<14}"
        f"{milliseconds['official']:>10.1f}{milliseconds['all']:>9.1f}{f'{faster:.1f}x{at_output}':>13}"
        f"{ratio(times, 'official', 'accurate'):>9.1f}x{ratio(times, 'official', 'norm'):>9.1f}x"
        f"{ratio(times, 'all', 'norm'):>10.1f}x{error:>10.0e}{norm_error:>9.0e}"
        f"   >= {target}x {'MET' if met else 'NOT MET'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="three rounds, small layers only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    print(f"torch {torch.__version__}, NumPy {np.__version__}, load {os.getloadavg()[0]:.1f}")
    print(
        f"{'filters,chan,n':<14}{'recipe ms':>10}{'ours ms':>9}{'all values':>13}{'by SVD':>10}{'norm':>10}"
        f"{'all/norm':>11}{'error':>10}{'of norm':>9}   target"
    )
    results = []
    for title, layers in (("six sizes", SIZES), ("plain44, 32x32", layers_of_plain44())):
        print(title)
        for layer in layers:
            if options.quick and layer[0] * layer[1] * layer[3] ** 2 > 2**19:
                continue
            met, line = compare(layer, 3 if options.quick else options.rounds)
            results.append(met)
            print(line, flush=True)
    print(f"{sum(results)} of {len(results)} targets met")


if __name__ == "__main__":
    if not os.environ.items() >= ONE_THREAD.items():  # read when the libraries are loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ONE_THREAD})
    main()
