"""What a family is: a small map from canonical sites to the modules of a Hugging Face architecture.

A `Tap` says at which module a site is found, on which side of it (its input or its output), and through which `View`
the module's tensor is read as the canonical tensor and written back. Nothing of a model's code is copied or replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class View(Protocol):
    """How a site sees a module's tensor. `write(x, read(x))` must give back `x` bit for bit."""

    def read(self, tensor: Tensor) -> Tensor: ...

    def write(self, tensor: Tensor, value: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Whole:
    """The tensor itself."""

    def read(self, tensor: Tensor) -> Tensor:
        return tensor

    def write(self, tensor: Tensor, value: Tensor) -> Tensor:
        return value


@dataclass(frozen=True)
class Heads:
    """`[..., n * d_head]` as `[..., n, d_head]`."""

    d_head: int

    def read(self, tensor: Tensor) -> Tensor:
        return tensor.unflatten(-1, (-1, self.d_head))

    def write(self, tensor: Tensor, value: Tensor) -> Tensor:
        return value.flatten(-2)


@dataclass(frozen=True)
class SplitHeads:
    """One of several joined projections, `[..., sum(widths)]`, as heads: q, k or v of a joined qkv matrix."""

    widths: tuple[int, ...]
    part: int
    d_head: int

    def read(self, tensor: Tensor) -> Tensor:
        return tensor.split(self.widths, dim=-1)[self.part].unflatten(-1, (-1, self.d_head))

    def write(self, tensor: Tensor, value: Tensor) -> Tensor:
        parts = list(tensor.split(self.widths, dim=-1))
        parts[self.part] = value.flatten(-2)
        return torch.cat(parts, dim=-1)


@dataclass(frozen=True)
class InterleavedHeads:
    """q, k and v lie side by side within each head: `[..., head, n_parts * d_head]`."""

    n_parts: int
    part: int
    d_head: int

    def read(self, tensor: Tensor) -> Tensor:
        return self._by_head(tensor)[..., self.part, :]

    def write(self, tensor: Tensor, value: Tensor) -> Tensor:
        parts = list(self._by_head(tensor).unbind(-2))
        parts[self.part] = value
        return torch.stack(parts, dim=-2).flatten(-3)

    def _by_head(self, tensor: Tensor) -> Tensor:
        return tensor.unflatten(-1, (-1, self.n_parts, self.d_head))


@dataclass(frozen=True)
class Tap:
    """Where a site is found.

    Args:
        path: module, relative to the block (or to the model for sites outside the blocks); "" is the block itself.
        side: the module's input or its output.
        view: how the canonical tensor lies in the module's tensor.
        in_place: write into the module's tensor instead of replacing it. Needed where the same tensor goes on along a
        second
            path that no module sees, as the residual stream does in the middle of a block.
    """

    path: str
    side: Literal["in", "out"]
    view: View = field(default_factory=Whole)
    in_place: bool = False


@dataclass(frozen=True)
class Layout:
    """A family's map filled in for one model: sizes and taps.

    Args:
        outside: taps of sites outside the blocks, paths relative to the model.
        inside: taps of sites inside a block, paths relative to the block.
        attention: path of the attention module inside a block (it dispatches to the attention function).
    """

    family: str
    blocks: str
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    attention: str
    outside: Mapping[str, Tap]
    inside: Mapping[str, Tap]
    absent: Mapping[str, str] = field(default_factory=dict)  # site name -> why this architecture does not have it

    def heads(self, name: str) -> int:
        """Number of heads at a site: key and value heads may be fewer than query heads."""
        return self.n_kv_heads if name in ("k", "v") else self.n_heads

    def feature_shape(self, name: str, vocab: int) -> tuple[int, ...]:
        """Trailing shape of a site's tensor after `batch pos`; attention maps have no fixed one."""
        if name in ("q", "k", "v", "z"):
            return (self.heads(name), self.d_head)
        if name in ("mlp_pre", "mlp_pre_linear", "mlp_post"):
            return (self.d_mlp,)
        return (vocab,) if name == "logits" else (self.d_model,)
