"""What mean-field theory predicts for the layers of a run, one after the other."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from propkit.figures.runs import FigureError, RunLike, need
from propkit.spectra.activations import Activation, activation_named

Floats = npt.NDArray[np.float64]

_NAMES = {
    "ReLU": "relu",
    "LeakyReLU": "leaky_relu",
    "Tanh": "tanh",
    "GELU": "gelu",
    "SiLU": "silu",
    "Identity": "linear",
}


@dataclass(frozen=True)
class Theory:
    """A chain of layers, each followed by the activation function, and by batch normalisation before it or not.

    Attributes:
        activation: Expectations of the activation function.
        sigma_b2: Variance of the biases.
        batch_norm: Whether pre-activations are normalised.
        description: All that in a line.
    """

    activation: Activation
    sigma_b2: float
    batch_norm: bool
    description: str

    def predict(self, first: float, variances: Floats, sizes: Floats) -> tuple[Floats, Floats]:
        """Lengths and error moments of the layers.

        Args:
            first: Length of the first layer, as measured.
            variances: σ_w² of each layer, (layers,).
            sizes: Elements of each layer's output, (layers,).

        Returns:
            q of each layer and q^l/q^L of its error, (layers,) each.
        """
        phi = self.activation
        lengths, factors = [float(first)], []
        with np.errstate(all="ignore"):
            for layer, variance in enumerate(variances[1:], start=1):
                q = 1.0 if self.batch_norm else lengths[-1]
                usable = np.isfinite(q) and q >= 0
                square = float(phi.second_moment(q)) if usable else np.nan
                chi = variance * float(phi.slope_second_moment(q)) if usable else np.nan
                if (
                    self.batch_norm
                ):  # errors are divided by the variance that normalisation divides by
                    own = variances[layer - 1] * (square - float(phi.mean(1.0)) ** 2)
                    chi /= own if layer > 1 else first  # the first layer's input is no activation
                lengths.append(variance * square + self.sigma_b2)
                factors.append(chi * sizes[layer] / sizes[layer - 1])
            moments = np.append(np.cumprod(np.array(factors)[::-1])[::-1], 1.0)
        return np.array(lengths), moments


def theory_of(
    run: RunLike,
    activation: str | None,
    sigma_b2: float,
    slope: float,
    batch_norm: bool | None,
) -> Theory:
    """The theory for a run; what is None is recognised.

    Raises:
        FigureError: The activation function is not recognised.
        ValueError: There is no such activation function, or `sigma_b2` is negative.
    """
    name = activation or _recognised(run)
    if not 0 <= sigma_b2 < np.inf:
        raise ValueError(f"expected a finite variance sigma_b2 >= 0, found {sigma_b2}")
    if batch_norm is None:
        batch_norm = "BatchNorm" in str(run.attributes.get("model_summary", ""))
    words = [name if name != "leaky_relu" else f"leaky_relu({slope:g})"]
    words += ["batch norm"] * batch_norm + [f"sigma_b2 = {sigma_b2:g}"] * (sigma_b2 > 0)
    return Theory(activation_named(name, slope), sigma_b2, batch_norm, ", ".join(words))


def _recognised(run: RunLike) -> str:
    dataset = need(run, "activation", "mean_field")
    types = (
        [str(t).rpartition(".")[2] for t in dataset["type"].values]
        if "type" in dataset.coords
        else []
    )
    found = Counter(_NAMES[t] for t in types if t in _NAMES).most_common(1)
    if not found:
        raise FigureError(
            "mean_field does not recognise the activation function among the layers of the run: give "
            "activation= (--set activation=relu), one of linear, relu, leaky_relu, erf, tanh, gelu, silu"
        )
    return found[0][0]
