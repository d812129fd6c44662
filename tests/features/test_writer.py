"""The writer: bounded memory, results that do not depend on the budget, and input that it refuses."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from hooke.base.errors import DataError
from hooke.base.files import sha256_file
from hooke.features.index import LatentIndex
from hooke.features.writer import IndexWriter, TokenBlock


def write(folder, n_blocks, memory_bytes):
    folder.mkdir()
    writer = IndexWriter(folder, n_latents=500, memory_bytes=memory_bytes)
    rng = np.random.default_rng(0)
    for number in range(n_blocks):
        writer.add_documents([f"doc {number} é"])
        row = 10 * number + np.arange(1000) // 100
        columns = np.zeros(1000, dtype=int), np.full(1000, number), 1 + np.arange(1000) % 100, row, np.arange(1000)
        ids = rng.integers(0, 500, (1000, 8)) if number else np.full((1000, 8), 499)
        values = rng.integers(0, 5, (1000, 8)).astype(np.float32)  # many ties, some empty
        writer.add(TokenBlock(*columns), ids, values)
    writer.finish(["a"], {"model": {}, "dictionary": {}, "corpus": "made"})
    return folder


def test_the_budget_changes_nothing(tmp_path):
    small, large = write(tmp_path / "small", 20, 400_000), write(tmp_path / "large", 20, 10**8)
    names = sorted(file.name for file in small.iterdir())
    assert names == sorted(file.name for file in large.iterdir()) and "sort" not in names
    assert all(sha256_file(small / name) == sha256_file(large / name) for name in names)
    index = LatentIndex.open(small)
    assert index.document(19) == "doc 19 é" and index.n_documents == 20
    index.verify()


def test_memory_does_not_grow_with_the_text(tmp_path):
    peaks = []
    for n_blocks in (20, 80):
        tracemalloc.start()
        write(tmp_path / str(n_blocks), n_blocks, 1_000_000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0] and peaks[1] < 2_500_000


@pytest.mark.parametrize(
    ("ids", "values", "row", "words"),
    [
        ([[0]], [[np.nan]], [0], "NaN or infinite"),
        ([[0]], [[np.inf]], [0], "NaN or infinite"),
        ([[5]], [[1.0]], [0], "the dictionary has 5"),
        ([[0]], [[1.0]], [3], "in order"),
    ],
)
def test_what_is_refused(tmp_path, ids, values, row, words):
    writer = IndexWriter(tmp_path, n_latents=5, memory_bytes=10**6)
    one = np.zeros(1, dtype=int)
    with pytest.raises(DataError, match=words):
        writer.add(TokenBlock(one, one, one, np.array(row), one), np.array(ids), np.array(values, dtype=np.float32))
    writer.close()
    writer.close()


def test_empty_places_are_not_entries(tmp_path):
    writer = IndexWriter(tmp_path, n_latents=5, memory_bytes=10**6)
    writer.add_documents(["d"])
    two = np.zeros(2, dtype=int)
    ids, values = np.array([[-1, 2], [3, 4]]), np.array([[7.0, 1.0], [0.0, -2.0]], dtype=np.float32)
    writer.add(TokenBlock(two, two, np.array([1, 2]), two, two), ids, values)
    writer.finish(["a"], {"model": {}, "dictionary": {}, "corpus": "made"})
    index = LatentIndex.open(tmp_path)
    assert index.n_firing.tolist() == [0, 0, 1, 0, 1] and index.firings(4).values.tolist() == [-2.0]
