"""Fixtures: the tiny model and dictionary, an index built with them, and indexes made by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tiny import TEXTS, tiny_dictionary, tiny_model  # noqa: E402

from hooke.data.corpora import texts  # noqa: E402
from hooke.dictionaries.dictionary import Dictionary  # noqa: E402
from hooke.features.build import build_index  # noqa: E402
from hooke.features.index import LatentIndex  # noqa: E402
from hooke.features.writer import IndexWriter, TokenBlock  # noqa: E402
from hooke.model.model import Model  # noqa: E402


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
