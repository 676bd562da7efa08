"""From a bare model to its signals: attach, train for a moment, look.

    python examples/first_look.py [run.zarr]

Trains a deep tanh network on scikit-learn's digits and prints how far errors reach. With a path, the run is kept
there, for `propkit.open` and `python -m propkit.figures`.
"""

import sys

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import propkit


def main(store: str | None = None) -> None:
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32) / 16 - 0.5
    y = torch.tensor(labels)

    hidden = [layer for _ in range(20) for layer in (nn.Linear(64, 64), nn.Tanh())]
    model = nn.Sequential(*hidden, nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    with propkit.attach(model, store, every=propkit.log_spaced(10), label="tanh-21") as recorder:
        for _ in range(301):
            batch = torch.randint(len(x), (128,))
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)

    run = recorder.run
    errors = run["error_moment"]["output"]
    ratio = errors.isel(site=0) / errors.isel(site=-1)
    print(run)
    print("\nstep   error at the first layer / at the last")
    for step in (0, 1, 10, 100, 252):
        nearest = ratio.sel(step=step, method="nearest")
        print(f"{int(nearest.step):4d}   {float(nearest):.1e}")


if __name__ == "__main__":
    main(*sys.argv[1:])
