"""Weights: read-only views of a model's matrices under the names of the field, per head and per neuron.

Row vectors are multiplied from the left, as in the papers: `q = n(x) W_Q + b_Q`, a head adds `z W_O`, an MLP neuron
reads a column of W_in and writes a row of W_out. `Weights` is raw: nothing folded, nothing centred.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hooke.base.errors import ModelError
from hooke.model.weights.folding import FoldedWeights, Rewrites
from hooke.model.weights.names import WeightSet
from hooke.model.weights.places import place

if TYPE_CHECKING:
    from hooke.model.model import Model


class Weights(WeightSet):
    """The raw weights of a model: views of its parameters, nothing copied where the storage allows.

    Do not write into them; use an edit, or a copy of the model.
    """

    def __init__(self, model: Model) -> None:
        self.hf, self.layout = model.hf, model.layout
        self.notes = tuple(_notes(self))

    def read(self, name: str, layer: int | None) -> Tensor:
        return place(self.hf, self.layout, name, layer).read()

    def has(self, name: str, layer: int | None) -> bool:
        try:
            place(self.hf, self.layout, name, layer)
        except ModelError:
            return False
        return True

    @property
    def embed_scale(self) -> float:
        """What the model multiplies rows of W_E by (Gemma: sqrt(d_model))."""
        return float(getattr(self.hf.get_input_embeddings(), "embed_scale", 1.0))

    def folded(
        self,
        *,
        fold_norm: bool = True,
        centre_writing: bool = True,
        centre_unembed: bool = True,
        fold_value_bias: bool = True,
        dtype: torch.dtype | None = None,
    ) -> FoldedWeights:
        """The same weights rewritten so that the model's probabilities stay what they are; see `folding.py`.

        Raises:
            ConfigError: for a rewrite that would change the probabilities of this architecture, with the reason.
        """
        rewrites = Rewrites(fold_norm, centre_writing, centre_unembed, fold_value_bias)
        return FoldedWeights(self, rewrites, dtype=dtype)

    def __repr__(self) -> str:
        return f"Weights({self.layout.family}, raw: {self.layout.n_layers} layers, d_model {self.layout.d_model})"


def _notes(weights: Weights) -> Iterator[str]:
    """What weight-only views leave out in this architecture."""
    layout, hf = weights.layout, weights.hf
    if layout.positions == "rotary":
        yield "QK: queries and keys are rotated by position before the score; W_QK holds before rotation"
    if layout.positions == "alibi":
        yield "QK: scores also fall with distance (ALiBi), whatever W_QK says"
    attention = hf.get_submodule(layout.module(0, layout.attention))
    if any("norm" in name for name, child in attention.named_children() if any(True for _ in child.parameters())):
        yield "QK: queries and keys are normed between projection and score; W_QK leaves their norms out"
    if weights.embed_scale != 1:
        yield f"W_E: the model multiplies its rows by {weights.embed_scale:g}"
    if layout.image_token is not None:
        yield f"W_E: at image tokens (id {layout.image_token}) image features take the place of its rows"
    elif layout.has("embed", None) and not isinstance(hf.get_submodule(layout.path("embed", None)), nn.Embedding):
        yield f"W_E: its rows pass {layout.path('embed', None)} before they enter the residual stream"
    if not layout.has("final_norm", None):
        yield f"W_U: {layout.why_absent('final_norm')}"
    if layout.logit_softcap is not None:
        yield f"W_U: logits are {layout.logit_softcap:g} * tanh(raw / {layout.logit_softcap:g})"
