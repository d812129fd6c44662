"""Small random models of every family, and a tokenizer that needs no download."""

from __future__ import annotations

import copy
import functools
import string

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    StableLmConfig,
)

from hooke.model.load import load
from hooke.model.model import Model

VOCAB = 300
_SMALL = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}

_GPT_NEO = {"hidden_size": 32, "num_layers": 3, "num_heads": 4, "max_position_embeddings": 64}
_FALCON = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 64}
_OPT = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
_GEMMA = {**_LLAMA, "num_key_value_heads": 2, "head_dim": 12, "query_pre_attn_scalar": 10, "sliding_window": 5}
_WINDOWS = ["sliding_attention", "full_attention", "sliding_attention"]
_LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

# Windows are shorter than the longest of TEXTS, so that they cut something off. Names are "family" or "family-variant".
CONFIGS: dict[str, PretrainedConfig] = {
    "gpt2": GPT2Config(**_SMALL, n_embd=32, n_layer=3, n_head=4, n_positions=64),
    "gpt2-scaled": GPT2Config(
        **_SMALL, n_embd=32, n_layer=3, n_head=4, n_positions=64, n_inner=40, scale_attn_by_inverse_layer_idx=True
    ),
    "gpt_neo": GPTNeoConfig(**_SMALL, **_GPT_NEO, attention_types=[[["global", "local", "local"], 1]], window_size=5),
    "gpt_neox": GPTNeoXConfig(**_SMALL, **{**_LLAMA, "intermediate_size": 64}),
    "gpt_neox-sequential": GPTNeoXConfig(
        **_SMALL,
        **_LLAMA,
        use_parallel_residual=False,
        attention_bias=False,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 1.0},
    ),
    "gptj": GPTJConfig(**_SMALL, n_embd=32, n_layer=3, n_head=4, n_positions=64, rotary_dim=4),
    "gptj-whole": GPTJConfig(**_SMALL, n_embd=32, n_layer=2, n_head=2, n_positions=64, rotary_dim=16, n_inner=48),
    "opt": OPTConfig(**_SMALL, **_OPT, max_position_embeddings=64),
    "opt-postnorm": OPTConfig(  # as OPT-350m
        **_SMALL, **_OPT, max_position_embeddings=64, do_layer_norm_before=False, word_embed_proj_dim=20
    ),
    "opt-plain": OPTConfig(  # as Galactica: no biases; norms without gain
        **_SMALL,
        **_OPT,
        max_position_embeddings=64,
        enable_bias=False,
        layer_norm_elementwise_affine=False,
        activation_function="gelu",
    ),
    "bloom": BloomConfig(**_SMALL, hidden_size=48, n_layer=3, n_head=6),  # not a power of two: slopes of two kinds
    "falcon": FalconConfig(**_SMALL, **_FALCON, ffn_hidden_size=48),  # as 7B
    "falcon-grouped": FalconConfig(**_SMALL, **_FALCON, new_decoder_architecture=True, num_kv_heads=2),  # as 40B
    "falcon-one_norm": FalconConfig(  # as 11B
        **_SMALL, **_FALCON, new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1
    ),
    "falcon-sequential": FalconConfig(  # as RW, without ALiBi
        **_SMALL, **_FALCON, parallel_attn=False, multi_query=False, bias=True
    ),
    "falcon-alibi": FalconConfig(  # as RW
        **_SMALL, **_FALCON, parallel_attn=False, multi_query=False, bias=True, alibi=True
    ),
    "falcon-alibi_parallel": FalconConfig(**_SMALL, **_FALCON, alibi=True),
    "llama": LlamaConfig(**_SMALL, **_LLAMA, num_key_value_heads=4),
    "llama-gqa": LlamaConfig(**_SMALL, **_LLAMA, num_key_value_heads=2, head_dim=12, attention_bias=True),
    "llama-3": LlamaConfig(**_SMALL, **_LLAMA, num_key_value_heads=1, mlp_bias=True, rope_parameters=_LLAMA_3_ROPE),
    "mistral": MistralConfig(**_SMALL, **_LLAMA, num_key_value_heads=2, sliding_window=None),
    "mistral-window": MistralConfig(**_SMALL, **_LLAMA, num_key_value_heads=2, sliding_window=5, head_dim=12),
    "qwen2": Qwen2Config(**_SMALL, **_LLAMA, num_key_value_heads=2),
    "qwen2-window": Qwen2Config(
        **_SMALL, **_LLAMA, num_key_value_heads=2, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "qwen3": Qwen3Config(**_SMALL, **_LLAMA, num_key_value_heads=2, head_dim=12),
    "stablelm": StableLmConfig(**_SMALL, **_LLAMA, num_key_value_heads=2, use_qkv_bias=True),
    "stablelm-parallel": StableLmConfig(
        **_SMALL, **_LLAMA, num_key_value_heads=2, use_parallel_residual=True, qk_layernorm=True
    ),
    "gemma": GemmaConfig(**_SMALL, **_LLAMA, num_key_value_heads=1, head_dim=12),
    "gemma2": Gemma2Config(
        **_SMALL, **_GEMMA, layer_types=_WINDOWS, attn_logit_softcapping=2.0, final_logit_softcapping=3.0
    ),
    "gemma3_text": Gemma3TextConfig(**_SMALL, **_GEMMA, layer_types=_WINDOWS),
    "gemma3_text-capped": Gemma3TextConfig(**_SMALL, **_GEMMA, layer_types=_WINDOWS, final_logit_softcapping=3.0),
    "phi": PhiConfig(**_SMALL, **_LLAMA),
    "phi-normed": PhiConfig(**_SMALL, **_LLAMA, num_key_value_heads=2, qk_layernorm=True),
    "phi3": Phi3Config(**_SMALL, **_LLAMA, num_key_value_heads=2),
    "phi3-window": Phi3Config(**_SMALL, **_LLAMA, num_key_value_heads=4, sliding_window=5),
    "olmo2": Olmo2Config(**_SMALL, **_LLAMA, num_key_value_heads=2, attention_bias=True),
}


def kernels(family: str) -> list[str]:
    """The attention kernels that transformers has for a family."""
    return ["sdpa", "eager"] if MODEL_FOR_CAUSAL_LM_MAPPING[type(CONFIGS[family])]._supports_sdpa else ["eager"]


# (family, kernel, dtype): every precision on a family's first kernel, float32 and bfloat16 on the other.
CASES = [
    (family, kernel, dtype)
    for family in CONFIGS
    for kernel in kernels(family)
    for dtype in (torch.float32, torch.bfloat16, torch.float64)
    if kernel == kernels(family)[0] or dtype != torch.float64
]


@functools.cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One id per byte, after BOS/EOS (0) and padding (1)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<s>": 0, "<pad>": 1, **{token: i + 2 for i, token in enumerate(alphabet)}}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = ByteLevelDecoder()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="<s>", pad_token="<pad>")


def random_model(family: str, dtype: torch.dtype = torch.float32, attention: str | None = None) -> Model:
    """A model with random weights, seeded; biases and gains are made random too, so that nothing is hidden by zeros.

    Without a kernel named, it runs on the first that its architecture has.
    """
    return _random_model(family, dtype, attention or kernels(family)[0])


@functools.cache
def _random_model(family: str, dtype: torch.dtype, attention: str) -> Model:
    torch.manual_seed(len(family))
    config = copy.deepcopy(CONFIGS[family])  # Falcon's layers fill in what it leaves open
    hf = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for weight in hf.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return load((hf.to(dtype), byte_tokenizer()))


TEXTS = ["def area(self):", "x = 1", string.ascii_lowercase]
