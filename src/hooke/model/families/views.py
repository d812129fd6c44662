"""Views that only some families need: grouped q, k, v (Falcon), halves of a joined matrix (Phi 3), copies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class GroupedHeads:
    """Each key-value head lies behind the query heads that it serves: `[..., n_groups * (queries + k + v) * d_head]`.

    One group is multi-query attention, as many groups as heads is ordinary attention with q, k, v side by side.
    """

    n_groups: int
    part: Literal["q", "k", "v"]
    d_head: int

    def read(self, tensor: Tensor) -> Tensor:
        queries, keys, values = self._parts(tensor)
        return queries.flatten(-3, -2) if self.part == "q" else (keys if self.part == "k" else values).squeeze(-2)

    def write(self, tensor: Tensor, value: Tensor) -> Tensor:
        parts = dict(zip("qkv", self._parts(tensor), strict=True))
        parts[self.part] = value.unflatten(-2, (self.n_groups, -1))
        return torch.cat(list(parts.values()), dim=-2).flatten(-3)

    def _parts(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """`[..., group, n, d_head]` with n query heads, 1 key head and 1 value head."""
        groups = tensor.unflatten(-1, (self.n_groups, -1, self.d_head))
        return groups.split((groups.shape[-2] - 2, 1, 1), dim=-2)


@dataclass(frozen=True)
class Part:
    """One of several joined projections, `[..., sum(widths)]`."""

    widths: tuple[int, ...]
    part: int

    def read(self, tensor: Tensor) -> Tensor:
        return tensor.split(self.widths, dim=-1)[self.part]

    def write(self, tensor: Tensor, value: Tensor) -> Tensor:
        parts = list(tensor.split(self.widths, dim=-1))
        parts[self.part] = value
        return torch.cat(parts, dim=-1)


@dataclass(frozen=True)
class Copied:
    """The tensor by value: for a tensor that the model overwrites later in the same block."""

    def read(self, tensor: Tensor) -> Tensor:
        return tensor.clone()

    def write(self, tensor: Tensor, value: Tensor) -> Tensor:
        return value.clone()
