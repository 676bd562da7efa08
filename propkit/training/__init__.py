"""What makes runs worth analysing: initialisers, orthonormality regulariser, SGD, a small trainer.

Each is usable alone, in anyone's loop. Nothing here knows of probes or stores: the trainer takes
callbacks.
"""

from propkit.training.checkpoint import Checkpoint
from propkit.training.delta_orthogonal import delta_orthogonal_
from propkit.training.divergence import DivergenceError
from propkit.training.evaluation import Evaluation, evaluate
from propkit.training.execution import Execution
from propkit.training.init import initialize, orthonormal_
from propkit.training.init_mean_field import critical_, gaussian_
from propkit.training.init_variance import (
    glorot_normal_,
    glorot_uniform_,
    he_normal_,
    he_uniform_,
)
from propkit.training.lsuv import lsuv_
from propkit.training.max_norm import max_norm, max_norm_
from propkit.training.modulation import Modulation, modulate
from propkit.training.optimizer import learning_rate_factor, make_optimizer, sgd
from propkit.training.procrustes import procrustes_
from propkit.training.project import Projection, project
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
    "Checkpoint",
    "DivergenceError",
    "Evaluation",
    "Execution",
    "Modulation",
    "Projection",
    "TrainResult",
    "add_orthonormality_gradient_",
    "check_orthonormality_stability",
    "critical_",
    "delta_orthogonal_",
    "evaluate",
    "gaussian_",
    "generator",
    "glorot_normal_",
    "glorot_uniform_",
    "he_normal_",
    "he_uniform_",
    "initialize",
    "learning_rate_factor",
    "lsuv_",
    "make_optimizer",
    "max_norm",
    "max_norm_",
    "modulate",
    "orthonormal_",
    "orthonormality",
    "orthonormality_stability_limit",
    "procrustes_",
    "project",
    "sgd",
    "train",
]
