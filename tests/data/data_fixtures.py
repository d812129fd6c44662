"""A tiny model, a tiny corpus, and a source of rows without a model whose every value is known."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hooke.data.corpora import Corpus, texts
from hooke.data.harvest import Activations
from hooke.data.packing import Cursor
from hooke.model.load import load
from hooke.model.model import Model
from hooke.model.sites import Site

SITE = Site("resid_post", 1)
OTHER = Site("mlp_post", 0)


def tiny_tokenizer(bos: bool = True) -> PreTrainedTokenizerFast:
    """One id per byte after BOS/EOS (0) and padding (1)."""
    vocab = {"<s>": 0, "<pad>": 1, **{c: i + 2 for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    marks = {"bos_token": "<s>", "eos_token": "<s>"} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", **marks)


@functools.cache
def tiny_model(seed: int = 0, bos: bool = True) -> Model:
    """Two Llama blocks of width 16 over bytes."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
    )
    return load((LlamaForCausalLM(config), tiny_tokenizer(bos)))


def tiny_corpus(n: int = 12) -> Corpus:
    """Documents of very different length, one of them empty."""
    return texts(["" if i == 3 else "".join(chr(97 + (i * 7 + j) % 26) for j in range(1 + 13 * i)) for i in range(n)])


class CountingSource:
    """Rows 0, 1, 2 ... : row i holds i in every place of both sites (modulo 1000), in chunks of uneven size."""

    def __init__(self, n_rows: int, dtype: torch.dtype = torch.float32, bad_row: int | None = None) -> None:
        self.n_rows, self.dtype, self.bad_row = n_rows, dtype, bad_row

    def describe(self) -> dict:
        """The fields of the manifest."""
        return {
            "model": {"name": "counting", "weights": "0"},
            "corpus": "numbers",
            "sites": [{"site": str(SITE), "width": 4}, {"site": str(OTHER), "width": 2}],
            "dtype": str(self.dtype).removeprefix("torch."),
            "n_tokens": self.n_rows,
            "context": 8,
            "batch": 2,
        }

    def at(self, cursor: Cursor) -> Iterator[Activations]:
        """Chunk c has 5 + c % 3 rows and the cursor (c, 0, first row)."""
        chunk, first = 0, 0
        while first < self.n_rows:
            size = min(5 + chunk % 3, self.n_rows - first)
            if chunk >= cursor.documents:
                yield self._chunk(chunk, first, size)
            first, chunk = first + size, chunk + 1

    def __iter__(self) -> Iterator[Activations]:
        return self.at(Cursor())

    def _chunk(self, chunk: int, first: int, size: int) -> Activations:
        number = torch.arange(first, first + size)
        value = (number % 1000).to(self.dtype)[:, None]
        rows = {SITE: value.repeat(1, 4), OTHER: value.repeat(1, 2)}
        if self.bad_row is not None and first <= self.bad_row < first + size:
            rows[SITE][self.bad_row - first, 1] = math.nan
        return Activations(rows, number, number // 10, number % 10, Cursor(chunk, 0, first))
