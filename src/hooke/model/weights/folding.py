"""Folded weights: the standard rewrites that leave a model's probabilities as they are.

1. `fold_norm`: a norm's gain g and bias b go into the linear maps that read it, `W <- diag(g) W`, `bias <- bias + b W`;
   what is left of the norm only centres (LayerNorm) and scales. For the attention norm, the MLP norm and the final one.
2. `centre_writing`: the mean over d_model is taken off everything written to the residual stream (W_E, W_pos, rows of
   W_O and W_out, b_O, b_out). Every reader must be a LayerNorm, which takes that mean off anyway.
3. `centre_unembed`: the mean over the vocabulary is taken off each row of W_U and off b_U; all logits of a position
   move by the same number.
4. `fold_value_bias`: `b_O <- b_O + b_V W_O` summed over heads, `b_V <- 0`; rows of a pattern sum to 1.

Nothing is written to the model. The rewritten numbers are computed in float64, when they are asked for. Definitions:
TransformerLens' documentation and Elhage et al. 2021; every rewrite is proven here by running it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hooke.base.errors import ConfigError
from hooke.model.families.family import Layout
from hooke.model.weights.names import WeightSet
from hooke.model.weights.places import norm_path, place, split_name

_READERS = {"W_Q": "attn_norm", "W_K": "attn_norm", "W_V": "attn_norm", "W_in": "mlp_norm", "W_gate": "mlp_norm"}
_WRITERS = ("W_E", "W_pos", "W_O", "b_O", "W_out", "b_out")
_FOLDED_NORMS = ("attn_norm", "mlp_norm", "final_norm")
_CHANGED = {
    "fold_norm": frozenset(
        (*_READERS, *(name.replace("W", "b") for name in _READERS), "W_U", "b_U")
        + tuple(f"{norm}_{part}" for norm in _FOLDED_NORMS for part in ("gain", "bias"))
    ),
    "centre_writing": frozenset(_WRITERS),
    "centre_unembed": frozenset(("W_U", "b_U")),
    "fold_value_bias": frozenset(("b_V", "b_O")),
}


@dataclass(frozen=True)
class Rewrites:
    """Which rewrites are asked for; see the head of this file."""

    fold_norm: bool = True
    centre_writing: bool = True
    centre_unembed: bool = True
    fold_value_bias: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are on."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name))


class FoldedWeights(WeightSet):
    """Weights after rewrites: the same names as the raw ones, other numbers. Made by `model.weights.folded()`.

    Embeddings that the model ties to the unembedding are apart here. `dict(folded)` gives all tensors at once.

    Args:
        raw: the weights that the model has.
        rewrites: what was done to them.
        dtype: precision of the result; None stands for the model's own. Arithmetic is float64 either way.
        notes: what the rewrites left as it was, and what weight-only views leave out.

    Raises:
        ConfigError: for a rewrite that would change the probabilities of this architecture, with the reason.
    """

    def __init__(self, raw: WeightSet, rewrites: Rewrites, *, dtype: torch.dtype | None = None) -> None:
        refuse_wrong_rewrites(raw, rewrites)
        self.raw, self.rewrites = raw, rewrites
        self.hf, self.layout = raw.hf, raw.layout
        self.dtype = raw.hf.dtype if dtype is None else dtype
        self.notes = (*raw.notes, *_left_as_they_are(raw, rewrites))

    def read(self, name: str, layer: int | None) -> Tensor:
        return self._rewritten(name, layer).to(self.dtype)

    def has(self, name: str, layer: int | None) -> bool:
        return self.raw.has(name, layer)

    def into_copy(self) -> PreTrainedModel:
        """A copy of the Hugging Face model with these weights in place of its own: for checking, or for running.

        Its log-probabilities are those of the original up to rounding. Biases may be new, and tied embeddings are apart
        where a rewrite changes one of them. Parameters that no rewrite concerns stay bit for bit.
        """
        hf = copy.deepcopy(self.raw.hf)
        hf.config.tie_word_embeddings = False
        changed = frozenset().union(*(_CHANGED[name] for name in self.rewrites.names))
        for name in self:
            stem, layer = split_name(name, self.layout.n_layers)
            if stem in changed:
                place(hf, self.layout, stem, layer).write(self._rewritten(stem, layer))
        return hf

    # -- the rewrites, in float64 --------------------------------------------------------------------------------------

    def _rewritten(self, name: str, layer: int | None) -> Tensor:
        value = self._folded_norm(name, layer)
        if self.rewrites.fold_value_bias:
            if name == "b_V":
                value = torch.zeros_like(value)
            elif name == "b_O":
                shared = self.layout.n_heads // self.layout.n_kv_heads
                b_V = self._folded_norm("b_V", layer).repeat_interleave(shared, dim=0)
                value = value + torch.einsum("hd,hdm->m", b_V, self._raw("W_O", layer))
        if self.rewrites.centre_writing and name in _WRITERS:
            value = value - value.mean(-1, keepdim=True)
        if self.rewrites.centre_unembed and name in ("W_U", "b_U"):
            value = value - value.mean(-1, keepdim=True)
        return value

    def _folded_norm(self, name: str, layer: int | None) -> Tensor:
        value = self._raw(name, layer)
        stem, _, part = name.rpartition("_")
        norm = stem if part in ("gain", "bias") else self._norm_read_by(f"W_{part}")
        if norm is None or not self._folds(norm, layer):
            return value
        if part in ("gain", "bias"):
            return torch.ones_like(value) if part == "gain" else torch.zeros_like(value)
        if name.startswith("W"):
            return self._raw(f"{norm}_gain", layer).unsqueeze(-1) * value
        return value + self._raw(f"{norm}_bias", layer) @ self._raw(f"W_{part}", layer)

    def _norm_read_by(self, matrix: str) -> str | None:
        return "final_norm" if matrix == "W_U" else _READERS.get(matrix)

    def _folds(self, norm: str, layer: int | None) -> bool:
        """Whether this norm is folded: linear maps, all of them known, read it and nothing else does."""
        if not self.rewrites.fold_norm or norm.endswith("_post_norm"):
            return False
        if layer is None:
            return True
        mixture = norm == "mlp_norm" and _is_mixture(self.layout, layer)
        return not mixture and norm_path(self.layout, norm, layer) is not None

    def _raw(self, name: str, layer: int | None) -> Tensor:
        return self.raw.read(name, layer).double()

    def __repr__(self) -> str:
        done = ", ".join(self.rewrites.names) or "nothing"
        return f"FoldedWeights({self.layout.family}, rewritten: {done}; {str(self.dtype).removeprefix('torch.')})"


def refuse_wrong_rewrites(raw: WeightSet, rewrites: Rewrites) -> None:
    """Raise where a rewrite that is asked for would change what the model computes, or would not do what it says.

    Raises:
        ConfigError: with the reason and the argument to pass.
    """
    reasons = {name: _REASONS[name](raw) for name in rewrites.names}
    wrong = [f"{name} ({reason}; pass {name}=False)" for name, reason in reasons.items() if reason is not None]
    if wrong:
        raise ConfigError(f"this {raw.layout.family} does not allow {' and '.join(wrong)}")


def _against_fold_norm(raw: WeightSet) -> str | None:
    layout = raw.layout
    if not layout.has("final_norm", None):
        return layout.why_absent("final_norm")
    if raw.read("W_U", None).shape[0] != layout.d_model:
        return "a projection lies between the final norm and the unembedding"
    if _added_behind_norm(raw):
        return "positions are added behind the norm, to what queries and keys read"
    if layout.family == "bloom" and raw.hf.config.apply_residual_connection_post_layernorm:
        return "the normed stream is added on (apply_residual_connection_post_layernorm), so that gains stay in it"
    return None


def _against_centre_writing(raw: WeightSet) -> str | None:
    layout = raw.layout
    if layout.norm != "layer":
        return "RMSNorm does not take the mean away, so the mean of what is written is read later"
    if _norms_branches(layout):
        return "norms act on what attention and MLP give before it is added, and their gains bring a mean back"
    if not all(_readers_centre(layout, layer) for layer in (None, *range(layout.n_layers))):
        return "not all that read the residual stream do so through a norm of their own that takes the mean away"
    if raw.read("W_E", None).shape[1] != layout.d_model:
        return "a projection lies between the embedding and the residual stream"
    if _added_behind_norm(raw):
        return "positions are added behind the norm, to what queries and keys read"
    if any(_is_mixture(layout, layer) for layer in range(layout.n_layers)):
        return f"what its MLPs write is not one W_out: {layout.why_absent('mlp_post')}"
    return None


def _readers_centre(layout: Layout, layer: int | None) -> bool:
    """Whether a LayerNorm stands before all that reads the stream in a layer (None: before the unembedding)."""
    if layer is None:
        return layout.has("final_norm_scale", None) and layout.tap("final_norm_scale", None).view.centred
    readers = ("attn_norm", "mlp_norm") if layout.has("mlp_out", layer) else ("attn_norm",)
    return all(norm_path(layout, norm, layer) is not None for norm in readers)


def _norms_branches(layout: Layout) -> bool:
    """Whether norms lie between attention or MLP and the stream (Gemma 2 and 3, OLMo 2)."""
    return layout.has("attn_post_norm_scale", 0) or layout.has("mlp_post_norm_scale", 0)


def _added_behind_norm(raw: WeightSet) -> bool:
    """Whether positions join queries and keys instead of the stream (the toy's "shortformer")."""
    return getattr(raw.hf.config, "positions", None) == "shortformer"


def _is_mixture(layout: Layout, layer: int) -> bool:
    return layout.has("mlp_out", layer) and not layout.has("mlp_post", layer)


def _against_centre_unembed(raw: WeightSet) -> str | None:
    cap = raw.layout.logit_softcap
    return (
        None
        if cap is None
        else f"its logits go through {cap:g} * tanh(raw / {cap:g}), where a shift moves probabilities"
    )


def _against_fold_value_bias(raw: WeightSet) -> str | None:
    for layer in range(raw.layout.n_layers):
        attention = raw.hf.get_submodule(raw.layout.module(layer, raw.layout.attention))
        if hasattr(attention, "v_norm"):
            return "values are normed after their bias"
        if hasattr(attention, "sinks"):
            return "rows of its patterns do not sum to 1 (attention sinks)"
    return None


_REASONS = {
    "fold_norm": _against_fold_norm,
    "centre_writing": _against_centre_writing,
    "centre_unembed": _against_centre_unembed,
    "fold_value_bias": _against_fold_value_bias,
}


def _left_as_they_are(raw: WeightSet, rewrites: Rewrites) -> list[str]:
    """What a rewrite that was asked for could not reach, in words."""
    layout, notes = raw.layout, []
    if rewrites.fold_norm:
        if _norms_branches(layout):
            notes.append("fold_norm: norms on what attention and MLP add keep their gains; no linear map reads them")
        if norm_path(layout, "attn_norm", 0) is None:
            notes.append(f"fold_norm: only the final norm could be folded; {layout.why_absent('attn_norm_scale')}")
        mixtures = [layer for layer in range(layout.n_layers) if _is_mixture(layout, layer)]
        if mixtures:
            layers = ", ".join(map(str, mixtures))
            routed = layout.has("router_logits", mixtures[0])
            why = "where router and experts read it" if routed else f"as {layout.why_absent('mlp_post')}"
            notes.append(f"fold_norm: mlp_norm keeps its gain in layers {layers}, {why}")
    if rewrites.centre_writing and layout.has("embed", None):
        entry = layout.path("embed", None)
        if isinstance(raw.hf.get_submodule(entry), torch.nn.LayerNorm):
            notes.append(f"centre_writing: {entry} lies behind W_E and may bring a mean back into the stream")
    return notes
