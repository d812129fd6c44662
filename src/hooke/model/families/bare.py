"""A family's map is drawn for the model with its head; what is opened may be the bare stack of blocks, or carry another
head (a classifier's).
"""

from __future__ import annotations

import dataclasses

from transformers import PreTrainedModel

from hooke.model.families.family import Layout, Tap


def fitted(layout: Layout, hf: PreTrainedModel) -> Layout:
    """The map with its paths as they are in this model, and without logits where it has no such head."""
    stem = f"{hf.base_model_prefix}."
    bare = hf.base_model is hf

    def here(path: str) -> str:
        return path.removeprefix(stem) if bare else path

    outside = {name: dataclasses.replace(tap, path=here(tap.path)) for name, tap in layout.outside.items()}
    absent = dict(layout.absent)
    if "logits" in outside and not _has(hf, outside["logits"]):
        del outside["logits"]
        absent["logits"] = f"{type(hf).__name__} has no head over the vocabulary"
    return dataclasses.replace(layout, blocks=here(layout.blocks), outside=outside, absent=absent)


def _has(hf: PreTrainedModel, tap: Tap) -> bool:
    try:
        hf.get_submodule(tap.path)
    except AttributeError:
        return False
    return True
