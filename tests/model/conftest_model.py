"""Small random models of every family, and a tokenizer that needs no download."""

from __future__ import annotations

import functools
import string

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
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

CONFIGS: dict[str, PretrainedConfig] = {
    "gpt2": GPT2Config(**_SMALL, n_embd=32, n_layer=3, n_head=4, n_positions=64),
    "gpt_neox": GPTNeoXConfig(**_SMALL, **{**_LLAMA, "intermediate_size": 64}),
    "gpt_neox-sequential": GPTNeoXConfig(**_SMALL, **_LLAMA, use_parallel_residual=False),
    "llama": LlamaConfig(**_SMALL, **_LLAMA, num_key_value_heads=4),
    "llama-gqa": LlamaConfig(**_SMALL, **_LLAMA, num_key_value_heads=2, head_dim=12),
    "mistral": MistralConfig(**_SMALL, **_LLAMA, num_key_value_heads=2, sliding_window=None),
    "qwen2": Qwen2Config(**_SMALL, **_LLAMA, num_key_value_heads=2),
}


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


@functools.cache
def random_model(family: str, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Model:
    """A model with random weights, seeded; biases and gains are made random too, so that nothing is hidden by zeros."""
    torch.manual_seed(len(family))
    hf = AutoModelForCausalLM.from_config(CONFIGS[family], attn_implementation=attention)
    with torch.no_grad():
        for weight in hf.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return load((hf.to(dtype), byte_tokenizer()))


TEXTS = ["def area(self):", "x = 1", string.ascii_lowercase]
