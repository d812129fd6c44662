"""Families: which Hugging Face architectures hooke knows, one small map each."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PretrainedConfig

from hooke.base.errors import ModelError
from hooke.model.families.family import Layout
from hooke.model.families.gpt2 import gpt2
from hooke.model.families.gpt_neox import gpt_neox
from hooke.model.families.llama import llama

FAMILIES: dict[str, Callable[[PretrainedConfig], Layout]] = {
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "llama": llama,
    "mistral": llama,
    "qwen2": llama,
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
    return FAMILIES[config.model_type](config)
