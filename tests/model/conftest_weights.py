"""Models for the tests of weights beyond the decoder families: mixtures, encoders, a vision-language model, toys."""

from __future__ import annotations

import functools

import torch
from conftest_model import _LLAMA, _SMALL, CONFIGS, TEXTS, byte_tokenizer, random_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    BertConfig,
    Gemma3Config,
    MixtralConfig,
    Qwen2MoeConfig,
    RobertaConfig,
)

from hooke.model.load import load
from hooke.model.model import Model
from hooke.model.toy.make import toy

_TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4}
_QWEN = {"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "mlp_only_layers": [1]}
_TEXT = {**_SMALL, **_LLAMA, "num_key_value_heads": 2}
MORE_CONFIGS = {
    "mixtral": (AutoModelForCausalLM, MixtralConfig(**_TEXT, num_local_experts=4, sliding_window=None)),
    "qwen2_moe": (AutoModelForCausalLM, Qwen2MoeConfig(**_TEXT, **_QWEN, shared_expert_intermediate_size=24)),
    "bert": (AutoModelForMaskedLM, BertConfig(**_SMALL, **_LLAMA)),
    "roberta": (AutoModelForMaskedLM, RobertaConfig(**_SMALL, **_LLAMA)),
    "gemma3": (
        AutoModelForImageTextToText,
        Gemma3Config(
            vision_config={"model_type": "siglip_vision_model", **_TOWER, "image_size": 16, "vision_use_head": False},
            text_config={**_TEXT, "head_dim": 12, "sliding_window": 5, "layer_types": ["full_attention"] * 3},
            mm_tokens_per_image=4,
            image_token_index=250,
        ),
    ),
}
TOYS = {
    "toy-attention_only": {"attention_only": True, "norm": "none"},
    "toy-gated": {"gated": True, "activation": "silu", "norm": "rms", "positions": "rotary", "n_kv_heads": 2},
    "toy-shortformer": {"positions": "shortformer", "d_head": 5},
    "toy-parallel": {"parallel": True, "positions": "sinusoidal", "vocab_out": 9},
}
ALL_MODELS = [*CONFIGS, *MORE_CONFIGS, *TOYS]


@functools.cache
def model_of(name: str, dtype: torch.dtype = torch.float64) -> Model:
    """Any of `ALL_MODELS`, no weight of it zero or one."""
    if name in CONFIGS:
        return random_model(name, dtype)
    if name in TOYS:
        return noisy(toy(n_layers=2, **TOYS[name]), dtype)
    auto, config = MORE_CONFIGS[name]
    torch.manual_seed(0)
    experts = {"experts_implementation": "eager"} if hasattr(config, "num_experts_per_tok") else {}
    return noisy(load((auto.from_config(config, **experts), byte_tokenizer())), dtype)


def noisy(model: Model, dtype: torch.dtype = torch.float64) -> Model:
    """The model with seeded noise on every parameter."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.hf.parameters():
            weight.add_(torch.randn(weight.shape, generator=draw) * 0.1)
    model.hf.to(dtype)
    return model


def text_for(model: Model) -> str:
    """A short text that the model's tokenizer takes."""
    return "1 3 5 7 2" if model.family == "toy" else TEXTS[0]
