"""Vision-language models (LLaVA, Qwen-VL, Gemma 3): the text family's map, one level further down.

An image tower turns pixels into vectors, which take the places of placeholder tokens before the first block. Sites are
those of the text model; at image positions they hold what the image became. Attention is causal, but for the tokens of
one image in Gemma 3, which see each other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from transformers import PretrainedConfig

from hooke.base.errors import ModelError
from hooke.model.families.family import Layout, Tap
from hooke.model.families.gemma import gemma
from hooke.model.families.llama import llama

_TEXT: dict[str, Callable[[PretrainedConfig], Layout]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text"), llama),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), gemma),
}


def vision_language(config: PretrainedConfig) -> Layout:
    """Sites of `LlavaForConditionalGeneration`, `Qwen2VLForConditionalGeneration`, its 2.5 and 3, and
    `Gemma3ForConditionalGeneration`.

    Raises:
        ModelError: for a text model that has no map.
    """
    text = config.get_text_config()
    if text.model_type not in _TEXT:
        raise ModelError(
            f"the text part of this {config.model_type!r} model is {text.model_type!r}, which has no map of sites; "
            f"known: {', '.join(sorted(_TEXT))}"
        )
    base = _TEXT[text.model_type](text)
    outside = {name: dataclasses.replace(tap, path=_below(tap.path)) for name, tap in base.outside.items()}
    # The embedding module does not see the image: what enters the first block is the first tensor that holds both.
    outside["embed"] = Tap(f"{_below(base.blocks)}.0", "in")
    return dataclasses.replace(
        base,
        family=config.model_type,
        blocks=_below(base.blocks),
        outside=outside,
        image_token=config.image_token_id,
    )


def _below(path: str) -> str:
    """A path of the text model by itself, inside the whole model."""
    return path.replace("model.", "model.language_model.", 1) if path.startswith("model.") else path
