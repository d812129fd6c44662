from __future__ import annotations

import pytest
import torch
from data_fixtures import tiny_corpus, tiny_model
from hypothesis import given
from hypothesis import strategies as st

from hooke.base.errors import ConfigError, DataError
from hooke.data.corpora import Corpus, Document, texts
from hooke.data.packing import Cursor, pack


def text_of(packed, row):
    keep = packed.tokens.keep[row]
    return packed.tokens.ids[row][keep].tolist()


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    context=st.integers(2, 12),
    batch=st.integers(1, 5),
)
def test_rows_joined_are_the_documents(lengths, context, batch):
    documents = ["".join(chr(97 + (i + j) % 26) for j in range(n)) for i, n in enumerate(lengths)]
    model = tiny_model()
    if not any(lengths):
        with pytest.raises(DataError, match="is empty"):
            list(pack(texts(documents), model, context=context, batch=batch))
        return
    joined = {i: [] for i in range(len(documents))}
    for packed in pack(texts(documents), model, context=context, batch=batch):
        assert packed.tokens.ids.shape[1] <= context
        assert bool((packed.tokens.ids[:, 0] == 0).all())  # BOS first in every row
        assert not bool(packed.tokens.keep[:, 0].any())
        for row in range(len(packed.tokens)):
            doc = int(packed.doc[row])
            assert packed.doc_ids[row] == f"texts-{doc}"
            assert int(packed.start[row]) == len(joined[doc])
            joined[doc] += text_of(packed, row)
    for i, text in enumerate(documents):
        assert joined[i] == model.tokenizer(text, add_special_tokens=False)["input_ids"]


@given(n_tokens=st.integers(1, 900))
def test_stops_after_the_row_that_reaches_the_number(n_tokens):
    batches = list(pack(tiny_corpus(), tiny_model(), context=8, batch=3, n_tokens=n_tokens))
    kept = [int(row.sum()) for packed in batches for row in packed.tokens.keep]
    whole = sum(int(p.tokens.keep.sum()) for p in pack(tiny_corpus(), tiny_model(), context=8, batch=3))
    assert sum(kept) >= min(n_tokens, whole)
    assert sum(kept[:-1]) < n_tokens


@pytest.mark.parametrize("bos", [True, False])
def test_starts_again_at_every_cursor_with_the_same_batches(bos):
    model = tiny_model(bos=bos)
    batches = list(pack(tiny_corpus(), model, context=9, batch=4, n_tokens=400))
    done = 0
    for i, packed in enumerate(batches):
        assert packed.cursor.tokens == done
        done += int(packed.tokens.keep.sum())
        again = list(pack(tiny_corpus(), model, context=9, batch=4, n_tokens=400, start=packed.cursor))
        assert len(again) == len(batches) - i
        for a, b in zip(again, batches[i:], strict=True):
            assert torch.equal(a.tokens.ids, b.tokens.ids)
            assert torch.equal(a.tokens.mask, b.tokens.mask)
            assert torch.equal(a.doc, b.doc) and torch.equal(a.start, b.start) and a.cursor == b.cursor


def test_without_bos_every_token_is_text():
    packed = next(pack(texts(["abcdef"]), tiny_model(bos=False), context=4, batch=2))
    assert packed.tokens.mask.sum() == packed.tokens.keep.sum() == 6
    assert packed.start.tolist() == [0, 4]


def test_special_tokens_inside_a_text_are_not_kept():
    packed = next(pack(texts(["ab<s>cd"]), tiny_model(), context=16, batch=1))
    assert packed.tokens.keep[0].tolist() == [False, True, True, False, True, True]


def test_a_corpus_is_read_only_as_far_as_needed():
    opened = []

    def documents():
        for i in range(1000):
            opened.append(i)
            yield Document(str(i), "x" * 5000)

    next(pack(Corpus("long", documents), tiny_model(), context=64, batch=2))
    assert len(opened) < 30


def test_repeated_corpus_goes_round(model):
    rounds = texts(["ab", "c"]).repeated(3)
    assert [d.text for d in rounds] == ["ab", "c"] * 3
    assert [d.text for d in texts([]).repeated()] == []
    endless = pack(texts(["ab", "c"]).repeated(), model, context=4, batch=1, n_tokens=900)
    assert sum(int(p.tokens.keep.sum()) for p in endless) >= 900


@pytest.mark.parametrize("wrong", [{"context": 1}, {"batch": 0}, {"n_tokens": 0}])
def test_refuses_settings_without_room(model, wrong):
    with pytest.raises(ConfigError):
        next(pack(texts(["abc"]), model, **wrong))


def test_empty_corpus_is_named(model):
    with pytest.raises(DataError, match="corpus 'nothing' is empty"):
        next(pack(texts(["", ""], name="nothing"), model))
    assert list(pack(texts(["ab"]), model, start=Cursor(1, 0, 2))) == []  # the end of a corpus is no empty corpus
