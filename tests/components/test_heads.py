"""Head scores: targets by brute force, the uniform control in closed form, the built-in model's induction heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

import hooke
from hooke.base.errors import ConfigError
from hooke.components.heads import _following_earlier, prefix_matching


@given(st.integers(0, 1), st.integers(2, 7), st.integers(2, 4))
def test_targets_by_brute_force(start, period, n_copies):
    tokens = [-1] * start + list(range(period)) * n_copies
    expected = np.zeros((len(tokens), len(tokens)), dtype=bool)
    for q in range(start + period, len(tokens)):
        for s in range(1, q + 1):
            expected[q, s] = s - 1 < q and tokens[s - 1] == tokens[q]
    assert np.array_equal(_following_earlier(start, period, len(tokens)).numpy(), expected)


def test_a_random_model_scores_no_better_than_uniform_attention():
    builtin = hooke.load("hooke/stdlib")
    torch.manual_seed(0)
    hf = LlamaForCausalLM(LlamaConfig(**{**builtin.hf.config.to_dict(), "num_hidden_layers": 2}))
    scores = prefix_matching(hooke.load((hf, builtin.tokenizer)), n_sequences=4)
    assert abs(scores.values - scores.uniform).max() < 0.02
    assert 0 < scores.uniform < 0.1


def test_uniform_control_is_what_equal_attention_gives():
    builtin = hooke.load("hooke/stdlib")
    hf = LlamaForCausalLM(LlamaConfig(**{**builtin.hf.config.to_dict(), "num_hidden_layers": 1}))
    with torch.no_grad():
        hf.model.layers[0].self_attn.q_proj.weight.zero_()  # all scores 0: attention is uniform over earlier tokens
    scores = prefix_matching(hooke.load((hf, builtin.tokenizer)), n_sequences=3)
    torch.testing.assert_close(scores.values, torch.full_like(scores.values, scores.uniform), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("periods", [(8, 64), (65, 100)])
def test_the_built_in_model_has_induction_heads(periods):
    layer, _, score = prefix_matching(hooke.load("hooke/stdlib"), n_sequences=5, periods=periods).best()
    assert score >= 0.3
    assert layer >= 1  # induction needs a layer below it


def test_refuses_what_does_not_fit():
    with pytest.raises(ConfigError, match="need up to 1025 positions"):
        prefix_matching(hooke.load("hooke/stdlib"), periods=(8, 256))
