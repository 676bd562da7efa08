"""The matrix of a convolution, entry by entry from its definition: the oracle of the tests."""

import itertools

import numpy as np


def matrix(weight, inputs, outputs, stride, dilation, groups, low=None) -> np.ndarray:
    """Of y[o, i] = Σ w[o, c, t] x[c, stride·i + dilation·t − low]: periodic, or with zeros where `low` is given."""
    w = weight.detach().double().numpy()
    filters, channels = w.shape[:2]
    dims = w.ndim - 2
    out = np.zeros((filters, *outputs, channels * groups, *inputs))
    for o, c in itertools.product(range(filters), range(channels)):
        column = c + o // (filters // groups) * channels
        for i in np.ndindex(*outputs):
            for t in np.ndindex(*w.shape[2:]):
                place = [
                    stride[j] * i[j] + dilation[j] * t[j] - (low[j] if low else 0)
                    for j in range(dims)
                ]
                if low is None:
                    place = [p % n for p, n in zip(place, inputs, strict=True)]
                elif not all(0 <= p < n for p, n in zip(place, inputs, strict=True)):
                    continue
                out[(o, *i, column, *place)] += w[(o, c, *t)]
    return out.reshape(filters * int(np.prod(outputs)), -1)


def singular(a: np.ndarray) -> np.ndarray:
    """Singular values of `a`, descending."""
    return np.linalg.svd(a, compute_uv=False)
