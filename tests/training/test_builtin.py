"""The recipe of the built-in model on a tiny scale: batches, schedule, exact resume, export."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import hooke
from hooke.base.errors import ConfigError
from hooke.data import corpora
from hooke.training.builtin import BOS_ID, Batches, BuiltinRecipe, learning_rate, train, train_tokenizer

TINY = BuiltinRecipe(
    vocab=300,
    d_model=16,
    d_mlp=24,
    n_layers=2,
    n_heads=2,
    context=32,
    rows=4,
    steps=6,
    warmup_steps=2,
    repeat_share=0.3,
)
LIBRARY = corpora.texts([f"def f{i}(x):\n    return x + {i}\n" * 20 for i in range(6)], name="library")
EVERYTHING = corpora.texts([*(d.text for d in LIBRARY), "assert f1(2) == 3\n" * 60], name="everything")


def run(folder, recipe=TINY, stop_after=None, **options):
    steps = train(folder, recipe, library=LIBRARY, everything=EVERYTHING, compile=False, checkpoint_every=2, **options)
    return list(itertools.islice(steps, stop_after))


def weights(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["model"]


def test_resume_is_exact_wherever_it_stops(tmp_path):
    whole = run(tmp_path / "whole")
    for stop in (1, 2, 3, 5):
        folder = tmp_path / f"stopped-{stop}"
        run(folder, stop_after=stop)
        rest = run(folder)
        assert [m["loss"] for m in rest] == [m["loss"] for m in whole[-len(rest) :]]
        for name, weight in weights(folder).items():
            assert torch.equal(weight, weights(tmp_path / "whole")[name]), (stop, name)


def test_the_loss_falls_and_the_export_opens(tmp_path):
    metrics = run(tmp_path, TINY.model_copy(update={"steps": 30, "repeat_share": 0.0}))
    assert metrics[-1]["loss"] < metrics[0]["loss"] - 1.0
    model = hooke.load(tmp_path / "model")
    assert (model.n_layers, model.d_model, model.d_vocab) == (2, 16, 300)
    trained = weights(tmp_path)
    for name, weight in model.hf.state_dict().items():
        assert torch.equal(weight, trained[name].half().float()), name
    assert model.tokens("x").ids[0, 0] == BOS_ID


def test_batches_depend_on_seed_and_step_alone():
    tokenizer = train_tokenizer(TINY.vocab, LIBRARY)
    first, again = (Batches(TINY, tokenizer, LIBRARY, EVERYTHING) for _ in range(2))
    far = 3 * first.steps_per_pass + 1
    expected = first[far]
    again[0], again[5]
    assert all(torch.equal(a, b) for a, b in zip(again[far], expected, strict=True))
    other = Batches(TINY.model_copy(update={"seed": 1}), tokenizer, LIBRARY, EVERYTHING)
    assert not torch.equal(other[far][0], expected[0])


def test_rows_are_text_behind_the_document_mark_or_repeats_with_the_first_copy_hidden():
    tokenizer = train_tokenizer(TINY.vocab, LIBRARY)
    batches = Batches(TINY, tokenizer, LIBRARY, EVERYTHING)
    stream, _ = batches._open_pass(0)
    windows = np.lib.stride_tricks.sliding_window_view(stream, TINY.context)
    repeated = 0
    for step in range(min(8, batches.steps_per_pass)):
        tokens, labels = batches[step]
        assert (tokens[:, 0] == BOS_ID).all()
        for row, label in zip(tokens.numpy(), labels.numpy(), strict=True):
            if (label == -100).any():
                repeated += 1
                hidden = int((label == -100).sum())
                period = hidden - 2
                assert (row[1:][period:] == row[1:][:-period]).all()
                assert len(set(row[1 : period + 1])) == period
            else:
                assert (windows == row[1:]).all(axis=1).any()
                assert np.array_equal(label, row)
    assert repeated


def test_schedule():
    recipe = BuiltinRecipe(steps=100, warmup_steps=10, decay_share=0.4)
    factors = [learning_rate(recipe, step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:61] == [1.0] * 52
    assert factors[80] == pytest.approx(0.5)
    assert 0 < factors[99] <= 0.026


def test_too_little_text_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="too few for one batch of 4 x 32"):
        next(train(tmp_path, TINY, library=corpora.texts(["x = 1\n"]), everything=corpora.texts(["x = 1\n"])))
