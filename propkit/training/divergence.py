"""The error that ends a training that has diverged."""


class DivergenceError(ArithmeticError):
    """The loss or a weight is no longer finite, or is about to be.

    Attributes:
        step: Number of optimiser steps completed before the first bad value was computed; None
            where it is not known.
    """

    def __init__(self, message: str, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step
