"""A tiny random model with one id a byte, and a small dictionary on it; shared by the tests of features and web."""

from __future__ import annotations

import functools

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hooke.dictionaries.activations.topk import TopK
from hooke.dictionaries.dictionary import Dictionary
from hooke.model.load import load
from hooke.model.model import Model

TEXTS = [
    "def area(self):\n    return self.width * self.height\n" * 3,
    "<script>alert('x')</script> and é and 🙂 and &amp;",
    "import numpy as np\n\nclass Foo:\n    pass\n",
    "x = 1",
]


@functools.cache
def tiny_model() -> Model:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={"<s>": 0, "<pad>": 1, **{c: i + 2 for i, c in enumerate(alphabet)}}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="<s>", pad_token="<pad>")
    config = GPT2Config(vocab_size=258, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    return load((GPT2LMHeadModel(config), tokenizer))


@functools.cache
def tiny_dictionary() -> Dictionary:
    dictionary = Dictionary(16, 48, activation=TopK(4), reads="resid_post.0", seed=1)
    with torch.no_grad():
        dictionary.b_enc[40:] = -1e4  # the last eight latents are dead
    return dictionary
