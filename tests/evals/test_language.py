"""Language scores against closed forms, and the built-in model's card."""

from __future__ import annotations

import json
import lzma
import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import hooke
from hooke.base.errors import DataError
from hooke.data import corpora
from hooke.evals.language import _windows, bits_per_byte, in_context_gain, token_losses, xz_bits_per_byte
from hooke.model.load import builtin_folder


@pytest.fixture(scope="module")
def uniform():
    """A model that finds all tokens equally likely."""
    builtin = hooke.load("hooke/stdlib")
    hf = LlamaForCausalLM(LlamaConfig(**{**builtin.hf.config.to_dict(), "num_hidden_layers": 1}))
    with torch.no_grad():
        hf.model.norm.weight.zero_()
    return hooke.load((hf, builtin.tokenizer))


def test_uniform_model_needs_log_of_the_vocabulary_per_token(uniform):
    text = "".join(document.text for document in corpora.stdlib("heldout").take(2))
    corpus = corpora.texts([text, "x = 'é'\n"])
    n_tokens = sum(len(uniform.tokenizer(d.text, add_special_tokens=False)["input_ids"]) for d in corpus)
    n_bytes = sum(len(d.text.encode()) for d in corpus)
    assert bits_per_byte(uniform, corpus) == pytest.approx(n_tokens * math.log2(4096) / n_bytes, rel=1e-6)


@pytest.mark.parametrize("n", [1, 5, 255, 256, 257, 511, 512, 1300])
def test_windows_score_every_token_once_with_enough_before_it(uniform, n):
    ids = list(range(2, n + 2))
    seen = []
    for windows, n_new in _windows(uniform, ids, context=512, stride=256, batch=3):
        assert windows.shape[1] <= 512
        for row, new in zip(windows.tolist(), n_new.tolist(), strict=True):
            assert row[0] == uniform.tokenizer.bos_token_id
            fresh = row[len(row) - new :]
            seen += fresh
            assert fresh[0] < 2 + 256 or len(row) - new - 1 >= 255
    assert sorted(seen) == ids


def test_xz_is_what_lzma_gives():
    text = "def f(x):\n    return x\n" * 50
    expected = 8 * len(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)) / len(text)
    assert xz_bits_per_byte(corpora.texts([text])) == expected


def test_empty_text_is_refused_not_scored_as_zero(uniform):
    with pytest.raises(DataError, match="no text"):
        bits_per_byte(uniform, corpora.texts([]))
    with pytest.raises(DataError, match="no text"):
        xz_bits_per_byte(corpora.texts([""]))


def test_no_learning_in_context_where_there_is_none(uniform):
    gain = in_context_gain(uniform, corpora.stdlib("heldout"), n_windows=16)
    assert gain.value == pytest.approx(0.0, abs=1e-5)
    missing = in_context_gain(uniform, corpora.texts(["x = 1"]))
    assert math.isnan(missing.value)
    assert missing.reason


def test_token_losses_are_hugging_face_losses():
    model = hooke.load("hooke/stdlib")
    ids = model.tokens("import os\nimport sys\n").ids
    with torch.no_grad():
        expected = model.hf(ids, labels=ids).loss
    assert token_losses(model, ids).mean() == pytest.approx(float(expected), rel=1e-6)


def test_the_built_in_model_learns_in_context():
    gain = in_context_gain(hooke.load("hooke/stdlib"), corpora.stdlib("heldout"), n_windows=240)
    assert gain.low > 0.2


@pytest.mark.slow
def test_the_card_says_what_the_model_does():
    scores = json.loads((builtin_folder("hooke/stdlib") / "measured.json").read_text())
    corpus = corpora.stdlib("heldout")
    measured = bits_per_byte(hooke.load("hooke/stdlib"), corpus)
    assert measured <= 0.75 * xz_bits_per_byte(corpus)
    assert measured == pytest.approx(scores["bits_per_byte"], rel=0.02)  # interpreters carry slightly different sources
