"""The models and inputs that every side of the comparison loads from one folder: the same numbers for all.

Weights are random, wider than Hugging Face's own initialisation, and gains and biases are random too, so that a side
that dropped one of them would not give the same logits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

PAIR_LENGTH = 16


@dataclass(frozen=True)
class Shape:
    """A model to be built at random.

    Args:
        config: arguments of its Hugging Face configuration, `model_type` among them.
        batch: rows and tokens of the batch for captures, attribution and generation.
    """

    name: str
    config: Mapping[str, object]
    batch: tuple[int, int] = (8, 128)


_GPT2 = {"model_type": "gpt2", "initializer_range": 0.04, "bos_token_id": None, "eos_token_id": None}
_LLAMA = {"model_type": "llama", "initializer_range": 0.04, "bos_token_id": None, "eos_token_id": None}
GPT2_SMALL = Shape("GPT-2 small", {**_GPT2, "n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257})
LLAMA_4 = Shape(
    "4-layer Llama",
    {
        **_LLAMA,
        "num_hidden_layers": 4,
        "hidden_size": 512,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 1376,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
    },
)


@dataclass(frozen=True, eq=False)
class Inputs:
    """What goes in.

    Args:
        batch: ids `[row, pos]`; corrupted_batch: other ids of the same shape, for attribution.
        clean: ids `[pos]` of the pair's unpatched run, corrupted: ids of the run that patches come from. They differ
            at every position, so that no patch is without effect.
        answer, wrong: the metric is the logit of `answer` less that of `wrong` at the last position.
    """

    batch: Tensor
    corrupted_batch: Tensor
    clean: Tensor
    corrupted: Tensor
    answer: int
    wrong: int


def write(shape: Shape, folder: Path) -> Path:
    """Save a shape's weights and inputs; what is already there is kept."""
    if (folder / "inputs.json").is_file():
        return folder
    torch.manual_seed(0)
    config = dict(shape.config)
    hf = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config)).eval()
    with torch.no_grad():
        for weight in hf.parameters():
            if weight.ndim == 1:
                weight.add_(0.1 * torch.randn_like(weight))
    vocab = hf.config.vocab_size
    batch, other = torch.randint(3, vocab, (2, *shape.batch)).unbind(0)
    clean = torch.randint(3, vocab, (PAIR_LENGTH,))
    corrupted = (clean + torch.randint(1, vocab - 8, (PAIR_LENGTH,)) - 3) % (vocab - 3) + 3
    assert bool((clean != corrupted).all())
    with torch.no_grad():
        logits = hf(clean[None], use_cache=False).logits[0]
    hf.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    tensors = {"batch": batch, "corrupted_batch": other, "clean": clean, "corrupted": corrupted, "logits": logits}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "inputs.safetensors")
    (folder / "inputs.json").write_text(json.dumps({"answer": 5, "wrong": vocab - 7}))
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    """Every side takes ids; the libraries only want to see a tokenizer."""
    core = Tokenizer(models.WordLevel({"<s>": 0, "<pad>": 1, "<unk>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="<s>", pad_token="<pad>", unk_token="<unk>"
    )


def read(folder: Path) -> Inputs:
    """The inputs of a folder."""
    tensors = load_file(folder / "inputs.safetensors")
    tensors.pop("logits")
    return Inputs(**tensors, **json.loads((folder / "inputs.json").read_text()))


def reference_logits(folder: Path) -> Tensor:
    """Logits `[pos, vocab]` of the clean run by plain Hugging Face: what every side must agree with."""
    return load_file(folder / "inputs.safetensors")["logits"]


def open_hf(folder: Path) -> PreTrainedModel:
    """The plain model, on transformers' default attention; its weights need no gradients."""
    return AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
