"""A family's map is drawn for the model with its head and plain weights; what is opened may be the bare stack of
blocks, carry another head (a classifier's), or be quantised.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor
from transformers import PreTrainedModel

from hooke.model.families.family import Layout, Tap


def fitted(layout: Layout, hf: PreTrainedModel) -> Layout:
    """The map with its paths as they are in this model, and without logits where it has no such head."""
    stem = f"{hf.base_model_prefix}."
    bare = hf.base_model is hf

    def here(path: str) -> str:
        return path.removeprefix(stem) if bare else path

    outside = {name: dataclasses.replace(tap, path=here(tap.path)) for name, tap in layout.outside.items()}
    inside, absent = dict(layout.inside), dict(layout.absent)
    if "logits" in outside and not _has(hf, outside["logits"]):
        del outside["logits"]
        absent["logits"] = f"{type(hf).__name__} has no head over the vocabulary"
    moved = dataclasses.replace(layout, blocks=here(layout.blocks), outside=outside)
    if "result" in inside and not _is_plain(hf, moved):
        del inside["result"]
        absent["result"] = "its output projections are quantised or not in memory; z is what they read"
    return dataclasses.replace(moved, inside=inside, absent=absent)


def _is_plain(hf: PreTrainedModel, layout: Layout) -> bool:
    """Whether every output projection's matrix can be read as it lies in memory."""
    modules = [hf.get_submodule(layout.path("result", layer)) for layer in range(layout.n_layers)]
    weights = [module.weight.detach() for module in modules]
    return all(type(w) is Tensor and w.is_floating_point() and w.itemsize > 1 and not w.is_meta for w in weights)


def _has(hf: PreTrainedModel, tap: Tap) -> bool:
    if not tap.path:  # the model's own output: behind whatever caps its logits
        return hf.get_output_embeddings() is not None
    try:
        hf.get_submodule(tap.path)
    except AttributeError:
        return False
    return True
