"""The Procrustes projection: propkit beside the published recipe, one thread, in interleaved rounds.

    python benchmarks/procrustes.py [--rounds 7] [--batch 16] [--quick]

The recipe is that of the authors of arXiv:1805.07477 as their code for Chainer orients it, Gram matrices of the
smaller side, in PyTorch and float32: FFT of the kernel on the whole map, each frequency as a real matrix of twice the
size, 10 coupled Newton-Schulz steps, inverse FFT, cut to the kernel. Its sign error is corrected, which costs nothing.
"by SVD" is the same with an SVD of each frequency instead, which is exact.

Each round times every way once, in random order; of ways below 5 ms it takes the median of 30 calls. A time is CPU
time; a ratio is the median over the rounds of recipe / way. "error" is the distance to the float64 projection over its
norm. Kernels are Gaussian; "near" starts from a kernel that was projected 20 times (once if 1x1), to which noise of
1 % of its size was added: more than a training step does. Nothing is kept from one projection to the next but that
kernel.
"""

import argparse
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from propkit.models import procresnet
from propkit.models.procresnet import PROJECTED
from propkit.training import procrustes_, project, sgd

Layer = tuple[int, int, int, int, float]  # filters, channels, kernel, map, target
LAYERS: list[Layer] = [
    (64, 3, 3, 32, 8),
    (64, 64, 3, 16, 13),
    (128, 64, 3, 16, 13),
    (256, 128, 3, 8, 13),
    (512, 256, 3, 8, 13),
    (128, 64, 1, 16, 1000),
    (256, 128, 1, 8, math.nan),  # the target is for n = 16
]
SHARE = 0.01
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def official(weight: Tensor, size: int, steps: int = 10) -> Tensor:
    """The recipe, its sign corrected."""
    filters, channels, k, _ = weight.shape
    m = min(filters, channels)
    symbol = torch.fft.fft2(weight, s=(size, size)).permute(2, 3, 0, 1)
    tall = (symbol if filters >= channels else symbol.mH).reshape(size * size, -1, m)
    rows = tall.shape[1]
    real = torch.cat(
        [torch.cat([tall.real, -tall.imag], 2), torch.cat([tall.imag, tall.real], 2)], 1
    )
    gram = real.mT @ real
    norm = torch.linalg.matrix_norm(gram)[:, None, None].clamp_min(1)
    # As published, one identity per frequency, and both roots although one is used.
    identity, z = (torch.eye(2 * m).repeat(len(gram), 1, 1) for _ in range(2))
    y = gram / norm
    for _ in range(steps):
        t = 0.5 * (3.0 * identity - z @ y)
        y, z = y @ t, t @ z
    _, inverse = y * norm.sqrt(), z / norm.sqrt()
    unit = (real @ inverse)[:, :, :m] * math.sqrt(filters / m)
    back = torch.complex(unit[:, :rows], unit[:, rows:])
    back = back if filters >= channels else back.mH
    spectrum = back.reshape(size, size, filters, channels).permute(2, 3, 0, 1)
    return torch.fft.ifft2(spectrum).real[:, :, :k, :k]


def by_svd(weight: Tensor, size: int) -> Tensor:
    """The recipe with an SVD in place of the Newton-Schulz steps."""
    filters, channels, k, _ = weight.shape
    symbol = torch.fft.fft2(weight, s=(size, size)).permute(2, 3, 0, 1)
    u, _, v = torch.linalg.svd(symbol, full_matrices=False)
    spectrum = (u @ v).permute(2, 3, 0, 1) * math.sqrt(filters / min(filters, channels))
    return torch.fft.ifft2(spectrum).real[:, :, :k, :k]


