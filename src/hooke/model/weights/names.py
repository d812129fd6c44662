"""Named weights: what raw and folded weights have in common, from `W_Q[5]` to the OV and QK circuits of a head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from hooke.base.errors import SiteError, nearest
from hooke.model.families.family import Layout
from hooke.model.weights.factored import Factored
from hooke.model.weights.places import GLOBAL_NAMES, LAYER_NAMES, split_name


class PerLayer(Sequence):
    """One weight of every layer, read when it is asked for: `weights.W_Q[5]`.

    Args:
        words: its shape in words.
        repeats: query heads that share one key-value head; `expanded` repeats the weight for each.
    """

    def __init__(
        self, name: str, words: str, read: Callable[[int], Tensor], *, n_layers: int, repeats: int = 1
    ) -> None:
        self.name, self.words = name, words
        self._read, self._n_layers, self._repeats = read, n_layers, repeats

    def __len__(self) -> int:
        return self._n_layers

    def __iter__(self) -> Iterator[Tensor]:
        return (self._read(layer) for layer in range(len(self)))

    @overload
    def __getitem__(self, layer: int) -> Tensor: ...
    @overload
    def __getitem__(self, layer: slice) -> list[Tensor]: ...
    def __getitem__(self, layer: int | slice) -> Tensor | list[Tensor]:
        """The weight of one layer (negative: from the end), or of several.

        Raises:
            SiteError: for a layer that the model does not have.
            ModelError: where this layer has no such weight, with the reason.
        """
        if isinstance(layer, slice):
            return [self._read(index) for index in range(len(self))[layer]]
        return self._read(checked(layer, len(self), f"{self.name}: layer"))

    @property
    def expanded(self) -> PerLayer:
        """The same for every query head: with grouped key-value heads each is repeated for the heads that it serves."""
        if self._repeats == 1:
            return self

        def read(layer: int) -> Tensor:
            return self._read(layer).repeat_interleave(self._repeats, dim=0)

        return PerLayer(self.name, self.words.replace("kv_head", "head"), read, n_layers=len(self))

    def stacked(self) -> Float[Tensor, "layer ..."]:
        """All layers in one tensor, a copy."""
        return torch.stack(list(self))

    def __repr__(self) -> str:
        return f"PerLayer({self.name}: {len(self)} layers of [{self.words}])"


def _per_layer(name: str, words: str, doc: str) -> Any:
    def get(self: WeightSet) -> PerLayer:
        layout = self.layout
        repeats = layout.n_heads // layout.n_kv_heads if words.startswith("kv_head") else 1
        return PerLayer(name, words, lambda layer: self.read(name, layer), n_layers=layout.n_layers, repeats=repeats)

    return property(get, doc=f"`[{words}]` per layer: {doc}")


def _once(name: str, words: str, doc: str) -> Any:
    return property(lambda self: self.read(name, None), doc=f"`[{words}]`: {doc}")


class WeightSet(Mapping):
    """The matrices of a model by name: as attributes (`weights.W_Q[5]`), or as a mapping (`weights["W_Q.5"]`).

    A bias that the architecture does not have is zeros, which is what it adds. A matrix that it does not have raises
    ModelError with the reason. Key and value heads may be fewer than query heads; see `PerLayer.expanded`. `notes` says
    what weights alone leave out in this architecture.
    """

    hf: PreTrainedModel
    layout: Layout
    notes: tuple[str, ...]

    W_E = _once("W_E", "vocab d_model", "token embedding; `embed_scale` multiplies it in some families.")
    W_pos = _once("W_pos", "pos d_model", "learned positions; row p belongs to position p.")
    W_U = _once("W_U", "d_model vocab", "unembedding.")
    b_U = _once("b_U", "vocab", "bias of the unembedding.")
    final_norm_gain = _once("final_norm_gain", "d_model", "gain of the final norm.")
    final_norm_bias = _once("final_norm_bias", "d_model", "bias of the final norm.")
    W_Q = _per_layer("W_Q", "head d_model d_head", "queries.")
    W_K = _per_layer("W_K", "kv_head d_model d_head", "keys.")
    W_V = _per_layer("W_V", "kv_head d_model d_head", "values.")
    W_O = _per_layer("W_O", "head d_head d_model", "attention output.")
    b_Q = _per_layer("b_Q", "head d_head", "bias of the queries.")
    b_K = _per_layer("b_K", "kv_head d_head", "bias of the keys.")
    b_V = _per_layer("b_V", "kv_head d_head", "bias of the values.")
    b_O = _per_layer("b_O", "d_model", "bias of the attention output; it belongs to no head.")
    W_in = _per_layer("W_in", "d_model d_mlp", "what neurons read; in gated MLPs the linear (up) projection.")
    W_gate = _per_layer("W_gate", "d_model d_mlp", "what the gates of neurons read.")
    W_out = _per_layer("W_out", "d_mlp d_model", "what neurons write.")
    b_in = _per_layer("b_in", "d_mlp", "bias of `W_in`.")
    b_gate = _per_layer("b_gate", "d_mlp", "bias of `W_gate`.")
    b_out = _per_layer("b_out", "d_model", "bias of the MLP's output.")
    attn_norm_gain = _per_layer("attn_norm_gain", "d_model", "gain of the norm before attention, as it multiplies.")
    attn_norm_bias = _per_layer("attn_norm_bias", "d_model", "bias of the norm before attention.")
    mlp_norm_gain = _per_layer("mlp_norm_gain", "d_model", "gain of the norm before the MLP, as it multiplies.")
    mlp_norm_bias = _per_layer("mlp_norm_bias", "d_model", "bias of the norm before the MLP.")
    attn_post_norm_gain = _per_layer("attn_post_norm_gain", "d_model", "gain of the norm on what attention adds.")
    mlp_post_norm_gain = _per_layer("mlp_post_norm_gain", "d_model", "gain of the norm on what the MLP adds.")

    @abstractmethod
    def read(self, name: str, layer: int | None) -> Tensor:
        """One weight by name and layer (None: outside the blocks).

        Raises:
            ModelError: where the model has no such weight or it cannot be read, with the reason.
        """

    @abstractmethod
    def has(self, name: str, layer: int | None) -> bool:
        """Whether the architecture has this weight; a bias counts where its matrix does."""

    def __getattr__(self, name: str) -> Any:  # only where nothing else has been found
        known = [*GLOBAL_NAMES, *LAYER_NAMES]
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}{nearest(name, known)}")

    # -- a mapping -----------------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Tensor:
        return self.read(*split_name(name, self.layout.n_layers))

    def __iter__(self) -> Iterator[str]:
        yield from (name for name in GLOBAL_NAMES if self.has(name, None))
        for layer in range(self.layout.n_layers):
            yield from (f"{name}.{layer}" for name in LAYER_NAMES if self.has(name, layer))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    # -- circuits ------------------------------------------------------------------------------------------------------

    def OV(self, layer: int, head: int | None = None) -> Factored:
        """W_OV = W_V W_O of one head, `d_model x d_model`; without `head` a stack of all heads of the layer.

        A row vector at the source position, times W_OV, is what the head adds for full attention, norms and biases
        left out.

        Raises:
            SiteError: for a layer or head that the model does not have.
        """
        return _of_head(Factored(self.W_V.expanded[layer], self.W_O[layer]), head, f"OV of layer {layer}: head")

    def QK(self, layer: int, head: int | None = None) -> Factored:
        """W_QK = W_Q W_K^T of one head, `d_model x d_model`; without `head` a stack of all heads of the layer.

        `x_q W_QK x_s^T / sqrt(d_head)` is the score of source s for query q, norms and biases left out. In rotary
        models that holds before rotation only: a real score also depends on the distance between the two positions.
        Norms on q and k (Qwen 3, Gemma 3, OLMo 2) are left out as well. `notes` says which of these apply.

        Raises:
            SiteError: for a layer or head that the model does not have.
        """
        return _of_head(Factored(self.W_Q[layer], self.W_K.expanded[layer].mT), head, f"QK of layer {layer}: head")


def checked(index: int, size: int, what: str) -> int:
    """A layer or head counted from the start.

    Raises:
        SiteError: when it is out of range.
    """
    if not -size <= index < size:
        raise SiteError(f"{what} {index} does not exist; the model has {size}, 0 to {size - 1}")
    return index % size


def _of_head(stack: Factored, head: int | None, what: str) -> Factored:
    return stack if head is None else stack.select(checked(head, stack.shape[0], what))
