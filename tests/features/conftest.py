"""A tiny random model with one id a byte, a small dictionary on it, and hand-made indexes."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hooke.data.corpora import texts
from hooke.dictionaries.activations.topk import TopK
from hooke.dictionaries.dictionary import Dictionary
from hooke.features.build import build_index
from hooke.features.index import LatentIndex
from hooke.features.writer import IndexWriter, TokenBlock
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


@pytest.fixture
def model() -> Model:
    return tiny_model()


@pytest.fixture
def dictionary() -> Dictionary:
    return tiny_dictionary()


@pytest.fixture(scope="session")
def index(tmp_path_factory) -> LatentIndex:
    path = tmp_path_factory.mktemp("features") / "index"
    return build_index(tiny_model(), tiny_dictionary(), texts(TEXTS), path, n_tokens=10_000, context=24)


@pytest.fixture
def write(tmp_path):
    """Write an index from activations `[token, latent]`: rows of `row_length` tokens, a document a row unless said."""

    def _write(dense, *, row_length, token_id=None, rows_per_doc=1, vocabulary=("a", "b", "c"), name="made"):
        n, n_latents = dense.shape
        folder = tmp_path / name
        folder.mkdir()
        writer = IndexWriter(folder, n_latents=n_latents, memory_bytes=1_000_000)
        row = np.arange(n) // row_length
        token_id = np.zeros(n, dtype=int) if token_id is None else np.asarray(token_id)
        writer.add_documents([f"doc-{i}" for i in range(row[-1] // rows_per_doc + 1)])
        order = np.argsort(-dense, axis=1)[:, : max(int((dense != 0).sum(1).max()), 1)]
        block = TokenBlock(
            token_id,
            row // rows_per_doc,
            1 + np.arange(n) % row_length,
            row,
            row_length * (row % rows_per_doc),
        )
        writer.add(block, order, np.take_along_axis(dense, order, axis=1))
        writer.finish(list(vocabulary), {"model": {"name": "none"}, "dictionary": {}, "corpus": "made"})
        return LatentIndex.open(folder)

    return _write