def rounds(ways: dict[str, Callable[[], object]], number: int) -> dict[str, list[float]]:
    """CPU seconds of each way in each round."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    repeats = {}
    for name, way in ways.items():
        way()
        begin = time.process_time()
        way()
        repeats[name] = 30 if time.process_time() - begin < 5e-3 else 1
    for _ in range(number):
        for name in random.sample(list(ways), len(ways)):
            calls = []
            for _ in range(repeats[name]):
                begin = time.process_time()
                ways[name]()
                calls.append(time.process_time() - begin)
            times[name].append(statistics.median(calls))
    return times


def ratio(times: dict[str, list[float]], above: str, below: str) -> float:
    return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))


def verdict(met: bool) -> str:
    return "MET" if met else "NOT MET"


def compare(layer: Layer, number: int) -> tuple[bool | None, str]:
    filters, channels, k, size, target = layer
    weight = torch.randn(filters, channels, k, k)
    near = procrustes_(weight.clone(), size, iterations=1 if k == 1 else 20)
    near += 0.01 * near.std() * torch.randn_like(near)
    ways = {
        "official": lambda: official(weight, size),
        "svd": lambda: by_svd(weight, size),
        "ours": lambda: procrustes_(weight.clone(), size),
        "near": lambda: procrustes_(near.clone(), size),
    }
    times = rounds(ways, number)
    exact = procrustes_(weight.double(), size)
    errors = [float((ways[way]() - exact).norm() / exact.norm()) for way in ("official", "ours")]
    faster, faster_near = ratio(times, "official", "ours"), ratio(times, "official", "near")
    # After its first projection a 1x1 layer is near for good: that is what training pays.
    counted = faster_near if k == 1 else faster
    met = None if math.isnan(target) else counted >= target
    milliseconds = {name: 1e3 * statistics.median(t) for name, t in times.items()}
    said = "" if met is None else f"   >= {target:g}x {verdict(met)}"
    return met, (
        f"{f'{k}x{k} ({filters},{channels},{size})':<18}{milliseconds['official']:>11.1f}"
        f"{milliseconds['ours']:>9.2f}{milliseconds['near']:>9.2f}{faster:>9.1f}x{faster_near:>9.1f}x"
        f"{ratio(times, 'svd', 'ours'):>9.1f}x{errors[0]:>10.0e}{errors[1]:>9.0e}{said}"
    )


def share(batch: int, number: int) -> tuple[bool, str]:
    """Of a training step of ProcResNet-166, the ResNet-164 whose convolutions are projected."""
    model = procresnet(166)
    optimizer = sgd(model)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    projection = project(model, every=2, include=PROJECTED, optimizer=sgd(model))
    projected = []
    bare = []
    step()
    projection()  # the first, of weights that are not near
    for _ in range(number):
        begin = time.process_time()
        step()
        middle = time.process_time()
        projection()
        bare.append(middle - begin)
        projected.append(time.process_time() - middle)
    projection.remove()
    part = statistics.median(p / 2 / b for p, b in zip(projected, bare, strict=True))
    return part < SHARE, (
        f"ProcResNet-166, batch {batch}: a step {statistics.median(bare):.2f} s, a projection of its three layers "
        f"{1e3 * statistics.median(projected):.2f} ms; every 2 steps that is {100 * part:.3f} %"
        f"   < {100 * SHARE:g} % {verdict(part < SHARE)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--batch", type=int, default=16, help="of the training step; the paper's is 128"
    )
    parser.add_argument("--quick", action="store_true", help="three rounds, small layers, batch 2")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    print(f"torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    print(
        f"{'layer (d,c,n)':<18}{'recipe ms':>11}{'ours ms':>9}{'near ms':>9}{'ours':>10}{'near':>10}{'of SVD':>10}"
        f"{'recipe err':>10}{'ours':>9}   target"
    )
    results = []
    for layer in LAYERS:
        if options.quick and layer[0] * layer[1] * layer[3] ** 2 > 2**20:
            continue
        met, line = compare(layer, 3 if options.quick else options.rounds)
        results += [] if met is None else [met]
        print(line, flush=True)
    met, line = share(2 if options.quick else options.batch, 3)
    print(line)
    results.append(met)
    print(f"{sum(results)} of {len(results)} targets met")


if __name__ == "__main__":
    if not os.environ.items() >= ONE_THREAD.items():  # read when the libraries are loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ONE_THREAD})
    main()
