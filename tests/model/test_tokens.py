"""Token batches: one mask, positions in terms of the text."""

from __future__ import annotations

import pytest
import torch
from conftest_model import TEXTS, random_model
from hypothesis import given
from hypothesis import strategies as st

from hooke.base.errors import DataError
from hooke.model.tokens import Tokens

rows_strategy = st.lists(st.lists(st.integers(2, 50), min_size=1, max_size=9), min_size=1, max_size=5)


@given(rows_strategy, st.sampled_from(["left", "right"]))
def test_padding_round_trip(rows, side):
    tokens = Tokens.from_ids(rows, pad_id=1, padding_side=side, special_ids=[0, 1, 7])
    assert [row[mask].tolist() for row, mask in zip(tokens.ids, tokens.mask, strict=True)] == rows
    kept = [row[keep].tolist() for row, keep in zip(tokens.ids, tokens.keep, strict=True)]
    assert kept == [[i for i in row if i != 7] for row in rows]
    positions = [p[mask].tolist() for p, mask in zip(tokens.position_ids, tokens.mask, strict=True)]
    assert positions == [list(range(len(row))) for row in rows]


@given(rows_strategy, st.data())
def test_positions_are_positions_in_the_text_whatever_the_padding(rows, data):
    shortest = min(map(len, rows))
    asked = data.draw(st.lists(st.integers(-shortest, shortest - 1), min_size=1, max_size=3))
    for side in ("left", "right"):
        tokens = Tokens.from_ids(rows, padding_side=side)
        picked = tokens.ids.gather(1, tokens.columns(asked)).tolist()
        assert picked == [[row[p] for p in asked] for row in rows]


def test_refusals():
    with pytest.raises(DataError, match="position 3 is beyond row 1, which has 2 tokens; expected -2 to 1"):
        Tokens.from_ids([[5, 6, 7, 8], [5, 6]]).columns([3])
    with pytest.raises(DataError, match="every row needs at least one"):
        Tokens.from_ids([[1, 2], []])
    with pytest.raises(DataError, match="contiguous"):
        Tokens.from_ids(torch.ones(1, 3, dtype=torch.long), mask=torch.tensor([[True, False, True]]))
    with pytest.raises(DataError, match="contiguous"):
        Tokens.from_ids(torch.ones(1, 3, dtype=torch.long), mask=torch.tensor([[False, True, False]]))
    model = random_model("gpt2")
    with pytest.raises(DataError, match="token id 300 is outside the vocabulary, 0 to 299"):
        model.run(torch.tensor([[3, 300]]))
    with pytest.raises(DataError, match="65 tokens; .* takes at most 64"):
        model.run(torch.full((1, 65), 5))


def test_model_tokens_mark_special_ones():
    model = random_model("gpt2")
    tokens = model.tokens(TEXTS)
    assert tokens.ids[:, 0].tolist() == [0, 0, 0]
    assert not tokens.keep[:, 0].any()
    assert torch.equal(tokens.keep[:, 1:], tokens.mask[:, 1:])
    assert model.tokens("x = 1", bos=False).keep.all()
    assert model.tokens("x = 1", max_length=3).shape == (1, 3)


@given(st.text(max_size=15))  # at most 60 bytes, so 60 tokens
def test_token_pieces_join_to_the_text(text):
    model = random_model("gpt2")
    if not text:
        return
    text = text.encode("utf-8", "ignore").decode()
    ids = model.tokens(text, bos=False).ids[0] if text else []
    assert "".join(model.token_strings(ids)) == text


def test_token_pieces_of_split_characters_and_bad_ids():
    model = random_model("gpt2")
    ids = model.tokens("é<b>", bos=False).ids[0].tolist()
    assert model.token_strings(ids) == ["", "é", "<", "b", ">"]
    assert model.token_strings([ids[0]]) == ["\ufffd"]
    assert "out of range" in model.text.piece(10**6)
