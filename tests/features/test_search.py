from __future__ import annotations

import time

import numpy as np
import pytest

from hooke.base.errors import ConfigError
from hooke.features.search import find_text, latents_by_token, passage, strongest_in


def test_latents_by_token_against_the_dense_matrix(write):
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((200, 12)) < 0.3, rng.random((200, 12)) + 0.1, 0).astype(np.float32)
    dense[:, 11] = 1
    token_id = rng.integers(0, 3, 200)
    index = write(dense, row_length=10, token_id=token_id)
    rows = dense[token_id == 2]
    for by, expected in (("mean", rows.mean(0)), ("max", rows.max(0)), ("share", (rows > 0).mean(0))):
        n, hits = latents_by_token(index, 2, n=12, by=by)
        assert n == len(rows)
        assert [h.latent for h in hits] == np.argsort(-expected, kind="stable").tolist()
        np.testing.assert_allclose([getattr(h, by) for h in hits], np.sort(expected)[::-1], rtol=1e-5)
    assert 11 not in [h.latent for h in latents_by_token(index, 2, n=12, max_density=0.9)[1]]


def test_a_token_that_does_not_occur(write):
    assert latents_by_token(write(np.ones((10, 2), dtype=np.float32), row_length=5), 1) == (0, [])


def test_unknown_ranking(write):
    with pytest.raises(ConfigError, match="'mean', 'max'"):
        latents_by_token(write(np.ones((10, 2), dtype=np.float32), row_length=5), 0, by="median")


def test_tokens_by_text(index):
    assert index.strings(index.tokens_by_text("d")) == ["d"]
    assert index.tokens_by_text("nowhere") == []


@pytest.mark.parametrize("query", ["self.width", "<script>", "🙂", "é and"])
def test_text_is_found_where_it_is(index, query):
    hits, complete = find_text(index, query)
    assert complete and hits[0].text == query
    assert "".join(index.strings(index.token_id[hits[0].begin : hits[0].end])) == query
    example = passage(index, hits[0], 0, before=4, after=60)
    assert query[0] in example.text and hits[0].begin <= example.focus + hits[0].begin


def test_literal_by_default_and_patterns_on_request(index):
    assert find_text(index, "w.dth").hits == []
    assert find_text(index, "w.dth", regex=True).hits[0].text == "width"
    assert find_text(index, r"\(self\)", regex=True).hits[0].text == "(self)"
    assert find_text(index, r"num[a-z]+", regex=True).hits[0].text == "numpy"


def test_one_passage_a_document_and_the_limit(index):
    assert len(find_text(index, "width").hits) == 1
    many = find_text(index, "width", per_document=False)
    assert len(many.hits) > 1 and many.complete
    assert find_text(index, "width", per_document=False, n=1).complete is False


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+b", "(a|a)*b", "(a*){30}", r"(a)\1", "a*a*a*b", "a{1,5}a*a*", "(?P<x>a)(?P=x)", "[", "", "a" * 201],
)
def test_patterns_that_could_run_away_are_refused(index, pattern):
    with pytest.raises(ConfigError):
        find_text(index, pattern, regex=True)


def test_the_clock_stops_a_search(index):
    begin = time.monotonic()
    assert find_text(index, "nowhere", seconds=-1.0).complete is False
    assert time.monotonic() - begin < 1


def test_the_clock_stops_a_search_within_a_row(write):
    """The one row alone would take minutes, so a clock that is read between rows would end with `complete`."""
    index = write(np.ones((6000, 2), dtype=np.float32), row_length=6000)
    assert find_text(index, "[ab]+[ac]+[01]", regex=True, seconds=0.2) == ([], False)
    assert find_text(index, r"a{3}", regex=True).hits[0].text == "aaa"


@pytest.mark.parametrize("pattern", ["$", "^", "Q*", r"\b", "(?=w)"])
def test_an_empty_match_is_no_passage(index, pattern):
    assert find_text(index, pattern, regex=True) == ([], True)


def test_an_empty_match_does_not_hide_a_real_one_behind_it(index):
    found = find_text(index, "w?idth|Q*", regex=True, per_document=False)
    assert found.hits and {hit.text for hit in found.hits} == {"width"}
    assert all(hit.end > hit.begin for hit in found.hits)


def test_strongest_in_a_span(write):
    dense = np.zeros((20, 4), dtype=np.float32)
    dense[3, 0], dense[4, 1], dense[5, 1], dense[:, 3] = 2, 1, 3, 9
    index = write(dense, row_length=10)
    assert strongest_in(index, 3, 6) == [(1, 3.0), (0, 2.0)]
    assert strongest_in(index, 3, 6, max_density=1.0)[0] == (3, 9.0)
