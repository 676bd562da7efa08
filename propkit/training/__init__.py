"""What makes runs worth analysing: initialisers, orthonormality regulariser, SGD, a small trainer.

Each is usable alone, in anyone's loop. Nothing here knows of probes or stores: the trainer takes
callbacks.
"""

from propkit.training.divergence import DivergenceError
from propkit.training.evaluation import Evaluation, evaluate
from propkit.training.init import he_normal_, initialize, orthonormal_
from propkit.training.optimizer import learning_rate_factor, sgd
from propkit.training.regularizers import (
    add_orthonormality_gradient_,
    orthonormality,
)
from propkit.training.seeding import generator
from propkit.training.stability import (
    check_orthonormality_stability,
    orthonormality_stability_limit,
)
from propkit.training.trainer import Callback, TrainResult, train

__all__ = [
    "Callback",
    "DivergenceError",
    "Evaluation",
    "TrainResult",
    "add_orthonormality_gradient_",
    "check_orthonormality_stability",
    "evaluate",
    "generator",
    "he_normal_",
    "initialize",
    "learning_rate_factor",
    "orthonormal_",
    "orthonormality",
    "orthonormality_stability_limit",
    "sgd",
    "train",
]
