"""Sparse codes: which latents are active for each row, and how strongly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooke.base.errors import ShapeError


@dataclass(frozen=True)
class Latents:
    """Codes of some rows in padded sparse form; the leading shape is that of the rows (`[row]`, `[batch, pos]`, ...).

    A row with fewer than `k` active latents has empty slots at its end or anywhere else: **a slot is empty when its
    value is 0**, and its index is then a valid number without meaning (0 by convention). So gathers and scatters by
    `indices` are always safe. An index never occurs twice with a value in one row.

    Args:
        indices: latent of each slot.
        values: its activation; 0 marks an empty slot.
        n_latents: how many latents the dictionary has.

    Example:
        >>> codes = Latents(torch.tensor([[2, 0]]), torch.tensor([[1.5, 0.0]]), 4)
        >>> codes.dense()
        tensor([[0.0000, 0.0000, 1.5000, 0.0000]])
        >>> codes.l0()
        tensor([1])
    """

    indices: Int[Tensor, "*row k"]
    values: Float[Tensor, "*row_too k_too"]  # the same; checked with words, not as a type
    n_latents: int

    def __post_init__(self) -> None:
        if self.indices.shape != self.values.shape:
            raise ShapeError(
                f"indices have shape {list(self.indices.shape)}, values {list(self.values.shape)}; expected one shape"
            )

    @property
    def active(self) -> Bool[Tensor, "*row k"]:
        """Which slots hold an active latent."""
        return self.values != 0

    def l0(self) -> Int[Tensor, "*row"]:
        """How many latents are active in each row."""
        return self.active.sum(dim=-1)

    def dense(self) -> Float[Tensor, "*row latent"]:
        """The codes as a full matrix. Large: rows times latents."""
        empty = self.values.new_zeros(*self.values.shape[:-1], self.n_latents)
        return empty.scatter_add(-1, self.indices.long(), self.values)

    def of(self, latent: int) -> Float[Tensor, "*row"]:
        """The activation of one latent in every row, without making the full matrix."""
        return torch.where(self.indices == latent, self.values, 0).sum(dim=-1)

    def counts(self) -> Int[Tensor, " latent"]:
        """In how many rows each latent is active."""
        return torch.bincount(self.indices[self.active], minlength=self.n_latents)

    def reshape(self, *row: int) -> Latents:
        """The same codes with another leading shape."""
        return Latents(self.indices.reshape(*row, -1), self.values.reshape(*row, self.values.shape[-1]), self.n_latents)

    @staticmethod
    def from_dense(codes: Float[Tensor, "*row latent"]) -> Latents:
        """Sparse form of a full matrix of codes."""
        width = max(1, int((codes != 0).sum(dim=-1).max())) if codes.numel() else 1
        order = (codes != 0).to(torch.uint8).topk(min(width, codes.shape[-1]), dim=-1).indices
        return Latents(order, codes.gather(-1, order), codes.shape[-1])
