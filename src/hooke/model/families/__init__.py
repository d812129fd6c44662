"""Families: which Hugging Face architectures hooke knows, one small map each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PretrainedConfig, PreTrainedModel

from hooke.base.errors import ModelError
from hooke.model.families.bare import fitted
from hooke.model.families.bloom import bloom
from hooke.model.families.derived import complete
from hooke.model.families.encoders import bert, roberta
from hooke.model.families.falcon import falcon
from hooke.model.families.family import Layout
from hooke.model.families.gemma import gemma
from hooke.model.families.generic import generic
from hooke.model.families.gpt2 import gpt2
from hooke.model.families.gpt_neo import gpt_neo
from hooke.model.families.gpt_neox import gpt_neox
from hooke.model.families.gptj import gptj
from hooke.model.families.llama import llama
from hooke.model.families.moe import moe
from hooke.model.families.olmo2 import olmo2
from hooke.model.families.opt import opt
from hooke.model.families.phi import phi
from hooke.model.families.phi3 import phi3
from hooke.model.families.stablelm import stablelm
from hooke.model.families.toy import toy
from hooke.model.families.vision_language import vision_language

FAMILIES: dict[str, Callable[[PretrainedConfig], Layout]] = {
    "bert": bert,
    "bloom": bloom,
    "falcon": falcon,
    "gemma": gemma,
    "gemma2": gemma,
    "gemma3": vision_language,
    "gemma3_text": gemma,
    "gpt2": gpt2,
    "gpt_neo": gpt_neo,
    "gpt_neox": gpt_neox,
    "gptj": gptj,
    "hooke_toy": toy,
    "llama": llama,
    "llava": vision_language,
    "mistral": llama,
    "mixtral": moe,
    "olmo2": olmo2,
    "opt": opt,
    "phi": phi,
    "phi3": phi3,
    "qwen2": llama,
    "qwen2_5_vl": vision_language,
    "qwen2_moe": moe,
    "qwen2_vl": vision_language,
    "qwen3": llama,
    "qwen3_moe": moe,
    "qwen3_vl": vision_language,
    "roberta": roberta,
    "stablelm": stablelm,
}


def layout_of(config: PretrainedConfig) -> Layout:
    """The sites of a model with this configuration.

    Raises:
        ModelError: for a model type that has no map yet.
    """
    if config.model_type not in FAMILIES:
        raise ModelError(
            f"model type {config.model_type!r} has no map of sites yet; known: {', '.join(sorted(FAMILIES))}"
        )
    return complete(FAMILIES[config.model_type](config))


def layout_for(hf: PreTrainedModel) -> Layout:
    """The sites of a model in memory: its family's map, with or without the head that it has; for an architecture
    without a map, what is found by structure (and a warning that names what is missing).

    Raises:
        ModelError: where not even the blocks can be found.
    """
    if hf.config.model_type in FAMILIES:
        return fitted(layout_of(hf.config), hf)
    with torch.no_grad():  # it tries the model out
        return generic(hf)
