"""Where each weight lies: canonical names (`W_Q.3`, `b_O.0`, `W_U`) to the parameters of a Hugging Face model.

Everything follows from the taps of the family's layout: the module whose output is the site `q` holds W_Q, the module
whose input is `z` holds W_O, and the tap's view that finds the heads in the activation finds them in the weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hooke.base.errors import ModelError, nearest
from hooke.model.families.family import Layout, View, Whole

GLOBAL_NAMES = ("W_E", "W_pos", "W_U", "b_U", "final_norm_gain", "final_norm_bias")
_SITES = {"Q": "q", "K": "k", "V": "v", "O": "z", "gate": "mlp_pre", "in": "mlp_pre_linear", "out": "mlp_post"}
_NORMS = ("attn_norm", "attn_post_norm", "mlp_norm", "mlp_post_norm")
LAYER_NAMES = (
    *(f"{kind}_{part}" for part in _SITES for kind in "Wb"),
    *(f"{norm}_{part}" for norm in _NORMS for part in ("gain", "bias")),
)


@dataclass(frozen=True)
class Matrix:
    """A linear map's weight: `[d_in, d_out]`, or with heads `[head, d_in, d_head]` (the map makes heads) or `[head,
    d_head, d_out]` (it takes them, `takes=True`).
    """

    module: nn.Module
    where: str
    view: View
    takes: bool

    def read(self) -> Tensor:
        lying = _matrix(self.module, self.where)  # [d_in, d_out]
        seen = self.view.read(lying.T if self.takes else lying)
        seen = seen.movedim(-2, 0) if seen.ndim == 3 else seen
        return seen.mT if self.takes else seen

    def write(self, value: Tensor) -> None:
        lying = _matrix(self.module, self.where)
        value = value.mT if self.takes else value
        value = value.movedim(0, -2) if value.ndim == 3 else value
        new = self.view.write(lying.T if self.takes else lying, value.to(lying.dtype))
        new = new.T if self.takes else new
        _replace(self.module, "weight", new if isinstance(self.module, Conv1D) else new.T)


@dataclass(frozen=True)
class Bias:
    """A linear map's bias; zeros where it has none, which is what it adds."""

    module: nn.Module
    where: str
    view: View

    def read(self) -> Tensor:
        return self.view.read(self._whole())

    def write(self, value: Tensor) -> None:
        whole = self._whole()
        if self.module.bias is not None or value.any():
            _replace(self.module, "bias", self.view.write(whole, value.to(whole.dtype)))

    def _whole(self) -> Tensor:
        bias = getattr(self.module, "bias", None)
        if bias is not None:
            return _usable(bias, self.where)
        weight = _matrix(self.module, self.where)
        return weight.new_zeros(weight.shape[1])


@dataclass(frozen=True)
class Table:
    """Rows of an embedding; position tables of some families keep rows in front that no position uses."""

    module: nn.Module
    where: str
    skipped: int = 0

    def read(self) -> Tensor:
        return _usable(self.module.weight, self.where)[self.skipped :]

    def write(self, value: Tensor) -> None:
        whole = _usable(self.module.weight, self.where)
        _replace(self.module, "weight", torch.cat([whole[: self.skipped], value.to(whole.dtype)]))


@dataclass(frozen=True)
class NormPart:
    """A norm's gain as it multiplies (Gemma's is 1 + weight), or its bias; ones and zeros where it has none."""

    module: nn.Module
    where: str
    attribute: str
    offset: float
    like: Tensor  # d_model numbers of the right precision, on the right device

    def read(self) -> Tensor:
        kept = getattr(self.module, self.attribute, None)
        if kept is None:
            return torch.full_like(self.like, float(self.attribute == "weight"))
        kept = _usable(kept, self.where)
        return kept + self.offset if self.attribute == "weight" and self.offset else kept

    def write(self, value: Tensor) -> None:
        kept = getattr(self.module, self.attribute, None)
        if kept is not None:
            offset = self.offset if self.attribute == "weight" else 0.0
            _replace(self.module, self.attribute, (value - offset).to(kept.dtype))
        elif (value != float(self.attribute == "weight")).any():
            raise ModelError(f"{self.where} has no {self.attribute} to write to")


# `read` gives a view of the storage where it can; `write` puts in a new parameter.
Place = Matrix | Bias | Table | NormPart


def split_name(name: str, n_layers: int) -> tuple[str, int | None]:
    """`"W_Q.3"` as `("W_Q", 3)`, `"W_U"` as `("W_U", None)`; a negative layer counts from the end.

    Raises:
        ModelError: for a name that no weight has, or a layer out of range.
    """
    stem, _, number = name.partition(".")
    if stem not in (*GLOBAL_NAMES, *LAYER_NAMES):
        raise ModelError(f"no weight is called {stem!r}{nearest(stem, (*GLOBAL_NAMES, *LAYER_NAMES))}")
    if stem in GLOBAL_NAMES:
        if number:
            raise ModelError(f"{stem} exists once per model; write {stem!r}, not {name!r}")
        return stem, None
    if not number.lstrip("-").isdecimal() or not -n_layers <= int(number) < n_layers:
        raise ModelError(f"weight {name!r}: expected '{stem}.0' to '{stem}.{n_layers - 1}'")
    return stem, int(number) % n_layers


def place(hf: PreTrainedModel, layout: Layout, name: str, layer: int | None) -> Place:
    """Where a weight lies.

    Raises:
        ModelError: where the architecture has no such weight, with the layout's reason.
    """
    if layer is None:
        return _outside(hf, layout, name)
    if "norm" in name:
        return _block_norm(hf, layout, name, layer)
    kind, part = name.split("_")
    site = _SITES[part]
    if site.startswith("mlp_pre") and not layout.has("mlp_pre_linear", layer) and layout.has("mlp_pre", layer):
        site = "mlp_pre" if part == "in" else "mlp_pre_linear"  # no gate: the first matrix is W_in
    if not layout.has(site, layer):
        raise ModelError(f"layer {layer} of this {layout.family} has no {name}: {layout.why_absent(site)}")
    tap, path = layout.tap(site, layer), layout.path(site, layer)
    module = hf.get_submodule(path)
    if kind == "W":
        return Matrix(module, path, tap.view, takes=tap.side == "in")
    return Bias(module, path, Whole() if tap.side == "in" else tap.view)


def norm_path(layout: Layout, norm: str, layer: int) -> str | None:
    """Path of a block's norm (`attn_norm`, `mlp_norm`, ...), None where there is none. In parallel blocks with one norm
    the MLP's is the attention's.
    """
    if layout.has(f"{norm}_scale", layer):
        return layout.path(f"{norm}_scale", layer)
    shared = norm == "mlp_norm" and layout.has("mlp_out", layer) and not layout.has("resid_mid", layer)
    return norm_path(layout, "attn_norm", layer) if shared else None


def _block_norm(hf: PreTrainedModel, layout: Layout, name: str, layer: int) -> Place:
    norm, part = name.rsplit("_", 1)
    path = norm_path(layout, norm, layer)
    if path is None:
        raise ModelError(f"this {layout.family} has no {name}: {layout.why_absent(f'{norm}_scale')}")
    return _norm_part(hf, layout, path, part)


def _norm_part(hf: PreTrainedModel, layout: Layout, path: str, part: str) -> Place:
    attribute = "weight" if part == "gain" else "bias"
    like = hf.get_input_embeddings().weight.detach()[0, :1].expand(layout.d_model)
    return NormPart(hf.get_submodule(path), path, attribute, layout.gain_offset, like)


def _outside(hf: PreTrainedModel, layout: Layout, name: str) -> Place:
    if name == "W_E":
        return Table(hf.get_input_embeddings(), "the token embedding")
    if name in ("W_U", "b_U"):
        head = hf.get_output_embeddings()
        if head is None:
            raise ModelError(f"this {layout.family} has no {name}: the model was loaded without a language-model head")
        return Matrix(head, "the unembedding", Whole(), False) if name == "W_U" else Bias(head, name, Whole())
    site = "pos_embed" if name == "W_pos" else "final_norm"
    if not layout.has(site, None):
        raise ModelError(f"this {layout.family} has no {name}: {layout.why_absent(site)}")
    path = layout.path(site, None)
    if name != "W_pos":
        return _norm_part(hf, layout, path, name.rsplit("_", 1)[1])
    table = hf.get_submodule(path)
    if not isinstance(getattr(table, "weight", None), Tensor):
        raise ModelError(f"this {layout.family} has no W_pos: {path} ({type(table).__name__}) learns nothing")
    padding = getattr(table, "padding_idx", None)  # position 0 is the row after the padding row (RoBERTa)
    return Table(table, path, getattr(table, "offset", 0 if padding is None else padding + 1))


def _matrix(module: nn.Module, where: str) -> Tensor:
    """A linear map's weight as `[d_in, d_out]`, a view."""
    if isinstance(module, Conv1D):
        return _usable(module.weight, where)
    if isinstance(module, nn.Linear):
        return _usable(module.weight, where).T
    raise ModelError(
        f"{where} is a {type(module).__name__}, whose weight cannot be read as one matrix; merge adapters first, and "
        "load without quantisation"
    )


def _usable(weight: Tensor, where: str) -> Tensor:
    """A parameter whose numbers are the weights themselves."""
    weight = weight.detach()
    if weight.is_meta:
        raise ModelError(f"{where} is not in memory (device_map put it elsewhere); load the model whole")
    if not weight.is_floating_point() or weight.itemsize < 2 or type(weight) is not Tensor:
        what = str(weight.dtype).removeprefix("torch.") if type(weight) is Tensor else type(weight).__name__
        raise ModelError(
            f"{where} is quantised or wrapped ({what}): its stored numbers are not the weights; load the model in "
            "float32, bfloat16 or float16 to read them"
        )
    return weight


def _replace(module: nn.Module, attribute: str, value: Tensor) -> None:
    """A new parameter of its own: whatever was tied to the old one keeps the old numbers."""
    setattr(module, attribute, nn.Parameter(value.detach().contiguous().clone(), requires_grad=False))
