"""What a recipe says."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from torch import nn

_FIXED = ("name", "summary", "reference", "figures", "model", "depth", "options")
"""What makes a recipe the one of its name."""


@dataclass(frozen=True)
class Recipe:
    """One training run of an experiment, as data.

    Attributes:
        name: What it is called on the command line and in a figure's legend.
        summary: One line.
        reference: Paper and figures.
        figures: Names of the figures that its runs draw.
        model: A function of `propkit.models` that takes some of ``depth``, ``num_classes``,
            ``in_channels`` and ``in_features``.
        depth: Its depth.
        options: Its other arguments.
        init: Scheme of `propkit.training.initialize`.
        weight_decay: L2 coefficient.
        decay: What the L2 decay acts on: see `propkit.training.sgd`.
        orthonormality: Coefficient of the orthonormality regulariser, 0 for none.
        modulation: Rule of `propkit.training.modulate`.
        modulation_steps: Steps after which it ends.
        projection: Pattern of the names of the layers that `propkit.training.project` projects.
        projection_every: Its period or probability.
        projection_relu: Whether ReLUs follow them.
        max_norm: Largest norm of a unit's weights, 0 for any: see `propkit.training.max_norm`.
        optimizer: See `propkit.training.make_optimizer`.
        lr: Initial learning rate.
        momentum: Of SGD.
        batch_size: Images per step.
        flip: Mirror the images at random, where the data allow it.
        crop: Zeros on each side of an image before a random crop of its own size, as a share of its side:
            0.125 is the usual four pixels of 32.
        normalization: See `propkit.data.ImageSet.normalized_by`.
        milestones: Steps from which the learning rate is multiplied by ``gamma`` once more.
        gamma: See ``milestones``.
        warm_up: Number of first steps at a tenth of the learning rate.
        steps: Optimiser steps.
        every: Steps between two rows of the probes.
        evaluate_every: Steps between two evaluations on the test images, 0 for the last step alone.
        probes: What is recorded.
        blocks: Pattern of the module names that count as building blocks.

    Raises:
        ValueError: A number is out of its range.
    """

    name: str
    summary: str
    reference: str
    figures: tuple[str, ...]
    model: str
    depth: int
    options: Mapping[str, Any] = field(default_factory=dict)
    init: Literal["he", "orthonormal", "he_uniform", "glorot", "delta_orthogonal"] = "he"
    weight_decay: float = 0.0
    decay: Literal["weights", "all"] = "weights"
    orthonormality: float = 0.0
    modulation: Literal["never", "decade", "drift", "ratio", "always"] = "never"
    modulation_steps: int = 2000
    projection: str | None = None
    projection_every: float = 0.5
    projection_relu: bool = False
    max_norm: float = 0.0
    optimizer: Literal["sgd", "nesterov", "adagrad", "adadelta", "adam", "rmsprop"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    batch_size: int = 128
    flip: bool = True
    crop: float = 0.0
    normalization: Literal["pixel", "channel"] = "pixel"
    milestones: tuple[int, ...] = (32000, 48000)
    gamma: float = 0.1
    warm_up: int = 0
    steps: int = 64000
    every: int = 50
    evaluate_every: int = 0
    probes: tuple[str, ...] = (
        "error_moment",
        "gradient_norm",
        "filter_correlation",
        "activation",
        "weight",
    )
    blocks: str | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "every", "batch_size", "modulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in (
            *("weight_decay", "orthonormality", "lr", "momentum", "gamma"),
            *("max_norm", "crop", "warm_up", "evaluate_every"),
        ):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, found {value}")

    def build(
        self, num_classes: int, in_channels: int, in_features: int | None = None
    ) -> "nn.Module":
        """The model, with PyTorch's default weights.

        Args:
            num_classes: Number of outputs.
            in_channels: Channels of the images.
            in_features: Numbers per image, for fully connected models.

        Raises:
            ValueError: The depth is none of the model's.
        """
        from propkit import models

        factory = getattr(models, self.model)
        offered = {
            "depth": self.depth,
            "num_classes": num_classes,
            "in_channels": in_channels,
            "in_features": in_features,
        }
        taken = inspect.signature(factory).parameters
        arguments = {name: value for name, value in offered.items() if name in taken}
        model: nn.Module = factory(**arguments, **self.options)
        return model

    def config(self) -> dict[str, Any]:
        """Every field, as JSON takes it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def override(self, settings: Mapping[str, str]) -> "Recipe":
        """A copy with fields set from text, as a command line gives them.

        Args:
            settings: Field name -> text: numbers as Python writes them, several separated by
                commas, ``none`` for nothing.

        Raises:
            ValueError: No field of that name (the message lists them), or the text is no value of
                its type.
        """
        hints = get_type_hints(type(self))
        unknown = [key for key in settings if key not in settable()]
        if unknown:
            raise ValueError(
                f"a recipe has no setting {', '.join(unknown)}; there are {', '.join(settable())}"
            )
        changes = {key: _parse(key, text, hints[key]) for key, text in settings.items()}
        return replace(self, **changes)


def settable() -> tuple[str, ...]:
    """The fields that `Recipe.override` takes."""
    return tuple(f.name for f in fields(Recipe) if f.name not in _FIXED)


def _parse(key: str, text: str, hint: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    try:
        if hint is bool:
            return {"true": True, "false": False}[text.lower()]
        if origin is tuple:
            return tuple(arguments[0](part) for part in text.split(",") if part.strip())
        if origin is Literal:
            return arguments[arguments.index(text)]
        if type(None) in arguments:
            return None if text.lower() == "none" else arguments[0](text)
        return hint(text)
    except (KeyError, ValueError):
        kinds = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
        if origin is Literal:
            expected = f"one of {', '.join(arguments)}"
        elif origin is tuple:
            expected = f"values separated by commas, each {kinds[arguments[0]]}"
        else:
            expected = kinds.get(hint, "text")
        raise ValueError(f"{key} takes {expected}, found {text!r}") from None
