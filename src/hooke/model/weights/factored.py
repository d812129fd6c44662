"""Factored matrices: a product of two thin factors, with algebra that never builds the large matrix.

The OV matrix of a head is `d_model x d_model` and has rank `d_head`; with the embedding on both sides it is
`vocab x vocab`. Its norm, singular values and eigenvalues follow from matrices of the size of the rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int, Shaped
from torch import Tensor

from hooke.base.errors import ShapeError


@dataclass(frozen=True, eq=False)
class Factored:
    """The matrix `left @ right`, or a stack of such matrices, kept as its factors.

    Args:
        left: `[..., rows, rank]`; leading axes are a stack, for example one matrix per head.
        right: `[..., rank, cols]`.

    Raises:
        ShapeError: when the factors do not fit together.

    Example:
        >>> ones = Factored(torch.ones(3, 1), torch.ones(1, 3))
        >>> ones, ones.trace().item(), ones.eigenvalues().real.tolist()
        (Factored(3 x 3, rank <= 1), 3.0, [3.0])
    """

    left: Float[Tensor, ...]
    right: Float[Tensor, ...]

    def __post_init__(self) -> None:
        shapes = f"left {tuple(self.left.shape)}, right {tuple(self.right.shape)}"
        if self.left.ndim < 2 or self.right.ndim < 2 or self.left.shape[-1] != self.right.shape[-2]:
            raise ShapeError(f"factors do not fit: {shapes}; expected [..., rows, rank] and [..., rank, cols]")
        if self.left.shape[:-2] != self.right.shape[:-2]:
            raise ShapeError(f"factors are stacked differently: {shapes}")

    # -- shape ---------------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> torch.Size:
        """Shape of the matrix that the factors stand for, stack axes first."""
        return torch.Size((*self.left.shape[:-1], self.right.shape[-1]))

    @property
    def rank(self) -> int:
        """Upper bound of the rank: the inner width, or the shorter side where that is smaller."""
        return min(self.left.shape[-1], *self.shape[-2:])

    @property
    def T(self) -> Factored:
        """The transpose."""
        return Factored(self.right.mT, self.left.mT)

    def select(self, index: int) -> Factored:
        """One matrix of a stack, along its first axis.

        Raises:
            ShapeError: when this is a single matrix, or the stack is shorter.
        """
        if self.left.ndim == 2 or not -len(self.left) <= index < len(self.left):
            raise ShapeError(f"{self} has no matrix {index} along a first stack axis")
        return Factored(self.left[index], self.right[index])

    def rows(self, index: Sequence[int] | Int[Tensor, " chosen"] | slice) -> Factored:
        """Only these rows, in this order."""
        return Factored(self.left[..., index, :], self.right)

    def columns(self, index: Sequence[int] | Int[Tensor, " chosen"] | slice) -> Factored:
        """Only these columns, in this order."""
        return Factored(self.left, self.right[..., index])

    def to(self, dtype: torch.dtype) -> Factored:
        """The same with factors of another precision."""
        return Factored(self.left.to(dtype), self.right.to(dtype))

    # -- products ------------------------------------------------------------------------------------------------------

    def __matmul__(self, other: Factored | Float[Tensor, ...]) -> Factored | Float[Tensor, ...]:
        """With a vector: a vector. With a matrix or a factored matrix: factored, on the thinner inner width."""
        if isinstance(other, Tensor):
            self._check(other.shape, -1 if other.ndim == 1 else -2, self.shape[-1])
            if other.ndim == 1:
                return (self.left @ (self.right @ other).unsqueeze(-1)).squeeze(-1)
            return _stacked(self.left, self.right @ other)
        self._check(other.shape, -2, self.shape[-1])
        inner = self.right @ other.left
        if inner.shape[-2] <= inner.shape[-1]:
            return _stacked(self.left, inner @ other.right)
        return _stacked(self.left @ inner, other.right)

    def __rmatmul__(self, other: Float[Tensor, ...]) -> Factored | Float[Tensor, ...]:
        """A row vector or a matrix from the left."""
        self._check(other.shape, -1, self.shape[-2])
        if other.ndim == 1:
            return ((other @ self.left).unsqueeze(-2) @ self.right).squeeze(-2)
        return _stacked(other @ self.left, self.right)

    def _check(self, shape: torch.Size, axis: int, width: int) -> None:
        if shape[axis] != width:
            kind = "matrix" if len(shape) > 1 else "vector"
            raise ShapeError(f"{self} cannot be multiplied with a {kind} of shape {tuple(shape)}: {width} expected")

    # -- numbers -------------------------------------------------------------------------------------------------------

    def dense(self) -> Float[Tensor, ...]:
        """The large matrix itself, built."""
        return self.left @ self.right

    def diagonal(self) -> Float[Tensor, ...]:
        """The diagonal of a square matrix."""
        self._square("diagonal")
        return (self.left * self.right.mT).sum(-1)

    def trace(self) -> Float[Tensor, ...]:
        """Sum of the diagonal."""
        self._square("trace")
        return (self.left * self.right.mT).sum((-2, -1))

    def norm(self) -> Float[Tensor, ...]:
        """Frobenius norm, from the triangular factors of both sides: no cancellation, unlike through Gram matrices."""
        return torch.linalg.matrix_norm(self.core())

    def core(self) -> Float[Tensor, ...]:
        """A matrix no larger than `rank x rank` (inner width) with the same singular values and the same norm."""
        left = torch.linalg.qr(solid(self.left), mode="r").R
        right = torch.linalg.qr(solid(self.right).mT, mode="r").R
        return left @ right.mT

    def svd(self) -> tuple[Float[Tensor, ...], Float[Tensor, ...], Float[Tensor, ...]]:
        """Thin singular value decomposition (U, S, Vh), `U @ diag(S) @ Vh` being the matrix; `rank` values, falling."""
        q_left, r_left = torch.linalg.qr(solid(self.left))
        q_right, r_right = torch.linalg.qr(solid(self.right).mT)
        u, s, vh = torch.linalg.svd(r_left @ r_right.mT, full_matrices=False)
        return q_left @ u, s, vh @ q_right.mT

    def eigenvalues(self) -> Complex[Tensor, ...]:
        """Eigenvalues of a square matrix, largest first, from the small matrix `right @ left` (inner width).

        The large matrix has the same non-zero ones; its other `rows - rank` eigenvalues are zero and are left out.
        """
        self._square("eigenvalues")
        small = solid(self.right) @ solid(self.left)
        values = torch.linalg.eigvals(small)
        order = values.abs().argsort(dim=-1, descending=True)[..., : self.rank]
        return values.gather(-1, order)

    def _square(self, what: str) -> None:
        if self.shape[-1] != self.shape[-2]:
            raise ShapeError(f"{what} needs a square matrix, got {self}")

    def __repr__(self) -> str:
        *stack, rows, cols = self.shape
        stacked = f"{' x '.join(map(str, stack))} of " if stack else ""
        return f"Factored({stacked}{rows} x {cols}, rank <= {self.rank})"


def solid(x: Shaped[Tensor, ...]) -> Float[Tensor, ...]:
    """float32 at least: decompositions do not exist for half precision."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _stacked(left: Tensor, right: Tensor) -> Factored:
    """Factors with their stack axes made equal: one of them may come from a single matrix."""
    if left.shape[:-2] == right.shape[:-2]:
        return Factored(left, right)
    stack = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    return Factored(left.expand(*stack, *left.shape[-2:]), right.expand(*stack, *right.shape[-2:]))
