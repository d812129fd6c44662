from __future__ import annotations

import itertools
import sys
import types

import pytest

from hooke.base.errors import DataError, MissingExtraError
from hooke.data import corpora


def test_stdlib_is_the_same_each_time_and_split_without_overlap():
    train, heldout = ([d.id for d in corpora.stdlib(split)] for split in ("train", "heldout"))
    assert heldout == [d.id for d in corpora.stdlib("heldout")]
    assert all(map(corpora.is_heldout, heldout)) and not any(map(corpora.is_heldout, train))
    assert 0.02 < len(heldout) / (len(train) + len(heldout)) < 0.09
    assert "argparse.py" in {*train, *heldout} and not any("site-packages" in name for name in train)
    assert train != sorted(train)  # mixed, so that the beginning is no single package


def test_a_module_and_its_tests_are_on_the_same_side():
    assert corpora.is_heldout("test/test_argparse.py") == corpora.is_heldout("argparse.py")
    with pytest.raises(DataError, match="'dev' is not known"):
        corpora.stdlib("dev")


def test_files_in_order_with_their_relative_names(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.txt").write_text("zwei", encoding="utf-8")
    (tmp_path / "a.txt").write_text("eins ü", encoding="utf-8")
    (tmp_path / "no.md").write_text("no")
    assert [(d.id, d.text) for d in corpora.files(tmp_path)] == [("a.txt", "eins ü"), ("b/two.txt", "zwei")]
    assert [d.id for d in corpora.files(tmp_path / "no.md")] == ["no.md"]
    with pytest.raises(DataError, match="matches"):
        list(corpora.files(tmp_path, "*.rst"))
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"bad\.txt is not UTF-8"):
        list(corpora.files(tmp_path))
    with pytest.raises(DataError, match="does not exist"):
        corpora.files(tmp_path / "nowhere")


def test_jsonl(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one", "id": 7}\n\n{"text": "two"}\n')
    assert [(d.id, d.text) for d in corpora.jsonl(path)] == [("7", "one"), ("rows.jsonl:3", "two")]
    with pytest.raises(DataError, match="line 1 has no text under 'body'"):
        list(corpora.jsonl(path, field="body"))
    path.write_text('{"text": "one"}\n{"text": ')
    with pytest.raises(DataError, match="line 2 is not JSON"):
        list(corpora.jsonl(path))
    with pytest.raises(DataError, match="not a file"):
        corpora.jsonl(tmp_path / "nothing.jsonl")


def test_take_and_names():
    corpus = corpora.texts(["a", "b", "c"], name="abc")
    assert [d.text for d in corpus.take(2)] == ["a", "b"] and corpus.take(2).name == "abc[:2]"
    assert corpus.repeated(2).name == "abc*2"


def test_huggingface_says_which_extra_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"hooke\[data\]"):
        next(iter(corpora.huggingface("some/set")))


def test_huggingface_streams_rows(monkeypatch):
    rows = [{"body": "one"}, {"other": 1}]
    fake = types.ModuleType("datasets")
    fake.load_dataset = lambda *args, **options: iter(rows)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    corpus = iter(corpora.huggingface("some/set", field="body"))
    assert next(corpus) == corpora.Document("some/set:train:0", "one")
    with pytest.raises(DataError, match=r"row 1 .* has \['other'\]"):
        next(corpus)


def test_repeating_a_corpus_without_text_ends():
    assert [d.text for d in corpora.texts(["", ""]).repeated()] == ["", ""]
    assert len(list(itertools.islice(corpora.texts(["", "x"]).repeated(), 7))) == 7
