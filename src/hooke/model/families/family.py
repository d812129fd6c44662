"""What a family is: a small map from canonical sites to the modules of a Hugging Face architecture.

A `Tap` says at which module a site is found, on which side of it (its input or its output), and through which `View`
the module's tensor is read as the canonical tensor and written back. A site that no tensor of the model holds, such as
the result of one head, is derived from a module's input and output together. Nothing of a model's code is copied or
replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from hooke.model.sites import INNER_SITES, MAP_SITES


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


@runtime_checkable
class Derived(Protocol):
    """How a site is worked out from a module's input `x` and its output. `write(module, x, output, read(module, x,
    output))` must give back `output` bit for bit.
    """

    def read(self, module: nn.Module, x: Tensor, output: Tensor) -> Tensor: ...

    def write(self, module: nn.Module, x: Tensor, output: Tensor, value: Tensor) -> Tensor: ...


Side = Literal["in", "out", "through"]


@dataclass(frozen=True)
class Tap:
    """Where a site is found.

    Args:
        path: module, relative to the block (or to the model for sites outside the blocks); "" is the block itself.
        side: the module's input, its output, or both together ("through", with a `Derived` view).
        view: how the canonical tensor lies in the module's tensor.
        in_place: write into the module's tensor instead of replacing it. Needed where the same tensor goes on along a
            second path that no module sees, as the residual stream does in the middle of a block.
        flat: the module sees `[batch * pos, ...]`; the site is `[batch, pos, ...]` all the same.
    """

    path: str
    side: Side
    view: View | Derived = field(default_factory=Whole)
    in_place: bool = False
    flat: bool = False


@dataclass(frozen=True)
class Layout:
    """A family's map filled in for one model: sizes and taps.

    Args:
        outside: taps of sites outside the blocks, paths relative to the model.
        inside: taps of sites inside a block, paths relative to the block.
        varied: taps that differ in particular layers; None where such a layer lacks the site.
        attention: path of the attention module inside a block.
        dispatches: whether that module calls transformers' attention registry.
        norms: scale site -> path of its norm module inside a block.
        norm: whether norms subtract the mean.
        gain_offset: what a norm adds to its weight before multiplying (Gemma: 1).
        logit_softcap: logits are `cap * tanh(raw / cap)`.
        image_token: id of the placeholder that image features replace.
        absent: site name -> why this architecture does not have it.
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
    absent: Mapping[str, str] = field(default_factory=dict)
    varied: Mapping[int, Mapping[str, Tap | None]] = field(default_factory=dict)
    norms: Mapping[str, str] = field(default_factory=dict)
    norm: Literal["layer", "rms"] = "layer"
    gain_offset: float = 0.0
    positions: Literal["learned", "rotary", "alibi", "sinusoidal", "none"] = "learned"
    causal: bool = True
    dispatches: bool = True
    logit_softcap: float | None = None
    n_experts: int = 0
    experts_per_token: int = 0
    image_token: int | None = None
    # What names and patterns stand for, once worked out (see `plan.resolve`).
    resolved: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    def has(self, name: str, layer: int | None) -> bool:
        """Whether the model has the site (`layer` None: outside the blocks)."""
        if layer is None:
            return name in self.outside
        if name in INNER_SITES:
            return name not in self.absent and (name in MAP_SITES or self.positions == "rotary")
        return self.varied.get(layer, {}).get(name, self.inside.get(name)) is not None

    def tap(self, name: str, layer: int | None) -> Tap:
        """Where a site is found; KeyError where it has no tap."""
        if layer is None:
            return self.outside[name]
        tap = self.varied.get(layer, {}).get(name, self.inside.get(name))
        if tap is None:
            raise KeyError(name)
        return tap

    def path(self, name: str, layer: int | None) -> str:
        """Full name of the module at which a site is found."""
        return self.module(layer, self.tap(name, layer).path)

    def module(self, layer: int | None, path: str) -> str:
        """Full name of a module inside a block, or outside the blocks."""
        return path if layer is None else ".".join(filter(None, (self.blocks, str(layer), path)))

    def why_absent(self, name: str) -> str:
        """Why this architecture does not have a site."""
        if name in ("q_rot", "k_rot") and name not in self.absent:
            return f"its positions are not rotary; {name[0]} is what enters the scores"
        return self.absent.get(name, "the architecture has no such place")

    def heads(self, name: str) -> int:
        """Number of heads at a site: key and value heads may be fewer than query heads."""
        return self.n_kv_heads if name in ("k", "v", "k_rot") else self.n_heads

    def feature_shape(self, name: str, vocab: int) -> tuple[int, ...]:
        """Trailing shape of a site's tensor after `batch pos`; attention maps have no fixed one."""
        if name in ("q", "k", "v", "z", "q_rot", "k_rot"):
            return (self.heads(name), self.d_head)
        if name in ("mlp_pre", "mlp_gate", "mlp_pre_linear", "mlp_post"):
            return (self.d_mlp,)
        special = {
            "result": (self.n_heads, self.d_model),
            "router_logits": (self.n_experts,),
            "expert_out": (self.experts_per_token, self.d_model),
            "logits": (vocab,),
        }
        return (1,) if name.endswith("_scale") else special.get(name, (self.d_model,))
