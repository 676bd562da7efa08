"""The Jacobian of a function at a point as a linear operator: products with it and with its transpose, no matrix."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from propkit.spectra.lanczos import Operator, generator

Function = Callable[[torch.Tensor], torch.Tensor]

DENSE_LIMIT = 2**24
"""Elements of the largest Jacobian that is built as a matrix: 4096 x 4096, 128 MiB; its SVD takes about a minute."""


class Jacobian:
    """J = ∂f/∂x at `x`, of shape (m, n) = (elements of f(x), elements of x), the whole batch at once.

    `f` runs once. A transposed product is a backward pass through that graph; a product is the derivative of the
    backward pass, which is linear in what it is given (the "double-backward trick"), so that in-place operations,
    dropout masks and running statistics are those of the one forward pass. Where a backward pass has no derivative,
    products run `f` again in forward mode, and `f` has to give the same values each time.

    Attention runs in its plain form here, whose backward pass can be differentiated. Reentrant checkpointing
    supports neither way (PyTorch refuses); the other kind does.

    Args:
        f: Function of one tensor that returns one tensor, both real and floating. Gradients of its parameters are
            not touched.
        x: Where to differentiate, any shape.

    Attributes:
        shape: (m, n).
        device: Device of `x`.
        dtype: In which products are returned, float64 (float32 where the device has no float64).
        epsilon: Rounding unit of the coarser of the dtypes of x and f(x), which limits what products resolve.

    Raises:
        TypeError: x or f(x) is no real floating tensor.
        ValueError: x or f(x) is empty, or f(x) does not depend on x.

    >>> J = Jacobian(lambda x: torch.stack([x[0] * x[1], x[1]]), torch.tensor([2.0, 3.0]))
    >>> J.apply(torch.tensor([1.0, 0.0])), J.apply_transposed(torch.tensor([1.0, 0.0]))
    (tensor([3., 0.], dtype=torch.float64), tensor([3., 2.], dtype=torch.float64))
    """

    def __init__(self, f: Function, x: torch.Tensor) -> None:
        _check(x, "x")
        self._f = f
        with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            self._x = x.detach().clone().requires_grad_()
            self._y = f(self._x.clone())  # a leaf must not be changed in place, its copy may be
            _check(self._y, "f(x)")
            if not self._y.requires_grad:
                raise ValueError(_INDEPENDENT)
        self.shape = self._y.numel(), self._x.numel()
        self.device = x.device
        self.dtype = torch.float32 if x.device.type == "mps" else torch.float64
        self.epsilon = max(torch.finfo(self._x.dtype).eps, torch.finfo(self._y.dtype).eps)
        self._backward: tuple[torch.Tensor, torch.Tensor | None] | None = None
        self._mode: Callable[[torch.Tensor], torch.Tensor] | None = None

    def apply(self, v: torch.Tensor) -> torch.Tensor:
        """The product J v for `v` (n,): shape (m,), dtype `dtype`. The first one finds out how, at twice the cost.

        Raises:
            RuntimeError: `f` has an operation without second derivative and without forward mode.
        """
        if self._mode is None:
            self._mode = self._working_mode()
        return self._product(self._mode, v)

    def apply_transposed(self, u: torch.Tensor) -> torch.Tensor:
        """The product Jᵀ u for `u` (m,): shape (n,), dtype `dtype`."""
        u = u.reshape(self._y.shape).to(self._y.dtype)
        with torch.inference_mode(False):
            product = _gradient(self._y, self._x, u)
        if product is None:
            raise ValueError(_INDEPENDENT)
        return self._flat(product)

    def smaller(self) -> Operator:
        """J or Jᵀ, whichever has fewer columns, so that its Gram matrix has the min(m, n) values σ² and no others."""
        both = self.apply, self.apply_transposed
        apply, transposed = both if self.shape[1] <= self.shape[0] else both[::-1]
        zero = torch.zeros((), dtype=self.dtype, device=self.device)
        return Operator(apply, transposed, min(self.shape), self.epsilon, zero)

    def dense(self) -> torch.Tensor:
        """The matrix J, (m, n), by min(m, n) products.

        Raises:
            ValueError: It has more than `DENSE_LIMIT` elements.
        """
        m, n = self.shape
        if m * n > DENSE_LIMIT:
            raise ValueError(
                f"a Jacobian of {m} x {n} is too large for a matrix (limit: {DENSE_LIMIT} elements); use "
                "jacobian_extremes, jacobian_density or jacobian_moments, or fewer samples"
            )
        lines = torch.empty(min(m, n), max(m, n), dtype=self.dtype, device=self.device)
        unit = torch.zeros(min(m, n), dtype=self.dtype, device=self.device)
        for i in range(len(lines)):
            unit[i] = 1
            lines[i] = self.apply_transposed(unit) if m <= n else self.apply(unit)
            unit[i] = 0
        return lines if m <= n else lines.mT

    def singular_values(self) -> torch.Tensor:
        """All min(m, n), descending, from the matrix; NaN where it is not finite. ValueError as in `dense`."""
        matrix = self.dense()
        if not torch.isfinite(matrix).all():  # LAPACK would refuse
            return matrix.new_full((min(self.shape),), torch.nan)
        values: torch.Tensor = torch.linalg.svdvals(matrix)
        return values

    def _working_mode(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The way of multiplying by J that exists and agrees with Jᵀ: ⟨J Jᵀu, u⟩ = ‖Jᵀu‖² for a random u."""
        u = torch.randn(self.shape[0], generator=generator(0)).to(self.device)
        w = self.apply_transposed(u)
        reasons = []
        for mode in (self._twice_backward, self._forward):
            try:
                back = torch.dot(self._product(mode, w), u.to(self.dtype))
                expected = torch.dot(w, w)
                if not (back - expected).abs() > _DISAGREEMENT * expected:  # NaN is left to be seen
                    return mode
                reasons.append("it disagrees with the backward pass")
            except (RuntimeError, NotImplementedError) as failure:
                reasons.append((str(failure).strip() or repr(failure)).splitlines()[0])
            self._backward = None
        raise RuntimeError(
            f"products with the Jacobian need a backward pass that can be differentiated (here: {reasons[0]}) or "
            f"forward-mode derivatives (here: {reasons[1]}). Write custom autograd functions with differentiable "
            "operations or with a jvp, and checkpoint with use_reentrant=False"
        )

    def _product(
        self, mode: Callable[[torch.Tensor], torch.Tensor], v: torch.Tensor
    ) -> torch.Tensor:
        return self._flat(mode(v.reshape(self._x.shape).to(self._x.dtype)))

    def _twice_backward(self, v: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            if self._backward is None:
                u = torch.zeros_like(self._y, requires_grad=True)
                self._backward = u, _gradient(self._y, self._x, u, graph=True)
            u, g = self._backward  # g = Jᵀ u: its derivative by u, transposed, is J
            product = None if g is None or not g.requires_grad else _gradient(g, u, v)
        if product is None:
            raise RuntimeError("the backward pass has no derivative")
        return product

    def _forward(self, v: torch.Tensor) -> torch.Tensor:
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            forward_ad.dual_level(),
            warnings.catch_warnings(),
        ):
            # PyTorch's own, when it loads its forward-mode formulas
            warnings.filterwarnings("ignore", r".*torch\.jit\.script", DeprecationWarning)
            y = self._f(forward_ad.make_dual(self._x.detach().clone(), v))
            tangent = forward_ad.unpack_dual(y).tangent
        if not isinstance(tangent, torch.Tensor):
            raise RuntimeError("no tangent reached f(x)")
        return tangent

    def _flat(self, product: torch.Tensor) -> torch.Tensor:
        return product.detach().reshape(-1).to(self.dtype)


_DISAGREEMENT = 0.05
"""Relative: far above the rounding of bfloat16 in such a product, far below what a missing path does to it."""
_INDEPENDENT = (
    "f(x) does not depend on x as far as autograd knows: expected a function that is differentiable in x, without "
    "detach() or torch.no_grad() on the way"
)


def _gradient(
    y: torch.Tensor, x: torch.Tensor, u: torch.Tensor, graph: bool = False
) -> torch.Tensor | None:
    return torch.autograd.grad(y, x, u, retain_graph=True, create_graph=graph, allow_unused=True)[0]


def _check(value: Any, name: str) -> None:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        found = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
        raise TypeError(f"Jacobian: expected {name} to be a real floating tensor, found {found}")
    if not value.numel():
        raise ValueError(f"Jacobian: {name} is empty, shape {tuple(value.shape)}")
