"""Run by torchrun from test_distributed.py: STORE ddp|fsdp2 STEPS [die | budget | fault | alone]."""

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.fsdp import fully_shard

import propkit
from propkit.testing import mlp


def main(store: str, kind: str, steps: int, what: str = "") -> None:
    die, budget = what == "die", what == "budget"
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = mlp()
    if kind == "ddp":
        model = torch.nn.parallel.DistributedDataParallel(model)
    else:
        torch.distributed.init_device_mesh("cpu", (2,))
        for layer in (model[0], model[2]):
            fully_shard(layer)
        fully_shard(model)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(steps, 8, 12, generator=generator)
    y = torch.randint(0, 3, (steps, 8), generator=generator)
    mine = slice(4 * rank, 4 * rank + 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probes = ["error_moment", "gradient_norm", "activation", "weight", "filter_correlation"]
    probes += ["singular_values", "singular_value_quantiles"]
    measured, now = [], 0

    def slow(output: torch.Tensor) -> torch.Tensor:
        if now not in measured:
            measured.append(now)
            time.sleep(0.0 if rank else 0.02)  # each rank by itself would decide otherwise
        return output.detach().mean()

    if budget:
        probes = ["activation", propkit.probe(units="1", reduce="mean")(slow)]

    def fragile(weight: torch.Tensor) -> torch.Tensor:
        if rank == 1 and now >= 4:
            raise ArithmeticError("on one rank")
        return weight.norm()

    def partial(output: torch.Tensor) -> torch.Tensor:
        if rank == 1 and now >= 4:
            raise ArithmeticError("on one rank")
        return output.detach().mean()

    def both(output: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if rank == 1 and now >= 4:
            raise ArithmeticError("on one rank")
        return weight.norm() + 0 * output.detach().mean()

    if what in ("fault", "alone"):
        probes = [propkit.probe(f) for f in (fragile, partial, both)]
        probes += ["weight", "activation"] if what == "fault" else []
    share = 0.5 if budget else None
    every = 2 if what in ("fault", "alone") else 1
    with propkit.attach(model, store, probes=probes, budget=share, every=every) as recorder:
        for step in range(steps):
            now = step
            if die and rank == 1 and step == 200:
                os._exit(1)
            optimizer.zero_grad()
            F.cross_entropy(model(x[step, mine]), y[step, mine]).backward()
            optimizer.step()
            recorder.log(rank=rank)
    if budget:
        Path(f"{store}.{rank}.json").write_text(json.dumps(measured))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
